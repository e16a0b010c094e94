"""The stores of one vCPU's rings: what is polled for, and who has not answered for long.

Owns: the stores' descriptors in the thread's poller, the times at which they want to be called,
and the clock of a stalled store. A store that is silent costs nothing: nobody spins for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from backend.ring_hands import RingHands

STALLED_NS: Final = 5_000_000_000  # without an answer: then it is said, and after twice that again


@dataclass
class _Watched:
    """on_stall: told for how many seconds it has been silent; 0 when it is so no more."""

    hands: RingHands
    on_stall: Callable[[int], None]
    fd: int = -1
    events: int = 0
    answers: int = 0  # jobs
    since_ns: int = 0  # that many have been answered
    tell_after_ns: int = STALLED_NS


class StoreWatch:
    """Those of one thread. poller: its (`common/wakeups.py`)."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._watched: dict[int, _Watched] = {}
        self._ring_of: dict[int, int] = {}  # by descriptor

    def add(self, ring: int, hands: RingHands, on_stall: Callable[[int], None]) -> None:
        """From now on the store of `ring` is watched, if it is one that answers later."""
        if hands.later is not None or hands.queue_fd >= 0:
            self._watched[ring] = _Watched(hands, on_stall)

    def forget(self, ring: int) -> None:
        """The ring has ended."""
        if (watched := self._watched.pop(ring, None)) is not None:
            self._poll(ring, watched, -1, 0)

    def timeout_ns(self, now_ns: int) -> int | None:
        """Before a sleep: what is to be polled is, and how long it may last."""
        ends = []
        for ring, watched in self._watched.items():
            hands, later = watched.hands, watched.hands.later
            if later is None:
                self._poll(ring, watched, hands.queue_fd, 1)
            else:
                self._poll(ring, watched, later.fileno(), later.events())
                if (due_ns := later.due_ns()) is not None:
                    ends.append(due_ns)
            if hands.dev.back["at_store"][0]:
                ends.append(watched.since_ns + watched.tell_after_ns)
        return max(0, min(ends) - now_ns) if ends else None

    def is_ready(self, polled: object) -> int | None:
        """The ring that is to have a turn, if `polled` is its store's."""
        ring = self._ring_of.get(polled) if isinstance(polled, int) else None
        if ring is not None and (hands := self._watched[ring].hands).later is not None:
            hands.store_is_ready()
        return ring

    def look(self, now_ns: int) -> list[int]:
        """After each sleep and each slice: the rings that are to have turns."""
        answered = []
        for ring, watched in self._watched.items():
            hands = watched.hands
            if hands.later is None:
                hands.look_at_errors()
            elif hands.store_is_ready():
                answered.append(ring)
            self._mind(watched, now_ns)
        return answered

    @staticmethod
    def _mind(watched: _Watched, now_ns: int) -> None:
        """Is the store silent?"""
        back = watched.hands.dev.back[0]
        if not back["at_store"] or int(back["answers"]) != watched.answers:
            watched.answers, watched.since_ns = int(back["answers"]), now_ns
            if watched.tell_after_ns > STALLED_NS:
                watched.on_stall(0)
                watched.tell_after_ns = STALLED_NS
        elif now_ns - watched.since_ns >= watched.tell_after_ns:
            watched.on_stall((now_ns - watched.since_ns) // 1_000_000_000)
            watched.tell_after_ns *= 2

    def _poll(self, ring: int, watched: _Watched, fd: int, events: int) -> None:
        if (fd, events) == (watched.fd, watched.events):
            return
        if watched.fd >= 0:
            self._poller.unregister(watched.fd)
            self._ring_of.pop(watched.fd, None)
        if fd >= 0:
            self._poller.register(fd, events)
            self._ring_of[fd] = ring
        watched.fd, watched.events = fd, events
