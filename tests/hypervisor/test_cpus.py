"""What a flush costs, by policy: who is interrupted, who leaves the mask, who is counted."""

from typing import Any

import numpy as np
import pytest

from common import abi
from common.counters import CPU_COUNTERS
from hypervisor.cpus import ACCESSED_WORDS, FLUSH_ENTRIES_MAX, NO_FLUSH, POLICIES, Cpus
from hypervisor.maptrack import UNMAPPED
from tests.hypervisor.world import DEVICE_RW, RW, World

EVERY_POLICY = sorted(POLICIES)


class Machine:
    """`nr_cpus` CPUs, those in `dirty` in dom0's mask, those in `running` running."""

    def __init__(
        self,
        policy: str,
        *,
        dirty: tuple[int, ...] = (),
        running: tuple[int, ...] = (),
        nr_cpus: int = 4,
    ) -> None:
        self.dirty, self.running = np.zeros((2, nr_cpus), np.uint32)
        self.dirty[list(dirty)] = 1
        self.running[list(running)] = 1
        self.counters = np.zeros(nr_cpus, CPU_COUNTERS)
        self.accessed = np.zeros(64 * ACCESSED_WORDS, np.uint64)
        self.cpus = Cpus(
            nr_cpus,
            policy,
            dirty=self.dirty,
            running=self.running,
            counters=self.counters,
            accessed=self.accessed,
            holders=np.zeros(ACCESSED_WORDS, np.uint64),
        )

    def touch(self, handle: int, *cpus: int) -> None:
        """The CPUs use the mapping of `handle`."""
        for cpu in cpus:
            self.accessed[handle * ACCESSED_WORDS + (cpu >> 6)] |= np.uint64(1 << (cpu & 63))

    def flush(self, *handles: int, caller: int = 0, waited: bool = False) -> int:
        """Flush after unmapping `handles`."""
        unmapped = np.zeros(len(handles), UNMAPPED)
        unmapped["handle"], unmapped["done"] = handles, abi.GNTMAP_HOST_MAP
        return self.cpus.flush(caller, unmapped, waited)

    def in_mask(self) -> list[int]:
        """The CPUs in dom0's dirty mask."""
        return [int(cpu) for cpu in np.flatnonzero(self.dirty)]

    def column(self, name: str) -> list[int]:
        """A counter, by CPU."""
        return [int(count) for count in self.counters[name]]


def test_a_policy_that_is_none_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'lazy' is not one of mask, mask-2012, accessed, precise"):
        Machine("lazy")


# --- whom it interrupts -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_every_dirty_holder_but_the_caller_is_interrupted_once(policy: str) -> None:
    machine = Machine(policy, dirty=(0, 1, 3), running=(0, 1, 3))
    machine.touch(5, 0, 1, 3)
    assert machine.flush(5, caller=1) == 2
    assert machine.column("ipis_sent") == [0, 2, 0, 0]
    assert machine.column("ipis_received") == [1, 0, 0, 1]
    assert machine.in_mask() == [0, 1, 3]


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_a_flush_with_nobody_else_in_the_mask_is_a_flush_without_interrupts(policy: str) -> None:
    machine = Machine(policy, dirty=(2,), running=(2,))
    machine.touch(5, 2)
    assert machine.flush(5, caller=2) == 0
    assert machine.column("flushes") == [0, 0, 1, 0]
    assert machine.column("ipis_received") == [0, 0, 0, 0]


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_a_caller_out_of_the_mask_interrupts_all_that_are_in_it(policy: str) -> None:
    machine = Machine(policy, dirty=(1, 2), running=(1, 2))
    machine.touch(5, 1, 2)
    assert machine.flush(5, caller=0) == 2


@pytest.mark.parametrize(("policy", "first", "second"), [
    ("mask", 3, 3),
    ("mask-2012", 3, 1),
    ("accessed", 3, 3),
    ("precise", 3, 3),
])  # fmt: skip
def test_idle_cpus_stay_in_the_mask_but_for_2012(policy: str, first: int, second: int) -> None:
    machine = Machine(policy, dirty=(0, 1, 2, 3), running=(0, 1))
    machine.touch(5, 0, 1, 2, 3)
    machine.touch(6, 0, 1, 2, 3)
    assert [machine.flush(5), machine.flush(6)] == [first, second]


