"""Guests with several disks, in virtual time."""

from dataclasses import replace
from typing import Any

import pytest

from frontend.load import LoadPlan
from simulator.config import MODES, Config, DiskPlan
from simulator.machine import Machine
from tests.simulator.points import plan


def disk(rw: str = "randrw", seed: int = 1, **options: Any) -> DiskPlan:
    load = LoadPlan(rw, 4096, 8, 70, 200, None, seed, True)
    return DiskPlan(load, 4 << 11, **options)


def of_disks(*disks: DiskPlan, **settings: Any) -> Machine:
    """Two guests, with these each."""
    return Machine(Config(plan(), disks=(disks, disks), guests=2, **settings)).run()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("gather_max", [1, 32])
def test_each_disk_of_a_guest_counts_its_own(mode: str, gather_max: int) -> None:
    machine = of_disks(disk(), disk("randread", 2), disk("randwrite", 3), mode=mode)
    alone = of_disks(disk("randwrite", 3), mode=mode, gather_max=gather_max)
    for domid in (1, 2):
        counts = machine.finished.frontend[domid]
        assert counts["ios"].tolist() == [200, 200, 200]
        assert not counts["verify_errors"].any() and not counts["io_errors"].any()
        assert counts["bytes_written"][1] == counts["bytes_read"][2] == 0
        assert counts["bytes_written"][2] == alone.finished.frontend[domid]["bytes_written"][0]
        assert machine.finished.backend[domid]["requests"].tolist() == [200, 200, 200]
        assert machine.finished.latency[domid].sum(axis=(1, 2)).tolist() == [200, 200, 200]
        assert machine.closed.hypervisor[domid]["grants_mapped"][0] == 0


def test_several_disks_are_the_same_to_the_byte_with_the_same_seed() -> None:
    def words(machine: Machine) -> list[bytes]:
        last = machine.closed
        blocks = (last.frontend, last.backend, last.hypervisor, last.latency)
        return [block[domid].tobytes() for block in blocks for domid in machine.domids]

    first, second = (of_disks(disk(), disk("randread", 2), mode="non-persistent") for _ in "ab")
    assert words(first) == words(second) and first.finished.now_ns == second.finished.now_ns


def test_a_disk_that_nothing_runs_on_is_connected_and_left_alone() -> None:
    machine = of_disks(disk(), DiskPlan(None, 4 << 11), mode="persistent")
    for domid in (1, 2):
        assert machine.finished.frontend[domid]["ios"].tolist() == [200, 0]


def test_a_store_that_two_have_is_one_and_who_may_not_write_does_not() -> None:
    writer, reader = disk("randwrite", name="shared"), disk("randread", name="shared")
    reader = replace(reader, read_only=True, load=replace(reader.load, verify=False))
    machine = Machine(Config(plan(), disks=((writer,), (reader,)), guests=2)).run()
    stores = [each.store for each in machine.disks]
    assert stores[0] is stores[1]
    assert machine.finished.frontend[2]["bytes_read"][0] == 200 * 4096
    refused = replace(writer, read_only=True)
    machine = Machine(Config(plan(), disks=((writer,), (refused,)), guests=2)).run()
    assert machine.finished.frontend[2]["io_errors"][0] == 200
