"""Faults planted in the one order of phases are found, whoever drives it: the real runtime's
drivers, phase by phase, and the simulator's, with time between any two phases.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from backend import steps as back
from backend.blkback import Blkback
from backend.slots import KEPT
from backend.stores import RamStore
from common import abi
from common.effects import WAIT, WAKE
from common.faults import PeerFault
from common.steps import GRANT, NEXT, NONE, ON, OUTCOME_BITS, STEP, STEP_BITS
from frontend import steps as front
from frontend.load import LoadPlan, new_load
from simulator.config import Config
from simulator.machine import Machine
from tests.machine.batons import Batons
from tests.pair import Pair

IOS = 120
SEEDS = range(6)
DISK_SECTORS = 32 * abi.SECTORS_PER_PAGE

Then = int | tuple[int, int]
Plant = dict[tuple[int, int], Then]  # what follows a step's outcome

NO_SECOND_LOOK_BACK: Plant = {(back.ARM, ON): (back.CLEAR, WAIT)}
NO_SECOND_LOOK_FRONT: Plant = {(front.ARM, ON): (front.CLEAR, WAIT)}
ARM_AFTER_LOOK_BACK: Plant = {
    (back.WATCH, ON): back.LOOK_AGAIN,
    (back.LOOK_AGAIN, NONE): back.ARM,
    (back.ARM, ON): (back.CLEAR, WAIT),
}
ARM_AFTER_LOOK_FRONT: Plant = {
    (front.WATCH, ON): front.LOOK_AGAIN,
    (front.LOOK_AGAIN, NONE): front.ARM,
    (front.ARM, ON): (front.CLEAR, WAIT),
}
NOTIFY_BEFORE_PUBLISH_BACK: Plant = {
    (back.RESPOND, ON): back.CHECK_EVENT,
    **{(back.CHECK_EVENT, outcome): back.PUBLISH for outcome in (NONE, NEXT)},
    (back.SET_PENDING, NONE): back.PUBLISH,
    (back.READ_MASK, NONE): back.PUBLISH,
    (back.READ_MASK, ON): (back.PUBLISH, WAKE),
    (back.PUBLISH, ON): back.CLEAR,
}
NOTIFY_BEFORE_PUBLISH_FRONT: Plant = {
    (front.PUT, ON): front.CHECK_EVENT,
    **{(front.CHECK_EVENT, outcome): front.PUBLISH for outcome in (NONE, NEXT)},
    (front.SET_PENDING, NONE): front.PUBLISH,
    (front.READ_MASK, NONE): front.PUBLISH,
    (front.READ_MASK, ON): (front.PUBLISH, WAKE),
    (front.PUBLISH, ON): front.CLEAR,
}
ANSWER_BEFORE_UNMAP: Plant = {
    (back.RELEASE, GRANT): back.RESPOND,
    **{(back.CHECK_EVENT, outcome): back.EMPTY for outcome in (NONE, NEXT)},
    (back.SET_PENDING, NONE): back.EMPTY,
    (back.READ_MASK, NONE): back.EMPTY,
    (back.READ_MASK, ON): (back.EMPTY, WAKE),
    (back.UNMAPPED, ON): back.CLEAR,
}
MARK_DROPPED_EARLY: Plant = {
    (back.TAKE, ON): back.RELEASE,
    (back.PLAN, ON): back.RELEASE,
    (back.MAPPED, ON): back.RELEASE,
    (back.RELEASE, ON): back.MOVE,
    (back.MOVE, ON): back.RESPOND,
}
UNMAP_BEFORE_COPY: Plant = {
    (back.MAPPED, ON): back.RELEASE,
    (back.UNMAPPED, ON): back.MOVE,
    (back.MOVE, ON): back.RESPOND,
}
PLANTS: dict[str, tuple[str, np.ndarray, Plant]] = {
    "no second look (back)": ("persistent", back.NEXT, NO_SECOND_LOOK_BACK),
    "no second look (front)": ("persistent", front.NEXT, NO_SECOND_LOOK_FRONT),
    "arm after look (back)": ("persistent", back.NEXT, ARM_AFTER_LOOK_BACK),
    "arm after look (front)": ("persistent", front.NEXT, ARM_AFTER_LOOK_FRONT),
    "notify before publish (back)": ("persistent", back.NEXT, NOTIFY_BEFORE_PUBLISH_BACK),
    "notify before publish (front)": ("persistent", front.NEXT, NOTIFY_BEFORE_PUBLISH_FRONT),
    "answer before unmap": ("non-persistent", back.NEXT, ANSWER_BEFORE_UNMAP),
    "in-flight mark dropped early": ("persistent", back.NEXT, MARK_DROPPED_EARLY),
    "unmap before the copy": ("non-persistent", back.NEXT, UNMAP_BEFORE_COPY),
}

# Where a taken request's pages are, or may still be, used.
IN_USE = (back.PLAN, back.MOVE, back.LIST_OUT, back.COPY_OUT, back.COPIED_OUT)


def in_flight(dev: Blkback) -> None:
    """Until it is released, a kept page of a taken request is marked."""
    if dev.turn[STEP] not in IN_USE:
        return
    for slot in dev.group[: int(dev.back["gathered"][0])].tolist():
        nr_segments = int(dev.requests["nr_segments"][slot])
        for segment in dev.segments[slot, :nr_segments]:
            if segment["kind"] == KEPT:
                assert dev.nodes["in_flight"][segment["node"]], "a page in use is not in flight"


def load(seed: int) -> LoadPlan:
    """One I/O at a time, or two."""
    return LoadPlan("randrw", abi.XEN_PAGE_SIZE, 1 + seed % 2, 50, IOS, None, seed, True)


def spin(state: np.ndarray, seed: int) -> None:
    """Who spins, if only for a moment, asks for no notification before it means to sleep."""
    if seed % 3:
        state["adaptive"], state["limit_ns"] = 1, 0
        state["patience_ns"] = state["patience_max_ns"] = 1 << 40


def on_real_drivers(mode: str, seed: int) -> None:
    pair = Pair(mode, store=RamStore(DISK_SECTORS), nr_ios=2, frames_per_io=1, nr_handles=1024)
    plan = load(seed)
    versions = np.zeros(DISK_SECTORS, np.uint32)
    job = new_load(pair.arena, plan, pair.front, versions, pair.latency, 1, 0, real_time=False)
    spin(pair.spin, seed)
    Batons(pair, seed, lambda: in_flight(pair.back)).run(job)
    assert pair.front.counters["ios"][0] == IOS
    assert pair.front.counters["verify_errors"][0] == pair.front.counters["io_errors"][0] == 0
    pair.check()


def on_the_simulator(mode: str, seed: int) -> None:
    machine = Machine(Config(load(seed), mode, guests=1, disk_sectors=4 << 11, dom0_vcpus=2))
    guest, thread = machine.ends(1)
    for end in (guest, thread):
        spin(end.dev.spin, seed)
        end.between = lambda: in_flight(thread.dev)
    machine.run()
    counters = machine.finished.frontend[1]
    assert counters["ios"][0] == IOS
    assert counters["verify_errors"][0] == counters["io_errors"][0] == 0


RUNTIMES: dict[str, Callable[[str, int], None]] = {
    "real drivers": on_real_drivers,
    "simulator": on_the_simulator,
}


@pytest.fixture(name="tables")
def _tables() -> Iterator[None]:
    """Whatever is planted is taken out again."""
    kept = back.NEXT.copy(), front.NEXT.copy()
    yield
    back.NEXT[:], front.NEXT[:] = kept


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("mode", ["persistent", "non-persistent", "grant-copy"])
def test_phase_by_phase_nothing_is_lost(runtime: str, mode: str) -> None:
    for seed in SEEDS:
        RUNTIMES[runtime](mode, seed)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("fault", PLANTS)
def test_a_fault_in_the_order_is_found(runtime: str, fault: str, tables: None) -> None:
    mode, table, plant = PLANTS[fault]
    for (step, outcome), then in plant.items():
        follows, effect = then if isinstance(then, tuple) else (then, 0)
        table[step << OUTCOME_BITS | outcome] = effect << STEP_BITS | follows
    with pytest.raises((AssertionError, PeerFault)):
        for seed in SEEDS:
            RUNTIMES[runtime](mode, seed)
