"""The table of the guest's phases: all of it is used, and nothing that is not in it."""

from typing import Final

import numpy as np
import pytest

from common import effects
from common.abi import GRANT_ENTRY_V1, GTF_READING
from common.arena import Arena
from common.clock import monotonic_ns
from common.compiled import kernel
from common.effects import NO_EFFECT
from common.event_channel import clear_pending
from common.spinning import new_spin
from common.steps import (
    NO_STEP,
    OUTCOME_BITS,
    OUTCOMES,
    STEP,
    STEP_BITS,
    drawn,
)
from frontend import steps
from frontend.blkfront_info import Blkfront
from frontend.load import LoadPlan, new_load
from frontend.stepper import USUAL, _advance
from frontend.steps import PHASES
from tests.frontend.whole import check_whole
from tests.pair import MODES, OKAY, PORT, READ, WRITE, Pair

NR_IOS: Final = 8
ENTRIES = {(phase.step, outcome) for phase in PHASES for outcome in phase.next}
BETWEEN = (steps.TURN, steps.CLEAR, steps.LOOK)  # where a driver may queue, or take what is done


def goes_to(step: int, outcome: int) -> tuple[int, int]:
    """The step and the effect that the table has."""
    then = PHASES[step].next[outcome]
    return then if isinstance(then, tuple) else (then, NO_EFFECT)


class Spied(Pair):
    """A pair that sees what each phase of the guest comes out as: its loop's own table says nothing
    else, and the real one is followed here.
    """

    def __init__(self, mode: str, **options: int) -> None:
        super().__init__(mode, **options)  # type: ignore[arg-type]
        outcomes = np.tile(np.arange(len(OUTCOMES)), len(PHASES))
        spy = (outcomes + 1) << STEP_BITS | np.repeat(np.arange(len(PHASES)), len(OUTCOMES))
        self.front = self.front._replace(next=spy.astype(np.uint16))
        self.seen: set[tuple[int, int]] = set()

    def phase(self, looks: int = 1) -> int:
        """One phase of the guest; the effect that the table has for how it came out."""
        step = int(self.front.turn[STEP])
        outcome = self.front_run(0, looks) - 1
        self.seen.add((step, outcome))
        self.front.turn[STEP], effect = goes_to(step, outcome)
        return effect

    def until(self, *stops: int, looks: int = 1) -> int:
        """Phases until there is an effect, or one of `stops` is next; the effect."""
        while True:
            effect = self.phase(looks)
            if effect != NO_EFFECT or self.front.turn[STEP] in stops:
                return effect


def test_every_step_is_reached_and_leads_on() -> None:
    reached, found = {steps.CLEAR}, [steps.CLEAR]
    while found:
        step = found.pop()
        nexts = {goes_to(step, outcome)[0] for outcome in PHASES[step].next} - reached
        reached |= nexts
        found += nexts
    assert reached == set(range(len(PHASES)))


def test_the_table_is_what_the_loop_looks_up() -> None:
    for step in range(len(PHASES)):
        for outcome in range(len(OUTCOMES)):
            entry = int(steps.NEXT[step << OUTCOME_BITS | outcome])
            if (step, outcome) in ENTRIES:
                to, effect = goes_to(step, outcome)
                assert entry == effect << STEP_BITS | to
            else:
                assert entry == NO_STEP


@kernel
def advance(front: Blkfront, step: int) -> int:
    return _advance(front, step)  # type: ignore[no-any-return]


def test_a_step_is_the_loops_or_the_steppers() -> None:
    pair = Pair()
    for step in range(len(PHASES)):
        if USUAL >> step & 1:
            with pytest.raises(AssertionError, match="no such step"):
                advance(pair.front, step)
    with pytest.raises(AssertionError, match="no such step"):
        advance(pair.front, NO_STEP)


@pytest.mark.parametrize("stops", [(), range(len(PHASES))])
@pytest.mark.parametrize("phase", PHASES[:1] + PHASES[2:5] + PHASES[9:11] + PHASES[13:18])
def test_what_comes_out_as_nothing_in_the_table_is_our_bug(
    phase: steps.Phase, stops: range | tuple[()]
) -> None:
    pair = Pair("non-persistent")
    table = steps.NEXT.copy()
    table[phase.step << OUTCOME_BITS : (phase.step + 1) << OUTCOME_BITS] = NO_STEP
    pair.front = pair.front._replace(next=table)
    pair.queue(0, READ, 0, 8)
    with pytest.raises(AssertionError, match="no such step"):
        for _ in range(100):
            pair.front_until(*stops)
            pair.serve()


