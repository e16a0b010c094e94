"""Guests of a machine that stays: paused, suspended, looked at, by other processes."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.conftest import ROOT, environment, grantlab
from tests.system.test_stay import eventually, processes_of, runs
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.failures import GuestFailed, MachineError
from toolstack.names import machine_names
from toolstack.snapshot import Snapshot

pytestmark = pytest.mark.system

SMALL = Topology(guests=2, disks=["ram:4m", "ram:4m"], dom0_vcpus=2)
PAUSED = r"^guest 1 is paused$"
SUSPENDED = r"^guest 1 is suspended$"


@pytest.fixture
def machine(run_base: str) -> Iterator[AttachedMachine]:
    """A machine that `up` has started, and that is put down if the test has not done so."""
    up(SMALL, "lives", lambda _: None)
    with attach("lives") as machine:
        yield machine
    if "lives" in machine_names():
        attach("lives").down()


def done(snapshot: Snapshot, domid: int) -> int:
    return int(snapshot.frontend[domid]["ios"].sum())


def goes_on(machine: AttachedMachine, domid: int) -> bool:
    before = done(machine.snapshot(), domid)
    return eventually(lambda: done(machine.snapshot(), domid) > before)


def threads_of(machine: AttachedMachine, domid: int) -> set[str]:
    """The states of a guest's threads, by the host's kernel."""
    tasks = Path(f"/proc/{machine.pids[f'guest-{domid}']}/task").iterdir()
    return {(task / "stat").read_text().rpartition(") ")[2][0] for task in tasks}


def shown(machine: AttachedMachine) -> list[tuple[str, str]]:
    return [(each["state"], each["letters"]) for each in machine.status()["domains"]]


def no_harm(machine: AttachedMachine) -> None:
    for rows in machine.snapshot().frontend.values():
        assert not rows["io_errors"].any() and not rows["verify_errors"].any()
    assert machine.failures == {}


# --- pause ----------------------------------------------------------------------------------------


def test_a_paused_guest_stands_still_and_nobody_else_and_goes_on(
    machine: AttachedMachine, run_base: str
) -> None:
    load = machine.load(LoadSpec(rw="randrw", runtime_s=600), every_s=0.02)
    next(load)
    done_ = grantlab("pause", "lives", "1", run_base=run_base)
    assert (done_.returncode, done_.stdout, done_.stderr) == (0, "guest 1 is paused\n", "")
    assert threads_of(machine, 1) == {"T"}
    before = done(machine.snapshot(), 1)
    assert goes_on(machine, 2)
    with attach("lives") as other:  # dom0, xenstored and the keeper are held up by nothing
        assert done(other.snapshot(), 1) == before
        assert other.status()["disks"][0]["state"] == "Connected"
        for asked in (
            lambda: other.guest(1).disk.read(0, 512),
            lambda: list(other.load(LoadSpec(ios=1, domid=1))),
            other.guest(1).pause,
            other.guest(1).suspend,
        ):
            with pytest.raises(MachineError, match=PAUSED):
                asked()
    assert shown(machine)[0] == ("paused", "--p---")
    assert "--p--- paused" in grantlab("ls", "lives", run_base=run_base).stdout
    again = grantlab("pause", "lives", "1", run_base=run_base)
    assert (again.returncode, again.stderr) == (1, "grantlab: error: lives: guest 1 is paused\n")
    assert grantlab("unpause", "lives", "1", run_base=run_base).returncode == 0
    assert goes_on(machine, 1)
    assert shown(machine)[0][0] == "running"
    load.close()
    assert machine.status()["loads"] == 0
    no_harm(machine)


def test_deadlines_of_a_guest_stand_still_with_it(
    machine: AttachedMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runtime goes on, as fio's would: what is late after a pause ends at once, and is no failure.

    The keeper's patience is as it is; what is shown is that nobody is given up, or asked, in it.
    """
    load = machine.load(LoadSpec(runtime_s=0.5, domid=1), every_s=0.02)
    next(load)
    machine.guest(1).pause()
    time.sleep(0.7)
    assert machine.status()["loads"] == 1
    machine.guest(1).unpause()
    list(load)
    assert machine.status()["loads"] == 0
    no_harm(machine)


