"""Whatever dies, and however: one clear line, and nothing left (see the conftest's fixture)."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from common.wakeups import Events
from common.xenbus import backend_path
from common.xenstore import XenStoreClient
from machine.plug import XVDA
from tests.common.carriers import CARRIERS
from tests.patience import eventually
from tests.system.conftest import OUR_NAMES
from toolstack.loadspec import LoadSpec
from toolstack.machine import GuestFailed, Machine, MachineError
from toolstack.topology import Topology

pytestmark = pytest.mark.system

ENDLESS = LoadSpec(runtime_s=600)
SMALL = {"disk_mib": 4, "dom0_vcpus": 2}
NEEDED = {
    "hypervisor": "hypervisor",
    "xenstored": "xenstored",
    "dom0": "dom0",
    "fork server": "the fork server",
}


# --- what the machine cannot be without -----------------------------------------------------------


@pytest.mark.parametrize("victim", NEEDED)
def test_what_the_machine_needs_ends_it_and_is_named_in_one_line(victim: str) -> None:
    with Topology(guests=2, **SMALL).start() as machine:
        load = machine.load(ENDLESS, every_s=0.1)
        next(load)
        pids = machine._supervisor.machine_pids()
        os.kill(machine.pids[victim], signal.SIGKILL)
        with pytest.raises(MachineError) as caught:
            for _ in load:
                pass
        assert str(caught.value) == f"{NEEDED[victim]} was killed by SIGKILL"
        assert not isinstance(caught.value, GuestFailed)
    assert machine.closed is None
    assert machine.close_failure == f"{NEEDED[victim]} was killed by SIGKILL"
    eventually(lambda: not any(_runs(pid) for pid in pids))


@pytest.mark.parametrize("victim", NEEDED)
def test_a_death_in_an_idle_machine_is_named_by_whatever_comes_next(victim: str) -> None:
    with Topology(guests=1, **SMALL).start() as machine:
        os.kill(machine.pids[victim], signal.SIGKILL)
        with pytest.raises(MachineError, match=f"^{NEEDED[victim]} was killed by SIGKILL$"):
            for _ in range(200):  # the guest may answer once more
                machine.guest(1).disk.read(0, 512)
                time.sleep(0.01)


# --- a guest --------------------------------------------------------------------------------------


def nothing_left_of(machine: Machine, domid: int) -> bool:
    """Neither in the store nor of its memory."""
    with XenStoreClient(machine.xenstore_path) as store:
        there = store.exists(f"/local/domain/{domid}") or store.exists(backend_path(domid, XVDA))
    return not there and not machine.snapshot().hypervisor[domid]["grants_mapped"][0]


def ios(machine: Machine, domid: int) -> int:
    return int(machine.snapshot().frontend[domid]["ios"][0])


@pytest.mark.parametrize("events", CARRIERS)
@pytest.mark.parametrize(
    ("how", "named"),
    [(signal.SIGKILL, "SIGKILL"), (signal.SIGSEGV, "SIGSEGV"), (37, "signal 37")],
)
def test_a_guests_death_ends_that_guest_alone(events: Events, how: int, named: str) -> None:
    with Topology(guests=3, events=events, **SMALL).start() as machine:
        load = machine.load(LoadSpec(runtime_s=3), every_s=0.1)
        next(load)
        os.kill(machine.pids["guest-2"], how)
        assert "guest-2" in machine.pids or machine.failures
        seen, gone_at = [], None
        with pytest.raises(GuestFailed, match=f"^guest-2 was killed by {named}$"):
            for snapshot in load:
                seen.append([int(snapshot.frontend[domid]["ios"][0]) for domid in (1, 2, 3)])
                if gone_at is None and nothing_left_of(machine, 2):
                    gone_at = len(seen)
        assert gone_at is not None  # while the others' load went on
        first, last = seen[gone_at - 1], seen[-1]
        assert last[0] > first[0] and last[2] > first[2] and last[1] == first[1]
        assert machine.failures == {"guest-2": f"guest-2 was killed by {named}"}
        assert "guest-2" not in machine.pids

        # The others are as they were.
        for domid in (1, 3):
            machine.guest(domid).disk.write(0, bytes([domid]) * 4096)
            assert machine.guest(domid).disk.read(0, 4096) == bytes([domid]) * 4096
        before = [ios(machine, domid) for domid in (1, 2, 3)]
        for _ in machine.load(LoadSpec(ios=100)):
            pass
        after = [ios(machine, domid) for domid in (1, 2, 3)]
        assert [b - a for a, b in zip(before, after, strict=True)] == [100, 0, 100]
        with pytest.raises(GuestFailed, match=f"^guest-2 was killed by {named}$"):
            machine.guest(2).disk.read(0, 512)
    assert machine.closed is not None and machine.close_failure == ""
    for domid in (1, 2, 3):
        assert machine.closed.hypervisor[domid]["grants_mapped"][0] == 0


def test_a_guest_that_dies_idle_is_left_out_from_then_on() -> None:
    with Topology(guests=2, **SMALL).start() as machine:
        os.kill(machine.pids["guest-1"], signal.SIGKILL)
        with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
            for _ in range(100):
                machine.guest(1).disk.read(0, 512)
                time.sleep(0.01)
        for _ in machine.load(LoadSpec(ios=100)):
            pass
        assert ios(machine, 2) == 100
        eventually(lambda: nothing_left_of(machine, 1))
    assert machine.failures == {"guest-1": "guest-1 was killed by SIGKILL"}
    assert machine.closed is not None


def test_a_machine_closes_well_though_a_guest_died_unseen() -> None:
    with Topology(guests=2, **SMALL).start() as machine:
        pid = machine.pids["guest-1"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not _runs(pid))
    assert machine.closed is not None and machine.close_failure == ""
    assert machine.failures == {"guest-1": "guest-1 was killed by SIGKILL"}


def test_a_run_whose_guest_dies_shows_the_others_figures_and_ends_with_1(run_base: str) -> None:
    running = Running(run_base, "--runtime", "4")
    pids = [process.pid for process in running.ours()]
    (victim,) = (p for p in running.ours() if p.name() == "gl-guest-2")
    victim.kill()
    out, err = running.process.communicate(timeout=60)
    assert running.process.returncode == 1
    assert err == "grantlab: error: persistent: guest-2 was killed by SIGKILL\n"
    assert "IOPS" in out
    running.wait_for_nobody(pids)


# --- nobody ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", CARRIERS)
def test_a_machine_that_closes_well_never_says_otherwise(events: Events) -> None:
    """A guest's answer and its end come together; two of eight were said to be unexpected."""
    for _ in range(8):
        with Topology(guests=3, events=events, **SMALL).start() as machine:
            for _ in machine.load(LoadSpec(ios=50)):
                pass
        assert (machine.close_failure, machine.failures) == ("", {})
        assert machine.closed is not None