def any_history(mode: str, seed: int, spins: bool) -> set[tuple[int, int]]:
    """Both ends by turns of any length, I/Os of any size, a backend that masks its events."""
    rng = np.random.default_rng([seed, spins])
    pool = (3, 12)[seed]  # too few for most; enough for any request
    pair = Spied(mode, cap=int(rng.choice([2, 352])), pool_pages=pool, nr_ios=NR_IOS,
                 frames_per_io=25, gather_max=int(rng.choice([1, 32])))  # fmt: skip
    spin = new_spin(adaptive=spins)
    spin["limit_ns"] = 0
    idle, asleep, done = set(range(NR_IOS)), False, 0
    for _ in range(400):
        pair.spin[:] = spin
        if idle and pair.front.turn[STEP] in BETWEEN and rng.random() < 0.1:
            nr_sectors = int(rng.choice([1, 8, 9, 40, 88, 200]))
            pair.queue(idle.pop(), (READ, WRITE)[rng.integers(2)], 0, nr_sectors)
        if rng.random() < 0.02:
            pair.back_events[1][:] = np.uint64(rng.integers(2)) * np.uint64(2**64 - 1)
        for _ in range(rng.integers(20)):
            if asleep and not clear_pending(pair.front_events[0], PORT):
                break
            effect = pair.phase(int(rng.choice([0, 1], p=[0.1, 0.9])))
            assert effect != effects.BROKEN
            asleep = effect == effects.WAIT
            if effect == effects.DONE:
                break
        check_whole(pair.front)
        if pair.front.turn[STEP] in BETWEEN:
            finished = pair.take_done()
            done += len(finished)
            idle |= set(finished)
            asleep = asleep and not pair.front.front["queued"][0]
        for _ in range(rng.integers(40)):
            pair.back_step()
    assert done > 10
    return pair.seen


def a_swap_that_fails() -> set[tuple[int, int]]:
    """The hypervisor maps a page between the look at its grant and the swap."""
    pair = Spied("persistent", cap=0)
    pair.queue(0, READ, 0, 8)
    assert pair.until() == effects.WAKE
    pair.answer_raw((0, READ, OKAY))
    pair.until(steps.END_SWAP)
    pair.grant_frames.view(GRANT_ENTRY_V1)["flags"][8] |= GTF_READING
    assert pair.until(looks=9) == effects.DONE
    assert pair.take_done() == [0]
    return pair.seen


def a_time_that_has_not_come() -> set[tuple[int, int]]:
    """A load that begins later."""
    pair = Spied("persistent")
    plan = LoadPlan("read", 4096, 1, 100, 1, None, 1, True, startdelay_s=60.0)
    versions = np.zeros(pair.store.nr_sectors, np.uint32)
    given = pair.front, versions, pair.latency, 1, monotonic_ns(np.zeros(2, np.int64))
    pair.front_job = new_load(Arena(), plan, *given)
    assert pair.until() == effects.WAIT
    assert pair.front_job.load["due_ns"][0] > 0
    return pair.seen


def lies() -> set[tuple[int, int]]:
    """An answer to nothing; one that is not to what was asked; a page kept mapped."""
    seen = set()
    for mode, answer, flags in (
        ("persistent", (9, READ, OKAY), 0),
        ("persistent", (0, WRITE, OKAY), 0),
        ("non-persistent", (0, READ, OKAY), GTF_READING),
    ):
        pair = Spied(mode)
        pair.queue(0, READ, 0, 8)
        assert pair.until() == effects.WAKE
        pair.grant_frames.view(GRANT_ENTRY_V1)["flags"][8] |= flags
        pair.answer_raw(answer)
        assert [pair.until() for _ in range(3)] == [effects.BROKEN] * 3
        seen |= pair.seen
    return seen


def test_every_entry_of_the_table_comes_about_and_nothing_else() -> None:
    """`Spied.phase` looks each outcome up: one that is not in the table is a KeyError."""
    seen = a_swap_that_fails() | lies() | a_time_that_has_not_come()
    for mode in MODES:
        for seed in range(2):
            for spins in (False, True):
                seen |= any_history(mode, seed, spins)
    missing = ENTRIES - seen
    assert not missing, [(PHASES[step].name, OUTCOMES[outcome]) for step, outcome in missing]
    assert seen == ENTRIES


def test_it_is_drawn_row_by_row() -> None:
    lines = drawn(PHASES).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == [f"| {phase.name}" for phase in PHASES]
