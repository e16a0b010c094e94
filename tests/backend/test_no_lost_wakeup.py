"""In no order of the two ends' phases does the worker sleep while a request is there for it.

Every state is visited that the worker's phases and those of a guest's push can reach in whatever
order: from each, either end takes its next phase. The page is kept, so that no hypercall is made.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pytest

from backend.steps import ARM, CLEAR, LOOK, LOOK_AGAIN, NEXT, WATCH
from backend.worker import work
from common import effects
from common.event_channel import clear_pending
from common.steps import ANY_STEP, NONE, ON, OUTCOME_BITS, STEP, STEP_BITS
from frontend import steps as front_steps
from tests.pair import LOOKS_MAX, PORT, READ, Pair

PUSHING: Final = (
    front_steps.PUBLISH, front_steps.CHECK_EVENT, front_steps.SET_PENDING, front_steps.READ_MASK
)  # fmt: skip
State = tuple[bytes, ...]


def arrays_of(state: Any) -> Iterator[np.ndarray]:
    """All that an end knows, and the ring and event words that it shares."""
    for name, part in zip(state._fields, state, strict=True):
        if isinstance(part, tuple):
            yield from arrays_of(part)
        elif name not in ("next", "accessed"):
            yield part


class Orders:
    """What comes of a worker and a guest that pushes one request, in every order of their phases.

    states: how many there were; slept: those in which both ends were at rest; lost: of these, those
    in which fewer than `requests` had been served.
    """

    def __init__(self, pair: Pair, requests: int) -> None:
        self.pair, self.asleep = pair, False
        self.states = self.slept = self.lost = 0
        parts = {
            part.ctypes.data: part for end in (pair.back, pair.front) for part in arrays_of(end)
        }
        self._parts = [part.reshape(-1).view(np.uint8) for part in parts.values() if part.size]
        calls = len(pair.hypercalls)
        self._visit_all(requests)
        assert len(pair.hypercalls) == calls

    def _visit_all(self, requests: int) -> None:
        ahead = [self._state()]
        seen = set(ahead)
        while ahead:
            state = ahead.pop()
            self.states += 1
            moves = [
                after for move in (self._back, self._front) if (after := self._after(state, move))
            ]
            ahead += [after for after in moves if after not in seen]
            seen.update(moves)
            if not moves:
                self._go_to(state)
                self.slept += 1
                self.lost += self.pair.counts()["back_requests"] < requests

    def _state(self) -> State:
        return (bytes([self.asleep]), *(part.tobytes() for part in self._parts))

    def _go_to(self, state: State) -> None:
        self.asleep = state[0] != b"\0"
        for part, there in zip(self._parts, state[1:], strict=True):
            part[:] = np.frombuffer(there, np.uint8)

    def _after(self, state: State, move: Callable[[], bool]) -> State | None:
        self._go_to(state)
        return self._state() if move() else None

    def _back(self) -> bool:
        """The worker's next phase; False while it sleeps."""
        if self.asleep:
            return False
        if work(self.pair.rings, 0, LOOKS_MAX, ANY_STEP) == effects.WAIT:
            self._fall_asleep()
        return True

    def _fall_asleep(self) -> None:
        self.asleep = not clear_pending(self.pair.back_events[0], PORT)

    def _front(self) -> bool:
        """The push's next phase; False when it is over."""
        front = self.pair.front
        if front.turn[STEP] not in PUSHING:
            return False
        if self.pair.front_run(ANY_STEP) == effects.WAKE and self.asleep:
            self._fall_asleep()  # again, if the event has been taken meanwhile
        return True


def pushing(start: int, spins: bool, busy: bool) -> tuple[Pair, int]:
    """A guest about to push, a worker with nothing to do or one request, and all there will be."""
    pair = Pair(start=start, cap=1, nr_ios=2, frames_per_io=1, pool_pages=2)
    for io in (0, 1):
        pair.queue(io, READ, 0, 8)
    assert pair.run() == [0, 1]  # two pages are granted, one of them is kept
    pair.spin["adaptive"], pair.spin["limit_ns"] = spins, 0
    for io in range(1 + busy):
        pair.queue(io, READ, 0, 8)
        assert pair.front_until(front_steps.PUBLISH) == effects.STOP
        if io < busy:
            assert pair.front_until(front_steps.CLEAR, front_steps.LOOK) == effects.WAKE
            assert clear_pending(pair.back_events[0], PORT)  # it has just woken up
    return pair, 2 + 1 + busy


@pytest.mark.parametrize("start", [0, (1 << 32) - 3])
@pytest.mark.parametrize("spins", [False, True])
@pytest.mark.parametrize("busy", [False, True])
def test_whenever_a_request_comes_the_worker_is_notified_or_does_not_sleep(
    start: int, spins: bool, busy: bool
) -> None:
    orders = Orders(*pushing(start, spins, busy))
    assert orders.states > len(PUSHING) * 8
    assert orders.slept > 0
    assert orders.lost == 0


def planted(*rows: tuple[int, int, int, int]) -> np.ndarray:
    """The table with other entries: (step, outcome, next step, effect before it)."""
    table = NEXT.copy()
    for step, outcome, then, effect in rows:
        table[step << OUTCOME_BITS | outcome] = effect << STEP_BITS | then
    return table


# Who does not spin has asked for its next notification while it took the last request.
WRONG: Final = {
    "no second look": (True, planted((ARM, ON, CLEAR, effects.WAIT))),
    "arm after look": (
        True,
        planted(
            (WATCH, ON, LOOK_AGAIN, 0), (LOOK_AGAIN, NONE, ARM, 0), (ARM, ON, CLEAR, effects.WAIT)
        ),
    ),
    "event taken after the second look": (
        False,
        planted(
            (LOOK_AGAIN, NONE, CLEAR, 0), (LOOK_AGAIN, ON, LOOK, 0), (CLEAR, ON, LOOK, effects.WAIT)
        ),
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_order_is_found(wrong: str) -> None:
    spins, table = WRONG[wrong]
    pair, requests = pushing(0, spins, True)
    pair.back = pair.back._replace(next=table)
    assert Orders(pair, requests).lost > 0
