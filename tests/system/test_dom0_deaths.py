"""dom0 dies under load and is started again: its guests wait and go on, and nothing is lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.abi import GRANT_ENTRY_V1
from common.wakeups import Events
from common.xenbus import backend_path, frontend_path
from machine.plug import XVDA
from tests.backend.nbd_servers import served, uri_of
from tests.common.carriers import CARRIERS
from tests.patience import eventually
from tests.system.test_deaths import Running
from toolstack.child import readable
from toolstack.loadspec import LoadSpec
from toolstack.machine import GuestFailed, Machine, MachineError
from toolstack.settings import MODES
from toolstack.snapshot import Snapshot
from toolstack.topology import Topology

pytestmark = pytest.mark.system

DEATHS = 20
XVDB = XVDA + 16


def started(**settings: Any) -> Machine:
    machine = Topology(
        **{"guests": 1, "dom0_vcpus": 2, "on_crash": "restart", "disks": ("ram:4m",), **settings}
    ).start()
    assert isinstance(machine, Machine)
    return machine


def kill_dom0(machine: Machine) -> float:
    """When it was killed; it is dead on return."""
    process, at = os.pidfd_open(machine.pids["dom0"]), time.monotonic()
    signal.pidfd_send_signal(process, signal.SIGKILL)
    assert readable(process, 30)
    os.close(process)
    return at


def done(snapshot: Snapshot) -> np.ndarray:
    """I/Os of every disk."""
    return np.concatenate([counters["ios"] for counters in snapshot.frontend.values()])


def recoveries(machine: Machine, running: Iterator[Snapshot], deaths: int) -> list[float]:
    """Kill dom0 again and again under a load; how long it took until every disk did I/O again."""
    took = []
    for _ in range(deaths):
        time.sleep(0.05)
        killed_at = kill_dom0(machine)
        next(running)
        dead = done(next(running))
        while not (done(next(running)) > dead).all():
            assert time.monotonic() - killed_at < 30
        took.append(time.monotonic() - killed_at)
    return took


def no_harm(machine: Machine) -> None:
    """No I/O failed, and each read found what was written."""
    for counters in machine.snapshot().frontend.values():
        assert not counters["io_errors"].any() and not counters["verify_errors"].any()
    assert machine.failures == {}


# --- restart --------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", CARRIERS)
def test_it_may_die_twenty_times_under_a_verified_load(
    events: Events, record_property: Callable[[str, object], None]
) -> None:
    with started(guests=4, disks=("ram:8m", "ram:8m"), events=events) as machine:
        load = LoadSpec(rw="randrw", iodepth=16, runtime_s=120)
        running = machine.load(load, every_s=0.005)
        next(running)
        took = recoveries(machine, running, DEATHS)
        running.close()
        no_harm(machine)
        record_property("recoveries", [round(each, 3) for each in took])
    assert machine.close_failure == ""
    assert machine.closed is not None
    for counters in machine.closed.hypervisor.values():
        assert counters["grants_mapped"][0] == 0


@pytest.mark.parametrize("mode", MODES)
def test_every_io_is_accounted_for_once(mode: str) -> None:
    """Exactly so many as were asked for, in every mode."""
    with started(guests=2, disks=("ram:4m", "ram:4m"), **MODES[mode]) as machine:
        running = machine.load(LoadSpec(rw="randrw", bs="12k", ios=40_000), every_s=0.02)
        for at, _ in enumerate(running):
            if at in (3, 10, 17):
                kill_dom0(machine)
        assert done(machine.snapshot()).tolist() == [40_000] * 4
        no_harm(machine)


def test_an_idle_machine_has_another_when_it_needs_one() -> None:
    with started(disks=("ram:4m", "ram:4m")) as machine:
        disk = machine.guest(1).disks[1]
        disk.write(0, b"kept" * 1024)
        for nth in range(5):
            kill_dom0(machine)
            assert disk.read(0, 4096) == b"kept" * 1024
            disk.write(4096 * (1 + nth), bytes([nth]) * 4096)
        assert disk.read(4096 * 5, 4096) == bytes([4]) * 4096
        kill_dom0(machine)
    assert machine.close_failure == "" and machine.closed is not None


def test_a_dom0_that_is_killed_while_it_is_started_is_started_again() -> None:
    with started() as machine:
        running = machine.load(LoadSpec(runtime_s=3), every_s=0.01)
        next(running)
        start, deaths = machine._builder.start_dom0, [2]

        def start_and_kill() -> None:
            start()
            if deaths[0]:
                deaths[0] -= 1
                os.kill(machine.pids["dom0"], signal.SIGKILL)

        machine._builder.start_dom0 = start_and_kill  # type: ignore[method-assign]
        kill_dom0(machine)
        for _ in running:
            pass
        no_harm(machine)
        assert deaths == [0]


def test_the_hypervisors_death_ends_the_machine_all_the_same() -> None:
    with started(guests=2) as machine:
        running = machine.load(LoadSpec(runtime_s=60), every_s=0.05)
        next(running)
        os.kill(machine.pids["hypervisor"], signal.SIGKILL)
        with pytest.raises(MachineError, match=r"^the hypervisor|^hypervisor was killed"):
            for _ in running:
                pass


def test_a_guest_that_dies_with_it_is_missed_alone() -> None:
    with started(guests=2) as machine:
        running = machine.load(LoadSpec(runtime_s=3), every_s=0.02)
        next(running)
        os.kill(machine.pids["guest-1"], signal.SIGKILL)
        kill_dom0(machine)
        with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
            for _ in running:
                pass
        machine.guest(2).disk.write(0, bytes(4096))
        eventually(lambda: not machine.snapshot().hypervisor[1]["grants_mapped"][0])


def test_files_and_servers_are_opened_again(tmp_path: Path, run_base: str) -> None:
    image, other, path = tmp_path / "image", tmp_path / "other", Path(run_base) / "nbd"
    for each in (image, other):
        each.write_bytes(bytes(4 << 20))
    # Not nbdkit: that was seen to abort (SIGABRT) when its client was killed.
    with served(["qemu-nbd", "-k", str(path), "-t", "-f", "raw", str(other)], path) as server:
        disks = (f"file:{image},cache=writeback", uri_of(path))
        with started(disks=disks) as machine:
            running = machine.load(LoadSpec(rw="randrw", runtime_s=60, fsync=8), every_s=0.02)
            next(running)
            try:
                recoveries(machine, running, 4)
            finally:
                assert server.died() is None, "not dom0's fault: the server's"
            running.close()
            no_harm(machine)
    path.unlink()


@pytest.mark.parametrize("seed", range(3))
def test_what_was_flushed_to_a_volatile_store_is_there(tmp_path: Path, seed: int) -> None:
    disks = (f"volatile:ram:8m,seed={seed}",) * 2
    with started(disks=disks, verify_state=str(tmp_path)) as machine:
        running = machine.load(
            LoadSpec(rw="randwrite", runtime_s=60, fsync=8, seed=seed + 1), every_s=0.01
        )
        next(running)
        recoveries(machine, running, 4)
        kill_dom0(machine)
        next(running)
        running.close()
        for verdict in machine.judge():
            assert verdict.outside == 0 < verdict.checked, verdict.lines()
        assert not machine.snapshot().frontend[1]["io_errors"].any()


def test_a_disk_that_comes_back_smaller_is_closed_by_name(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4 << 20))
    with started(disks=("ram:4m", f"file:{image},cache=writeback")) as machine:
        running = machine.load(LoadSpec(runtime_s=2), every_s=0.02)
        next(running)
        kill_dom0(machine)
        os.truncate(image, 2 << 20)  # before another is started: the dead one writes no more
        with pytest.raises(GuestFailed, match=r"xvdb.* has 4096 sectors now, and had 8192"):
            for _ in running:
                pass
        machine.guest(1).disk.write(0, bytes(512))


# --- the other policies ---------------------------------------------------------------------------


def test_a_machine_that_is_preserved_can_be_looked_at() -> None:
    with started(on_crash="preserve") as machine:
        running = machine.load(LoadSpec(runtime_s=60), every_s=0.05)
        next(running)
        kill_dom0(machine)
        for _ in range(2):
            with pytest.raises(MachineError, match=r"^dom0 was killed by SIGKILL$"):
                for _ in running:
                    pass
                machine.guest(1).disk.read(0, 512)
        view = machine.look(1)
        assert view.tree is None and view.ring is not None
        assert view.grants.grants and view.maptrack.mappings
        with pytest.raises(MachineError, match=r"^dom0 was killed by SIGKILL$"):
            next(machine.load(LoadSpec(runtime_s=1)))
    assert machine.close_failure == "dom0 was killed by SIGKILL"


def test_a_run_goes_on_from_the_command_line(run_base: str) -> None:
    running = Running(run_base, "--on-crash", "restart", "--runtime", "4", "--quiet")
    (dom0,) = (process for process in running.ours() if process.name() == "gl-dom0")
    dom0.kill()
    out, err = running.process.communicate(timeout=60)
    assert running.process.returncode == 0
    assert err.endswith("grantlab: dom0 was killed by SIGKILL, and is started again\n")
    assert "IOPS" in out


# --- suspend and resume ---------------------------------------------------------------------------


@pytest.mark.parametrize("events", CARRIERS)
def test_a_guest_is_suspended_and_resumed_under_load(events: Events) -> None:
    with started(guests=2, disks=("ram:4m", "ram:4m"), events=events) as machine:
        running = machine.load(LoadSpec(rw="randrw", iodepth=8, runtime_s=60), every_s=0.02)
        next(running)
        for _ in range(4):
            machine.guest(1).suspend()
            before = done(next(running))
            flags = machine._memory.segment("ram", 1)  # its memory is there
            assert flags is not None and nothing_granted(machine, 1)
            after = done(next(running))
            assert (after[:2] == before[:2]).all() and (after[2:] > before[2:]).all()
            machine.guest(1).resume()
            while not (done(next(running)) > after).all():
                pass
        running.close()
        no_harm(machine)


def nothing_granted(machine: Machine, domid: int) -> bool:
    """By the hypervisor."""
    nr_entries, grefs, entries = machine.ask("hypervisor", "grants", domid, 0)
    assert nr_entries and len(entries) % GRANT_ENTRY_V1.itemsize == 0
    return len(grefs) == 0 and not machine.snapshot().hypervisor[domid]["grants_mapped"][0]


def test_dom0_may_die_while_a_guest_is_suspended() -> None:
    with started() as machine:
        machine.guest(1).disk.write(0, b"kept" * 128)
        machine.guest(1).suspend()
        kill_dom0(machine)
        machine._supervisor.check()
        machine.guest(1).resume()
        assert machine.guest(1).disk.read(0, 512) == b"kept" * 128
        for path in (frontend_path(1, XVDA), backend_path(1, XVDA)):
            assert machine._store.read(f"{path}/state") == b"4"