@pytest.mark.parametrize("name", ["hypervisor", "xenstored", "dom0", "guest-1"])
def test_an_unknown_command_is_an_error_and_everybody_lives(name: str) -> None:
    with Topology(guests=1, **SMALL).start() as machine:
        pids = machine.pids
        for command in (("help",), ("exit", "now")):
            with pytest.raises(
                MachineError, match=r"^no such command 'help'; allowed are |^exit: "
            ):
                machine.ask(name, *command)
        machine.guest(1).disk.write(0, bytes(4096))
        assert machine.pids == pids
    assert machine.closed is not None and machine.failures == {}


# --- the command line itself ----------------------------------------------------------------------


class Running:
    """The command line in a session of its own, its load begun."""

    def __init__(self, run_base: str, *flags: str) -> None:
        self.process = subprocess.Popen(
            ["./run.sh", "--guests", "2", "--persistent", *(flags or ("--runtime", "600"))],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "XDG_RUNTIME_DIR": run_base, "TMPDIR": run_base},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.wait_for_load()

    def ours(self) -> list[psutil.Process]:
        try:
            below = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [p for p in below if p.name().startswith(OUR_NAMES)]

    def wait_for_load(self) -> None:
        """A guest that has used a third of a second of CPU is running its load."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            guests = [p for p in self.ours() if p.name().startswith("gl-guest-")]
            if any(sum(p.cpu_times()[:2]) > 0.3 for p in guests):
                return
            time.sleep(0.1)
        raise AssertionError("the load did not begin")

    def wait_for_nobody(self, pids: list[int]) -> None:
        deadline = time.monotonic() + 10
        while any(_runs(pid) for pid in pids):
            assert time.monotonic() < deadline, "a process outlived its machine"
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_polite_end_closes_everything(how: signal.Signals, status: int, run_base: str) -> None:
    running = Running(run_base)
    pids = [process.pid for process in running.ours()]
    os.killpg(running.process.pid, how)
    out, err = running.process.communicate(timeout=60)
    assert running.process.returncode == status
    assert len(err.splitlines()) == 1 and err.endswith("; everything is closed\n")
    assert "IOPS" in out  # what was measured until then
    running.wait_for_nobody(pids)


def test_a_killed_supervisor_takes_everything_with_it(run_base: str) -> None:
    running = Running(run_base)
    pids = [process.pid for process in running.ours()]
    running.process.kill()
    _, err = running.process.communicate(timeout=60)
    assert err == ""  # those it leaves behind go without a word
    running.wait_for_nobody(pids)


def test_a_killed_fork_server_ends_the_run(run_base: str) -> None:
    running = Running(run_base)
    pids = [process.pid for process in running.ours()]
    psutil.Process(running.ours()[0].ppid()).kill()
    _, err = running.process.communicate(timeout=60)
    assert running.process.returncode == 1
    assert err == "grantlab: error: persistent: the fork server was killed by SIGKILL\n"
    running.wait_for_nobody(pids)
