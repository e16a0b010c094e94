"""The process behind `./run.sh`: `toolstack/cli.py`, with an orderly end whatever ends it.

Owns: what SIGINT and SIGTERM do: one line, status 130 or 143, and the machine has been closed.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn

from toolstack.commands import cli
from toolstack.door import RunEnded

SIGNALS: Final = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@contextmanager
def orderly_end() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a RunEnded, which closes the machine on its way out.

    Further ones are ignored: they could only cut the closing short.
    """

    def end(signum: int, frame: FrameType | None) -> NoReturn:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        name = SIGNALS[signal.Signals(signum)]
        raise RunEnded(f"{name}; everything is closed", 128 + signum)

    before = {each: signal.signal(each, end) for each in SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def main(*args: Any, **options: Any) -> NoReturn:
    """Run the command line (click's arguments: `args`, `obj`) and exit."""
    with orderly_end():
        cli.main(*args, **options)


if __name__ == "__main__":
    main()