def test_in_2012_an_idle_cpu_leaves_at_its_next_interrupt_and_comes_back_when_it_runs() -> None:
    machine = Machine("mask-2012", dirty=(0, 1, 2, 3), running=(0, 1))
    counts = [machine.flush(5), machine.flush(5)]
    assert machine.in_mask() == [0, 1]
    machine.running[3] = machine.dirty[3] = 1
    counts += [machine.flush(5), machine.flush(5)]
    assert counts == [3, 1, 2, 2]
    machine.running[3] = 0
    counts = [machine.flush(5), machine.flush(5)]
    assert (counts, machine.in_mask()) == ([2, 1], [0, 1])


def test_in_2012_an_idle_caller_is_not_interrupted_and_stays_in_the_mask() -> None:
    machine = Machine("mask-2012", dirty=(0, 1), running=())
    assert machine.flush(5, caller=0) == 1
    assert machine.in_mask() == [0]


@pytest.mark.parametrize(("policy", "ipis"), [
    ("mask", 3),
    ("mask-2012", 3),
    ("accessed", NO_FLUSH),
    ("precise", NO_FLUSH),
])  # fmt: skip
def test_a_page_nobody_touched_costs_nothing_where_touching_is_known(
    policy: str, ipis: int
) -> None:
    machine = Machine(policy, dirty=(0, 1, 2, 3), running=(0, 1, 2, 3))
    machine.touch(6, 0, 1, 2, 3)  # another mapping
    assert machine.flush(5) == ipis
    flushed = int(ipis != NO_FLUSH)
    assert machine.column("flushes") == [flushed, 0, 0, 0]
    assert machine.column("flush_entries") == [flushed, 0, 0, 0]
    assert machine.column("ipis_received") == [0] + [flushed] * 3


def test_one_touched_page_in_the_batch_brings_the_accessed_flush_to_all() -> None:
    machine = Machine("accessed", dirty=(0, 1, 2, 3), running=(0, 1, 2, 3))
    machine.touch(7, 2)
    assert machine.flush(5, 6, 7) == 3
    assert machine.column("flush_entries") == [3, 0, 0, 0]


def test_precise_interrupts_those_that_touched_any_page_of_the_batch() -> None:
    machine = Machine("precise", dirty=(0, 1, 2, 3), running=(0, 1, 2, 3))
    machine.touch(5, 2)
    machine.touch(7, 3)
    machine.touch(8, 1)  # not in the batch
    assert machine.flush(5, 6, 7) == 2
    assert machine.column("ipis_received") == [0, 0, 1, 1]


def test_precise_flushes_without_an_interrupt_what_only_the_caller_touched() -> None:
    machine = Machine("precise", dirty=(0, 1), running=(0, 1))
    machine.touch(5, 0)
    assert machine.flush(5) == 0
    assert machine.column("flushes") == [1, 0, 0, 0]


def test_precise_leaves_out_a_holder_that_is_not_in_the_mask() -> None:
    machine = Machine("precise", dirty=(0, 1), running=(0, 1))
    machine.touch(5, 1, 3)
    assert machine.flush(5) == 1
    assert machine.column("ipis_received") == [0, 1, 0, 0]


@pytest.mark.parametrize("holder", [0, 63, 64, 127, 128, 255])
def test_every_one_of_256_cpus_has_an_accessed_bit(holder: int) -> None:
    machine = Machine("precise", dirty=tuple(range(256)), nr_cpus=256)
    machine.touch(5, holder)
    assert machine.flush(5, caller=1) == 1
    assert np.flatnonzero(machine.counters["ipis_received"]).tolist() == [holder]


# --- the accessed words -------------------------------------------------------------------------


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_a_flush_clears_the_accessed_words_of_what_it_unmapped_only(policy: str) -> None:
    machine = Machine(policy, dirty=(0, 1), nr_cpus=200)
    for handle in (4, 5, 6):
        machine.touch(handle, 0, 70, 130, 199)
    machine.flush(4, 6)
    assert np.flatnonzero(machine.accessed).tolist() == [20, 21, 22, 23]


