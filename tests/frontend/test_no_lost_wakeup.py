"""Whatever each end does between any two phases of the other, nobody sleeps for ever."""

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
import pytest

from backend.steps import PHASES as BACK_PHASES
from common.effects import DONE, WAIT, WAKE
from common.event_channel import clear_pending
from common.spinning import new_spin
from common.steps import ARM, NONE, ON, Phase, Then, next_steps
from frontend import steps
from tests.pair import PORT, READ, Pair

FRONT_STEPS = range(len(steps.PHASES))
BACK_STEPS = range(len(BACK_PHASES))
ROUNDS_MAX = 50
NR_IOS = 2

# mode, start, does each end spin: look once more before it arms?
CASES = [
    ("persistent", (1 << 32) - 99, False),
    ("persistent", 0, True),
    ("non-persistent", 0, False),
    ("backend-without-persistent", (1 << 32) - 99, True),
    ("grant-copy", 0, False),
]


class SleepForEver(Exception):
    """Both ends, and nothing will wake them."""


class World:
    """A pair whose ends run phase by phase; each sleeps as its driver does, until its event is
    pending.
    """

    def __init__(self, mode: str, start: int, spins: bool) -> None:
        self.pair = Pair(mode, start=start, pool_pages=NR_IOS, nr_ios=NR_IOS, frames_per_io=1)
        self._spin = new_spin(adaptive=spins)
        self._spin["limit_ns"] = 0
        self._front_sleeps = self._back_sleeps = self._over = False

    def front(self) -> bool:
        """One phase of the guest; False if it sleeps, or has done everything."""
        asleep = self._front_sleeps and not clear_pending(self.pair.front_events[0], PORT)
        if self._over or asleep:
            return False
        effect = self.pair.front_until(*FRONT_STEPS)
        self._front_sleeps, self._over = effect == WAIT, effect == DONE
        return True

    def back(self) -> bool:
        """One phase of dom0; False if it sleeps."""
        if self._back_sleeps and not clear_pending(self.pair.back_events[0], PORT):
            return False
        self._back_sleeps = self.pair.back_until(*BACK_STEPS) == WAIT
        return True

    def begin(self) -> None:
        """Two blocks are to be read."""
        self.pair.spin[:] = self._spin
        self._over = False
        for io in range(NR_IOS):
            self.pair.queue(io, READ, 8 * io, 8)

    def finish(self, *ends: Callable[[], bool]) -> None:
        """By turns, each as far as it comes."""
        for _ in range(ROUNDS_MAX):
            for end in ends:
                while end():
                    pass
        if not self._over:
            raise SleepForEver
        assert sorted(self.pair.take_done()) == list(range(NR_IOS))

    def every_pair(self) -> Iterator[tuple[int, int]]:
        """So many phases of the guest, then so many of dom0: all there are before they sleep."""
        for at_front in count():
            for at_back in count():
                self.begin()
                if sum(self.front() for _ in range(at_front)) < at_front:
                    self.finish(self.front, self.back)
                    return
                slept = sum(self.back() for _ in range(at_back)) < at_back
                yield at_front, at_back
                if slept:
                    break


@pytest.mark.parametrize(("mode", "start", "spins"), CASES)
@pytest.mark.parametrize("guest_first", [False, True])
def test_each_may_act_between_any_two_phases_of_the_other(
    mode: str, start: int, spins: bool, guest_first: bool
) -> None:
    world = World(mode, start, spins)
    tried = 0
    for _ in world.every_pair():
        ends = (world.front, world.back) if guest_first else (world.back, world.front)
        world.finish(*ends)
        tried += 1
    assert tried > 250
    world.pair.check()


# --- planted in the guest's order -------------------------------------------------------------


def planted(**changes: dict[int, Then]) -> np.ndarray:
    """The table with these phases' rows changed."""
    return next_steps(
        [
            Phase(step, name, access, {**then, **changes.get(name, {})})
            for step, name, access, then in steps.PHASES
        ]
    )


PLANTED = {
    "nothing": steps.NEXT,
    "no second look": planted(ARM={ON: (steps.CLEAR, WAIT)}),
    "arm after look": planted(
        WATCH={ON: steps.LOOK_AGAIN},
        LOOK_AGAIN={NONE: steps.ARM},
        ARM={ON: (steps.CLEAR, WAIT)},
    ),
    "notify before publish": planted(
        PUT={ON: steps.CHECK_EVENT},
        CHECK_EVENT={NONE: steps.PUBLISH},
        SET_PENDING={NONE: steps.PUBLISH},
        READ_MASK={ON: (steps.PUBLISH, WAKE), NONE: steps.PUBLISH},
        PUBLISH={ON: steps.CLEAR},
    ),
    "no notification": planted(PUBLISH={ON: steps.CLEAR}),
    "never armed": planted(WATCH={ON: steps.LOOK_AGAIN}, FINISH={ARM: steps.TURN}),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_wrong_order_is_found(bug: str) -> None:
    found = 0
    for spins in (False, True):
        world = World("non-persistent", 0, spins)
        world.pair.front = world.pair.front._replace(next=PLANTED[bug])
        try:
            for _ in world.every_pair():
                world.finish(world.front, world.back)
        except SleepForEver:
            found += 1
    assert (found > 0) == (bug != "nothing")
