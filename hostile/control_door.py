"""Attacks on the control connection, whose other end is the toolstack's own process."""

import contextlib
import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgpack
import numpy as np

from common.control import MESSAGE_MAX
from hostile.attacker import PAUSE_S, Attacker
from hostile.hypercall_door import RANDOM_SEED

ESCAPES: Final = "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\n\u202e" * 40


def _for_ever(me: Attacker, messages: Sequence[bytes]) -> Iterator[None]:
    while True:
        for message in messages:
            me.stroke()  # before: it may be the death of it
            me.control.sendall(message)
            yield


def answers(me: Attacker) -> Iterator[None]:
    """Answers to what it was not asked, as large as a message can be."""
    return _for_ever(me, [msgpack.packb(["ok", bytes(MESSAGE_MAX - 64)])])


class _Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('unpickled')",)


def pickles(me: Attacker) -> Iterator[None]:
    """What runs if it is unpickled."""
    return _for_ever(me, [pickle.dumps(("ok", _Runs())), pickle.dumps(_Runs())])


def garbage(me: Attacker) -> Iterator[None]:
    """Chance."""
    rng = np.random.default_rng(RANDOM_SEED)
    return _for_ever(me, [rng.bytes(int(rng.integers(1, 2000))) for _ in range(100)])


def huge(me: Attacker) -> Iterator[None]:
    """More than a message may be, as far as the socket lets it; a list that says it is longer."""
    me.stroke()
    with contextlib.suppress(OSError):
        me.control.sendall(bytes(2 * MESSAGE_MAX))
    return _for_ever(me, [b"\xdd\xff\xff\xff\xff" + bytes(MESSAGE_MAX - 5)])


def nested(me: Attacker) -> Iterator[None]:
    """Lists in lists, deeper than anybody's stack; keys that cannot be keys; extension types."""
    return _for_ever(
        me,
        [
            b"\x92\xa3log" + b"\x91" * 400 + b"\xc0",
            msgpack.packb(["log", msgpack.Timestamp(2**33, 5)]),
            b"\x92\xa3log\xd8\x05" + bytes(16),
            b"\x92\xa3log\x81\x90\x90",
            b"\x91" * 100_000 + b"\xc0",
        ],
    )


def logs(me: Attacker) -> Iterator[None]:
    """Lines for the user's terminal, without end, and not text alone."""
    long = msgpack.packb(["log", [{ESCAPES: [ESCAPES] * 4}] * 20])
    return _for_ever(me, [msgpack.packb(["log", ESCAPES]), long])


def closed(me: Attacker) -> Iterator[None]:
    """It closes its end, and lives on."""
    me.stroke()  # before: it may be the death of it
    me.control.close()
    while True:
        time.sleep(PAUSE_S)
        yield


def silent(me: Attacker) -> Iterator[None]:
    """It never says anything, and reads nothing."""
    me.stroke()
    while True:
        time.sleep(PAUSE_S)
        yield
