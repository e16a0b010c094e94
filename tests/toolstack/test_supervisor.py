"""The supervisor, with real processes: xenstoreds in all the roles, which need nobody else."""

import itertools
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from toolstack.failures import GuestFailed, MachineError
from toolstack.supervisor import BLAME, FORK_SERVER, Supervisor

pytestmark = pytest.mark.system

PATIENCE_S = 60.0
ROLES = ("hypervisor", "xenstored", "dom0")


class Cast:
    """A supervisor, and who plays what; our ends of their VIRQ lines, which they end with."""

    def __init__(self) -> None:
        self.logged: list[str] = []
        self.supervisor = Supervisor(self.logged.append)
        self.lines: dict[str, socket.socket] = {}
        self._numbers = itertools.count()
        try:
            self.supervisor.await_fork_server()
        except BaseException:
            self.supervisor.close()
            raise

    def start(self, *names: str) -> None:
        for name in names:
            if name in self.lines:
                self.lines.pop(name).close()
            self.lines[name], its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            path = f"{self.supervisor.run_dir}/store-{next(self._numbers)}"
            config = {"store_path": path}
            self.supervisor.start(name, "xenstored", config, [its.detach()])
            assert self.supervisor.expect(name, PATIENCE_S) is None

    def kill(self, *names: str) -> None:
        for name in names:
            os.kill(self.supervisor.pids()[name], signal.SIGKILL)

    def close(self) -> None:
        self.supervisor.close()
        for line in self.lines.values():
            line.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Cast]:
    """One with all roles, for all tests that only start and end guests."""
    cast = Cast()
    cast.start(*ROLES)
    yield cast
    cast.close()


def test_commands_are_answered_and_errors_raised_by_whom_they_are_of(shared: Cast) -> None:
    shared.start("guest-1")
    for name, kind in (("dom0", MachineError), ("guest-1", GuestFailed)):
        shared.supervisor.send(name, "help")
        with pytest.raises(kind, match="no such command 'help'; allowed are exit, introduce"):
            shared.supervisor.expect(name, PATIENCE_S)
    shared.supervisor.check()
    shared.supervisor.dismiss("guest-1")


def test_nobody_answers_what_was_not_asked(shared: Cast) -> None:
    with pytest.raises(MachineError, match=r"dom0 did not answer within 0\.05 s"):
        shared.supervisor.expect("dom0", 0.05)
    assert shared.supervisor.answers(["dom0", "hypervisor"], 0.05) == []


def test_the_living_are_named_with_their_pids(shared: Cast) -> None:
    shared.start("guest-1")
    pids = shared.supervisor.pids()
    assert list(pids) == [FORK_SERVER, *ROLES, "guest-1"]
    names = [psutil.Process(pid).name() for name, pid in pids.items() if name != FORK_SERVER]
    assert names == [f"gl-{name}" for name in (*ROLES, "guest-1")]
    assert shared.supervisor.machine_pids() == list(pids.values())[1:]
    shared.supervisor.dismiss("guest-1")
    assert "guest-1" not in shared.supervisor.pids()


def test_a_guests_death_is_told_to_who_waits_for_it_and_to_nobody_else(shared: Cast) -> None:
    supervisor = shared.supervisor
    shared.start("guest-1", "guest-2")
    shared.kill("guest-1")
    assert supervisor.answers(["guest-1"], PATIENCE_S) == ["guest-1"]
    for _ in range(2):
        with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
            supervisor.take("guest-1")
        with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
            supervisor.expect("guest-1", PATIENCE_S)
    with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
        supervisor.send("guest-1", "help")
    supervisor.check()
    supervisor.blame()
    assert supervisor.death_of("guest-1") == "guest-1 was killed by SIGKILL"
    assert supervisor.death_of("guest-2") == ""
    assert "guest-1" not in supervisor.pids()
    supervisor.send("guest-2", "help")
    with pytest.raises(GuestFailed, match="no such command"):
        supervisor.expect("guest-2", PATIENCE_S)
    supervisor.dismiss("guest-2")
    supervisor.end("guest-1")