def test_what_was_not_unmapped_is_neither_counted_nor_cleared() -> None:
    machine = Machine("precise", dirty=(0, 1), running=(0, 1))
    machine.touch(5, 1)
    machine.touch(6, 1)
    unmapped: Any = np.zeros(2, UNMAPPED)
    unmapped["handle"], unmapped["done"] = (5, 6), (0, abi.GNTMAP_HOST_MAP)
    assert machine.cpus.flush(0, unmapped, False) == 1
    assert machine.column("flush_entries") == [1, 0, 0, 0]
    assert np.flatnonzero(machine.accessed).tolist() == [20]


@pytest.mark.parametrize("policy", EVERY_POLICY)
def test_a_handle_used_again_starts_untouched(policy: str) -> None:
    world = World(policy=policy)
    world.dirty[:] = 1
    gref = world[1].grant(frame=3)
    mapped = world.map(gref)
    world.accessed[int(mapped["handle"]) * ACCESSED_WORDS] = 0b0110
    world.unmap(mapped)
    assert not world.accessed.any()


# --- what is counted ----------------------------------------------------------------------------


def test_a_flush_takes_at_most_32_entries() -> None:
    machine = Machine("mask", dirty=(0, 1), running=(0, 1))
    assert FLUSH_ENTRIES_MAX == 32
    assert machine.flush(*range(32)) == 1
    assert machine.column("flush_entries") == [32, 0, 0, 0]
    with pytest.raises(AssertionError):
        machine.flush(*range(33))


def test_a_lock_wait_is_counted_for_the_cpu_that_waited() -> None:
    machine = Machine("mask", dirty=(0, 1), running=(0, 1))
    machine.flush(5, caller=1, waited=True)
    machine.flush(5, caller=0)
    assert machine.column("flush_lock_waits") == [0, 1, 0, 0]


# --- through the hypercall ----------------------------------------------------------------------

POLICY_COSTS = [
    # policy, flushes and interrupts of: an untouched page, one touched by CPU 2, by the caller
    ("mask", (1, 3), (1, 3), (1, 3)),
    ("mask-2012", (1, 3), (1, 3), (1, 3)),
    ("accessed", (0, 0), (1, 3), (1, 3)),
    ("precise", (0, 0), (1, 1), (1, 0)),
]


@pytest.mark.parametrize(("policy", "untouched", "by_another", "by_caller"), POLICY_COSTS)
@pytest.mark.parametrize("flags", [RW, DEVICE_RW])
def test_an_unmap_costs_what_its_policy_says(
    policy: str,
    untouched: tuple[int, int],
    by_another: tuple[int, int],
    by_caller: tuple[int, int],
    flags: int,
) -> None:
    for touched, (flushes, ipis) in ((0, untouched), (0b100, by_another), (0b10, by_caller)):
        world = World(policy=policy)
        world.dirty[:] = world.running[:] = 1
        mapped = world.map_all([(1, world[1].grant(frame=3))], flags)
        world.accessed[int(mapped["handle"][0]) * ACCESSED_WORDS] = touched
        assert world.unmap_all(mapped, vcpu=1) == [abi.GNTST_OKAY]
        counted = world.counted(1)
        assert (counted.get("flushes", 0), counted.get("ipis", 0)) == (flushes, ipis)
        assert world.by_cpu("flushes") == [0, flushes, 0, 0]
        assert world.by_cpu("ipis_sent") == [0, ipis, 0, 0]
        assert world.hypervisor.flushes == flushes


def test_a_guests_unmap_interrupts_no_worker_cpu() -> None:
    world = World()
    world.dirty[:] = world.running[:] = 1
    mapped = world.map_all([(1, world[1].grant(frame=3, to=2))], by=2)
    world.accessed[int(mapped["handle"][0]) * ACCESSED_WORDS] = 0b1111  # dom0's, of that handle
    world.unmap_all(mapped, by=2)
    assert world.counted(1) == {
        "hypercalls": 2,
        "map_ops": 1,
        "unmap_ops": 1,
        "flushes": 1,
        "flush_entries": 1,
    }
    assert world.by_cpu("ipis_received") == [0, 0, 0, 0]
    assert world.accessed[int(mapped["handle"][0]) * ACCESSED_WORDS] == 0b1111
