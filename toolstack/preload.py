"""Imported by the fork server before its first fork: brings every process's code in, compiled.

The first time compiling takes a while. A fork server that is done notices by itself when its
supervisor has gone; until then a thread looks, and ends before anything is forked.
"""

import os
import threading
from typing import Final

PARENT_POLL_S: Final = 0.2


def _end_with(parent: int, ready: threading.Event) -> None:
    while not ready.wait(PARENT_POLL_S):
        if os.getppid() != parent:
            os._exit(1)


def _bring_in() -> None:
    from backend import dom0  # noqa: F401, PLC0415
    from frontend import guest  # noqa: F401, PLC0415
    from hypervisor import broker  # noqa: F401, PLC0415
    from toolstack.warm import warm  # noqa: PLC0415

    warm()


_ready = threading.Event()
_watch = threading.Thread(target=_end_with, args=(os.getppid(), _ready))
_watch.start()
try:
    _bring_in()
finally:
    _ready.set()
    _watch.join()
