"""All protocol state lies in one arena: copied and put back between any two phases, a run goes on
from there to the same end, to the byte.
"""

from collections.abc import Callable

import numpy as np
import pytest

from backend.stores import RamStore
from backend.worker import work
from common import abi, effects
from common.arena import Arena
from common.compiled import direct
from common.event_channel import clear_pending
from common.steps import ANY_STEP, STEP
from frontend.load import LoadPlan, new_load
from tests.pair import LOOKS_MAX, MODES, PORT, Pair

IOS = 40
DEPTH = 3
PHASES_MAX = 5_000  # twice what the longest takes
DISK_SECTORS = 16 * abi.SECTORS_PER_PAGE
SHIFT = 0x9E3779B97F4A7C15  # of the schedule: which end's turn it is


class ArenaStore(RamStore):
    """A ramdisk whose bytes are the arena's, too."""

    def __init__(self, arena: Arena) -> None:
        super().__init__(DISK_SECTORS)
        self.memory = arena.array(DISK_SECTORS * abi.SECTOR_SIZE, np.uint8)


class Run:
    """Both ends of a disk under a load, a phase of one of them at a time.

    state: u64: turns there were; asleep: u8, which end sleeps; both in the arena.
    """

    def __init__(self, mode: str, gather_max: int) -> None:
        arena = Arena()
        self.arena, store = arena, ArenaStore(arena)
        self.pair = pair = Pair(
            mode,
            store=store,
            gather_max=gather_max,
            cap=2,
            pool_pages=22,
            nr_ios=DEPTH,
            frames_per_io=1,
            nr_handles=64,
            arena=arena,
        )
        plan = LoadPlan("randrw", abi.XEN_PAGE_SIZE, DEPTH, 50, IOS, None, 7, True)
        versions = arena.array(DISK_SECTORS, np.uint32)
        pair.front_job = new_load(
            arena, plan, pair.front, versions, pair.latency, 1, 0, real_time=False
        )
        self.state, self.asleep = arena.array(1, np.uint64), arena.array(2, np.uint8)
        self._back = direct(work, pair.rings, 0, 0, 0)

    def step(self) -> tuple[int, int, int] | None:
        """One phase of the end whose turn it is; which, and its effect. None: the load is over."""
        turns = int(self.state[0])
        self.state[0] = turns + 1
        end = (turns * SHIFT >> 33) & 1
        if self._sleeps(end):
            end = 1 - end
            assert not self._sleeps(end), "both sleep for ever"
        pair = self.pair
        dev = (pair.front, pair.back)[end]
        place = int(dev.turn[STEP])
        if end == 0:
            effect = pair.front_run(ANY_STEP)
        else:
            effect = self._back(pair.rings, 0, LOOKS_MAX, ANY_STEP)
            pair.do(effect)
        self.asleep[end] = effect == effects.WAIT
        return None if effect == effects.DONE else (end, place, effect)

    def _sleeps(self, end: int) -> bool:
        pending = (self.pair.front_events, self.pair.back_events)[end][0]
        if self.asleep[end] and clear_pending(pending, PORT):
            self.asleep[end] = 0
        return bool(self.asleep[end])

    def to_its_end(self) -> list[tuple[int, int, int]]:
        """Every phase there still is."""
        seen = []
        while (done := self.step()) is not None:
            seen.append(done)
            assert len(seen) < PHASES_MAX, "it never ends"
        return seen


@pytest.mark.parametrize("gather_max", [1, 32])
@pytest.mark.parametrize("mode", MODES)
def test_a_run_goes_on_from_a_snapshot_at_any_phase_as_it_went_on(
    mode: str, gather_max: int
) -> None:
    machine = Run(mode, gather_max)
    arena, beginning = machine.arena, machine.arena.snapshot()
    phases = machine.to_its_end()
    end = arena.snapshot()
    assert machine.pair.front.counters["ios"][0] == IOS
    assert machine.pair.front.counters["verify_errors"][0] == 0
    assert {place for at, place, _ in phases if at == 0} and len(phases) > 10 * IOS
    arena.restore(beginning)
    for number in range(len(phases)):
        here = arena.snapshot()
        assert machine.to_its_end() == phases[number:]
        assert (arena.snapshot() == end).all(), f"not the same from phase {number} on"
        arena.restore(here)
        machine.step()
    machine.pair.check()


def _leaks(machine: Run) -> dict[str, Callable[[], None]]:
    """State that a run changes, taken out of the arena."""
    pair = machine.pair
    return {
        "the guest's half of the ring": lambda: _out(pair.front, "half", pair),
        "the shadow": lambda: _out(pair.front, "shadow", pair),
        "the tree": lambda: _out(pair.back, "nodes", pair),
        "dom0's half of the ring": lambda: _out(pair.back, "half", pair),
    }


def _out(dev: object, field: str, pair: Pair) -> None:
    copied = getattr(dev, field).copy()
    if dev is pair.front:
        pair.front = pair.front._replace(**{field: copied})
    else:
        pair.back = pair.back._replace(**{field: copied})


@pytest.mark.parametrize("what", _leaks(Run("persistent", 1)))
def test_state_outside_of_the_arena_would_be_found(what: str) -> None:
    machine = Run("persistent", 1)
    _leaks(machine)[what]()
    arena, beginning = machine.arena, machine.arena.snapshot()
    phases, end = machine.to_its_end(), arena.snapshot()
    arena.restore(beginning)
    with pytest.raises(Exception):  # noqa: B017 - whatever it is that goes wrong first
        assert machine.to_its_end() == phases
        assert (arena.snapshot() == end).all()
