"""The stores of one vCPU's rings: what is polled for, and who has not answered for long.

Owns: the stores' descriptors, in an epoll of their own whose descriptor is in the thread's poller;
the times at which they want to be called; and the clock of a stalled store. A store that is silent
costs nothing: nobody spins for it.
Rule: a store may close its descriptor at any call, and the next one may have its number. The kernel
then takes it out of the epoll; before each sleep what is there is set anew.
"""

import select
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from backend.ring_hands import RingHands
from backend.store_jobs import LaterStore

STALLED_NS: Final = 5_000_000_000  # without an answer: then it is said, and after twice that again


@dataclass
class _Watched:
    """on_stall: told for how many seconds it has been silent; 0 when it is so no more."""

    hands: RingHands
    on_stall: Callable[[int], None]
    answers: int = 0  # jobs
    since_ns: int = 0  # that many have been answered
    tell_after_ns: int = STALLED_NS


class StoreWatch:
    """Those of one thread. poller: its (`common/wakeups.py`); polled: what is in it."""

    def __init__(self, poller: Any) -> None:
        self._epoll = select.epoll()
        self.polled: Final = self._epoll.fileno()
        poller.register(self.polled, select.POLLIN)
        self._watched: dict[int, _Watched] = {}
        self._polled: dict[int, tuple[int, int]] = {}  # ring and events, by descriptor

    def add(
        self, ring: int, hands: RingHands, on_stall: Callable[[int], None], now_ns: int
    ) -> None:
        """From now on the store of `ring` is watched, if it is one that answers later."""
        if hands.later is not None or hands.queue_fd >= 0:
            self._watched[ring] = _Watched(hands, on_stall, since_ns=now_ns)

    @property
    def heard_of(self) -> int:
        """What is to be looked at while the thread does not sleep; -1: no store is to say anything
        there.
        """
        hands = [watched.hands for watched in self._watched.values()]
        waits = any(its.later is not None and its.dev.back["at_store"][0] for its in hands)
        return self.polled if waits else -1

    def forget(self, ring: int) -> None:
        """The ring has ended. What its store could not do is said."""
        if (watched := self._watched.pop(ring, None)) is None:
            return
        if watched.tell_after_ns > STALLED_NS:
            watched.on_stall(0)
        watched.hands.tell_counts()
        self._set(self._without(ring))

    def close(self) -> None:
        """The thread has ended."""
        self._epoll.close()

    def timeout_ns(self, now_ns: int, rings: Collection[int]) -> int | None:
        """Before a sleep: what is to be polled is, and how long it may last.

        rings: those that have turns. The queue of one that has none would end each sleep at once.
        """
        ends, wanted = [], dict[int, tuple[int, int]]()
        for ring, watched in self._watched.items():
            hands, later = watched.hands, watched.hands.later
            if later is not None:
                wanted[later.fileno()] = ring, later.events()
                if (due_ns := later.due_ns()) is not None:
                    ends.append(due_ns)
            elif ring in rings:
                wanted[hands.queue_fd] = ring, select.EPOLLIN
                if hands.begin_sleep():
                    ends.append(now_ns)
            if hands.dev.back["at_store"][0]:
                ends.append(watched.since_ns + watched.tell_after_ns)
        wanted.pop(-1, None)
        self._set(wanted)
        return max(0, min(ends) - now_ns) if ends else None

    def _set(self, wanted: dict[int, tuple[int, int]]) -> None:
        for fd in self._polled.keys() - wanted.keys():
            with suppress(OSError):  # it is closed
                self._epoll.unregister(fd)
        for fd, (_, events) in wanted.items():
            try:
                self._epoll.modify(fd, events)
            except FileNotFoundError:
                self._epoll.register(fd, events)
        self._polled = wanted

    def _without(self, ring: int) -> dict[int, tuple[int, int]]:
        return {fd: its for fd, its in self._polled.items() if its[0] != ring}

    def look(self, now_ns: int, *, slept: bool = False) -> list[int]:
        """After each sleep, and from time to time: the rings that are to have turns."""
        ready = {self._polled[fd][0] for fd, _ in self._epoll.poll(0)} if slept else set[int]()
        for ring, watched in self._watched.items():
            hands = watched.hands
            if hands.later is None:
                if slept:
                    hands.end_sleep()
                hands.look_at_errors()
            else:
                if hands.store_is_ready():
                    ready.add(ring)
                self._poll_for(ring, hands.later)
            self._mind(watched, now_ns)
        return sorted(ready)

    def _poll_for(self, ring: int, later: LaterStore) -> None:
        """What it wants now: it may not be slept on for long."""
        its = later.fileno(), (ring, later.events())
        if its not in self._polled.items() and its[0] >= 0:
            self._set({**self._without(ring), its[0]: its[1]})

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
