"""Loads of one machine, each with an end of its own."""

from pathlib import Path

import pytest

from toolstack.loadspec import LoadSpec
from toolstack.machine import GuestFailed, MachineError
from toolstack.topology import Topology

pytestmark = pytest.mark.system

ENDLESS = 600.0
SMALL = {"disks": ["ram:4m", "ram:4m"], "dom0_vcpus": 2}


def ios(snapshot: object, domid: int, number: int) -> int:
    return int(snapshot.frontend[domid]["ios"][number])  # type: ignore[attr-defined]


def test_loads_on_different_disks_begin_and_end_by_themselves() -> None:
    with Topology(guests=2, **SMALL).start() as machine:
        first = machine.load(LoadSpec(runtime_s=ENDLESS, vdev="xvda"), every_s=0.05)
        next(first)
        second = machine.load(LoadSpec(ios=500, vdev="xvdb"), every_s=0.05)
        for _ in second:
            pass
        done = machine.snapshot()
        for domid in (1, 2):
            assert ios(done, domid, 1) == 500
        before, after = next(first), next(first)  # which runs on
        for domid in (1, 2):
            assert ios(after, domid, 0) > ios(before, domid, 0) > ios(done, domid, 0)
        first.close()
        still = machine.snapshot()
        assert ios(machine.snapshot(), 1, 0) == ios(still, 1, 0)
        assert sum(int(still.frontend[domid]["verify_errors"].sum()) for domid in (1, 2)) == 0
    assert machine.close_failure == ""


def test_a_disk_has_one_load_and_is_not_read_meanwhile_and_others_are() -> None:
    with Topology(guests=1, **SMALL).start() as machine:
        busy, free = machine.guest(1).disks
        free.write(0, b"free" * 128)
        load = machine.load(LoadSpec(runtime_s=ENDLESS, vdev="xvda"), every_s=0.05)
        next(load)
        with pytest.raises(MachineError, match=r"xvda.* has a load, and has one at a time$"):
            next(machine.load(LoadSpec(ios=1, vdev="xvda")))
        with pytest.raises(MachineError, match=r"xvda: it has a load: a disk does one thing"):
            busy.read(0, 512)
        assert free.read(0, 512) == b"free" * 128
        before, after = next(load), next(load)
        assert ios(after, 1, 0) > ios(before, 1, 0)
        load.close()
        assert len(busy.read(0, 512)) == 512
        for _ in machine.load(LoadSpec(ios=100)):  # of both, and nothing is left of what failed
            pass
        assert machine.failures == {}
    assert machine.close_failure == ""


def test_a_load_that_only_the_guest_can_refuse_is_refused_and_it_lives(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    with Topology(guests=1, disks=[f"file:{image}"], dom0_vcpus=1).start() as machine:
        with pytest.raises(GuestFailed):
            list(machine.load(LoadSpec(offset=2 << 20, ios=1)))
        assert "guest-1" in machine.pids
        list(machine.load(LoadSpec(ios=100)))
    assert machine.close_failure == ""


def test_a_guests_death_ends_its_own_loads_and_the_others_go_on() -> None:
    with Topology(guests=2, **SMALL).start() as machine:
        of_one = machine.load(LoadSpec(runtime_s=ENDLESS, domid=1), every_s=0.05)
        of_two = machine.load(LoadSpec(runtime_s=1, domid=2), every_s=0.05)
        next(of_one)
        next(of_two)
        machine._supervisor.children["guest-1"].kill()
        with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
            for _ in of_one:
                pass
        last = list(of_two)[-1]
        assert ios(last, 2, 0) > 0
    assert machine.close_failure == ""