def test_a_guest_that_is_stopped_is_given_up_and_the_others_are_not(
    shared: Cast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads nothing: what does not fit its buffer any more has no one to wait for."""
    from common import control

    monkeypatch.setattr(control, "SEND_TIMEOUT_S", 0.1)
    shared.start("guest-3")
    os.kill(shared.supervisor.pids()["guest-3"], signal.SIGSTOP)
    with pytest.raises(GuestFailed, match="guest-3 cannot be told anything: timed out"):
        for _ in range(100):
            shared.supervisor.send("guest-3", "x" * 100_000)
    shared.supervisor.check()
    assert shared.supervisor.death_of("guest-3").startswith("guest-3 cannot be told anything")
    shared.supervisor.end("guest-3")


def test_a_guest_that_lives_on_without_its_hypercalls_is_ended_and_blamed(shared: Cast) -> None:
    shared.start("guest-1")
    shared.supervisor._heed(["died", 1])
    shared.supervisor._heed(["died", 7])  # whose process has gone before
    with pytest.raises(GuestFailed, match=r"^guest-1 gave its hypercall connection up$"):
        shared.supervisor.expect("guest-1", PATIENCE_S)
    shared.supervisor.end("guest-1")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_guest_whose_connection_goes_because_it_dies_is_told_as_it_died(
    shared: Cast, how: signal.Signals
) -> None:
    """The hypervisor's word may come before the kernel has done with the process."""
    for _ in range(5):
        shared.start("guest-1")
        later = threading.Timer(0.05, os.kill, (shared.supervisor.pids()["guest-1"], how))
        later.start()
        shared.supervisor._heed(["died", 1])
        later.join()
        with pytest.raises(GuestFailed, match=f"^guest-1 was killed by {how.name}$"):
            shared.supervisor.expect("guest-1", PATIENCE_S)
        shared.supervisor.end("guest-1")


def test_a_guest_that_leaves_well_is_never_said_to_have_died(shared: Cast) -> None:
    """Its answer and its end come together: whichever is looked at first."""
    for _ in range(30):
        shared.start("guest-1")
        shared.supervisor.dismiss("guest-1")
        shared.supervisor.check()
    assert not [line for line in shared.logged if "ended" in line]


def test_nothing_is_kept_of_who_has_left(shared: Cast) -> None:
    held = []
    for _ in range(6):
        shared.start("guest-1")
        shared.supervisor.dismiss("guest-1")
        shared.lines.pop("guest-1").close()
        held.append(len(os.listdir("/proc/self/fd")))
    assert held == held[:1] * 6


# --- the death of one that is needed --------------------------------------------------------------


@pytest.fixture
def doomed() -> Iterator[Cast]:
    cast = Cast()
    cast.start(*ROLES, "guest-1")
    yield cast
    cast.close()


def test_of_several_that_died_the_one_that_the_others_live_on_is_named(doomed: Cast) -> None:
    supervisor = doomed.supervisor
    # Each of these deaths is seen before the next happens, as it may be.
    for name in reversed(BLAME[1:]):
        doomed.kill(name)
        for ask in (supervisor.check, supervisor.blame):
            with pytest.raises(MachineError, match=rf"^{name} was killed by SIGKILL$"):
                # The kernel has killed it, and the fork server has yet to say so.
                deadline = time.monotonic() + PATIENCE_S
                while time.monotonic() < deadline:
                    ask()
    os.kill(supervisor.pids()[FORK_SERVER], signal.SIGKILL)
    with pytest.raises(MachineError, match=r"^the fork server was killed by SIGKILL$"):
        supervisor.expect("guest-1", PATIENCE_S)
    with pytest.raises(MachineError, match=r"^the fork server was killed by SIGKILL$"):
        supervisor.start("guest-2", "xenstored", {"store_path": "x"})


def test_who_waits_for_a_guest_hears_of_the_hypervisors_death(doomed: Cast) -> None:
    doomed.kill("guest-1", "hypervisor")
    with pytest.raises(MachineError, match=r"^hypervisor was killed by SIGKILL$") as caught:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            doomed.supervisor.check()
    assert not isinstance(caught.value, GuestFailed)


def test_close_ends_all_and_leaves_nothing_and_may_be_repeated(doomed: Cast) -> None:
    pids = {name: pid for name, pid in doomed.supervisor.pids().items() if name != FORK_SERVER}
    run_dir = Path(doomed.supervisor.run_dir)
    assert run_dir.stat().st_mode & 0o777 == 0o700
    doomed.supervisor.close()
    doomed.supervisor.close()
    assert not run_dir.exists()
    # The fork server stays for the next machine; a zombie is for it to reap.
    assert not [pid for pid in pids.values() if psutil.pid_exists(pid) and not is_zombie(pid)]


def is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_run_directory_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nonexistent")
    with pytest.raises(MachineError, match="cannot make the run directory /nonexistent/grantlab-"):
        Supervisor(lambda _: None)


def test_a_long_run_directory_is_made_where_sockets_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    supervisor = Supervisor(lambda _: None)
    assert Path(supervisor.run_dir).parent == Path("/tmp")
    supervisor.close()
    assert not Path(supervisor.run_dir).exists()