def test_a_load_that_is_left_while_its_guest_is_paused_ends_later(
    machine: AttachedMachine, run_base: str
) -> None:
    load = subprocess.Popen(
        ["./run.sh", "load", "lives", "1", "--runtime", "600"],
        cwd=ROOT, env=environment(run_base), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert eventually(lambda: done(machine.snapshot(), 1) > 1000)
    machine.guest(1).pause()
    os.killpg(load.pid, signal.SIGINT)
    _, err = load.communicate(timeout=60)
    assert load.returncode == 130
    assert err == "grantlab: error: interrupted; the load has ended, lives stays\n"
    assert machine.status()["loads"] == 1  # its last I/Os are on their way
    machine.guest(1).unpause()
    assert eventually(lambda: machine.status()["loads"] == 0)
    assert len(machine.guest(1).disk.read(0, 512)) == 512
    no_harm(machine)


def test_a_paused_guest_may_die_and_a_machine_with_one_be_put_down(
    machine: AttachedMachine,
) -> None:
    for domid in (1, 2):
        machine.guest(domid).pause()
    os.kill(machine.pids["guest-1"], signal.SIGKILL)
    assert eventually(lambda: shown(machine)[0] == ("dead", "----c-"))
    with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
        machine.guest(1).unpause()
    machine.down()
    assert machine.closed is not None and machine.close_failure == ""
    assert machine.closed.hypervisor[2]["grants_mapped"][0] == 0


def test_a_keepers_death_leaves_no_stopped_process(machine: AttachedMachine) -> None:
    machine.guest(1).pause()
    everybody = processes_of(machine)
    os.kill(machine.described["pid"], signal.SIGKILL)
    assert eventually(lambda: not any(map(runs, everybody)))


# --- suspend --------------------------------------------------------------------------------------


def test_a_guest_is_suspended_and_resumed_by_others_under_load(
    machine: AttachedMachine, run_base: str
) -> None:
    load = machine.load(LoadSpec(rw="randrw", iodepth=8, runtime_s=600), every_s=0.02)
    next(load)
    for _ in range(3):
        assert (
            grantlab("suspend", "lives", "1", run_base=run_base).stdout == "guest 1 is suspended\n"
        )
        view = machine.look(1)
        assert view.ring is None and view.grants.grants == () and view.maptrack.mappings == ()
        before = done(machine.snapshot(), 1)
        assert goes_on(machine, 2) and done(machine.snapshot(), 1) == before
        assert shown(machine)[0] == ("suspended", "---s--")
        assert [disk["state"] for disk in machine.status()["disks"][:2]] == ["Closed"] * 2
        for asked in (machine.guest(1).suspend, lambda: machine.guest(1).disk.read(0, 512)):
            with pytest.raises(MachineError, match=SUSPENDED):
                asked()
        machine.guest(1).resume()
        assert goes_on(machine, 1)
    with pytest.raises(MachineError, match=r"^guest 1 is not suspended$"):
        machine.guest(1).resume()
    load.close()
    no_harm(machine)
    machine.guest(1).suspend()
    machine.down()
    assert machine.close_failure == ""


def test_a_guest_that_hangs_holds_nobody_up(machine: AttachedMachine) -> None:
    """It neither suspends nor stops; who has ordered that waits alone, and may go."""
    os.kill(machine.pids["guest-1"], signal.SIGSTOP)  # by somebody else
    with attach("lives") as other:
        waits = threading.Thread(target=_fails, args=(other,))
        waits.start()
        assert eventually(lambda: shown(machine)[0][0] == "being suspended")
        with pytest.raises(MachineError, match=r"^guest 1 is being suspended$"):
            machine.guest(1).suspend()
        assert len(machine.guest(2).disk.read(0, 512)) == 512
        assert machine.look(1).ring is not None
        os.kill(machine.pids["guest-1"], signal.SIGKILL)
        waits.join(30)
        assert not waits.is_alive()
    assert len(machine.guest(2).disk.read(0, 512)) == 512


def _fails(machine: AttachedMachine) -> None:
    with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
        machine.guest(1).suspend()


# --- look -----------------------------------------------------------------------------------------


def test_others_see_what_who_holds_it_would(machine: AttachedMachine, run_base: str) -> None:
    list(machine.load(LoadSpec(ios=40, iodepth=4, rw="randwrite", domid=1)))
    view = machine.look(1, "xvdb")
    assert view.ring is not None and (view.ring.req_prod, view.ring.rsp_prod) == (40, 40)
    assert view.tree is not None and len(view.tree.nodes) > 0
    mapped = {grant.gref for grant in view.grants.grants if "reading" in grant.flags}
    assert {mapping.ref for mapping in view.maptrack.mappings} == mapped
    assert {node.gref for node in view.tree.nodes} < mapped
    said = grantlab("look", "lives", "--at", "1:xvdb", "--show", "ring,tree", run_base=run_base)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(
        "lives, persistent, guest 1's xvdb, running\n\nring: req_prod 40 "
    )
    assert f"tree: {view.tree.nr_nodes} of at most" in said.stdout
    load = machine.load(LoadSpec(runtime_s=600), every_s=0.02)
    next(load)
    machine.guest(2).pause()  # who stands still is seen as it stands
    with attach("lives") as other:
        views = [other.look(2, "xvda").ring for _ in range(2)]
        assert views[0] == views[1]
        for _ in range(5):
            assert other.look(1).ring is not None
    machine.guest(2).unpause()
    load.close()
    no_harm(machine)


def test_a_dom0_that_hangs_is_said_and_holds_nobody_up(machine: AttachedMachine) -> None:
    dom0 = psutil.Process(machine.pids["dom0"])
    dom0.suspend()
    waiting = [machine._requests.begin("look", 1, "xvda") for _ in range(70)]
    assert len(shown(machine)) == 2  # the keeper answers others
    with pytest.raises(MachineError, match=r"^64 orders are under way already: try again$"):
        list(machine._requests.results(waiting.pop()))
    dom0.resume()
    for number in waiting[:64]:
        (raw,) = machine._requests.results(number)
        assert raw[0] is not None
    assert machine.look(1).ring is not None


def test_what_is_preserved_can_be_looked_at(run_base: str) -> None:
    flags = "lives --guests 1 --disk ram:4m --on-crash preserve"
    assert grantlab("up", *flags.split(), run_base=run_base).returncode == 0
    machine = attach("lives")
    load = machine.load(LoadSpec(runtime_s=600), every_s=0.02)
    next(load)
    os.kill(machine.pids["dom0"], signal.SIGKILL)
    with pytest.raises(MachineError, match=r"^dom0 was killed by SIGKILL$"):
        list(load)
    view = machine.look(1)
    assert view.ring is not None and view.tree is None
    assert len(view.maptrack.mappings) > 1  # which nobody has unmapped
    said = grantlab("look", "lives", "--show", "ring", run_base=run_base)
    assert "died: dom0 was killed by SIGKILL\n\nring: req_prod" in said.stdout
    with pytest.raises(MachineError, match=r"^dom0 was killed by SIGKILL$"):
        machine.guest(1).pause()
    os.kill(machine.pids["hypervisor"], signal.SIGKILL) if machine.pids else None
    with pytest.raises(MachineError):
        machine.down()


# --- what a user gets wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("pause lives", "pause: guest is needed"),
        ("pause nobody 1", "machine 'nobody' is not up; machines that are: none"),
        ("pause a/b 1", "name: 'a/b' is not 1..32 letters"),
        ("suspend nobody x", "guest: 'x' is not a guest's number, as 1"),
        ("look nobody", "machine 'nobody' is not up; machines that are: none"),
        ("look nobody --show heap", "show: 'heap' is not some of ring, grants"),
        ("look nobody --guests 2", "look: --guests is for a machine that `look` starts"),
    ],
)
def test_a_wrong_command_is_one_line(command: str, line: str, run_base: str) -> None:
    said = grantlab(*command.split(), run_base=run_base)
    assert said.returncode == 2
    assert said.stderr.startswith(f"grantlab: error: {line}") and said.stderr.count("\n") == 1


@pytest.mark.parametrize("domid", [0, 3, 4095])
def test_a_guest_that_is_not_there_is_one_line(domid: int, machine: AttachedMachine) -> None:
    for word in ("pause", "unpause", "suspend", "resume"):
        with pytest.raises(Exception, match=rf"^guest: {domid} is not one of this machine's$"):
            machine.order(word, domid)
