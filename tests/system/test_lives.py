"""Guests of a machine that stays: paused, suspended, looked at, by other processes."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from tests.patience import eventually
from tests.system.conftest import ROOT, environment, grantlab
from tests.system.test_stay import processes_of, runs
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.failures import GuestFailed, MachineError
from toolstack.keeper import Keeper
from toolstack.keeper_requests import obey
from toolstack.kept_machine import KeptMachine
from toolstack.loadspec import ConfigError
from toolstack.names import directory_of, listen, machine_names, take_name
from toolstack.run_dir import RunDir
from toolstack.snapshot import Snapshot

pytestmark = pytest.mark.system

SMALL = Topology(guests=2, disks=["ram:4m", "ram:4m"], dom0_vcpus=2)
PAUSED = r"^guest 1 is paused$"
SUSPENDED = r"^guest 1 is suspended$"


class Shared(NamedTuple):
    """A machine that stays through all tests that leave it as it was."""

    machine: AttachedMachine
    base: str


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as base:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", base)
            up(SMALL, "lives", lambda _: None)
            machine = attach("lives")
        yield Shared(machine, base)
        machine.down()
        assert os.listdir(base) == []


@pytest.fixture
def machine(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> AttachedMachine:
    """It, from this process."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", shared.base)
    return shared.machine


@pytest.fixture
def doomed(run_base: str) -> Iterator[AttachedMachine]:
    """One of the test's own."""
    up(SMALL, "doomed", lambda _: None)
    with attach("doomed") as machine:
        yield machine
    if "doomed" in machine_names():
        attach("doomed").down()


def done(snapshot: Snapshot, domid: int) -> int:
    return int(snapshot.frontend[domid]["ios"].sum())


def await_progress(machine: AttachedMachine, domid: int) -> None:
    before = done(machine.snapshot(), domid)
    eventually(lambda: done(machine.snapshot(), domid) > before)


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
    machine: AttachedMachine, shared: Shared
) -> None:
    load = machine.load(LoadSpec(rw="randrw", runtime_s=600), every_s=0.02)
    next(load)
    done_ = grantlab("pause", "lives", "1", run_base=shared.base)
    assert (done_.returncode, done_.stdout, done_.stderr) == (0, "guest 1 is paused\n", "")
    assert threads_of(machine, 1) == {"T"}
    before = done(machine.snapshot(), 1)
    await_progress(machine, 2)
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
    assert "--p--- paused" in grantlab("ls", "lives", run_base=shared.base).stdout
    again = grantlab("pause", "lives", "1", run_base=shared.base)
    assert (again.returncode, again.stderr) == (1, "grantlab: error: lives: guest 1 is paused\n")
    assert grantlab("unpause", "lives", "1", run_base=shared.base).returncode == 0
    await_progress(machine, 1)
    assert shown(machine)[0][0] == "running"
    load.close()
    assert machine.status()["loads"] == 0
    no_harm(machine)


def test_a_guests_deadlines_stand_still_with_it(
    run_base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper with no patience, in this process: an answer and a load's end come late."""
    monkeypatch.setattr("toolstack.keeper.ASK_TIMEOUT_S", 0.5)
    monkeypatch.setattr("toolstack.crew.LOAD_GRACE_S", 0.5)
    run_dir = RunDir(directory_of("k"), take_name("k"))
    kept = KeptMachine(SMALL, "k", lambda _: None, run_dir).start()
    keeper = Keeper(kept, listen(kept.run_dir), lambda _: None)
    serves = threading.Thread(target=keeper.serve, args=(obey,))
    serves.start()
    try:
        with attach("k") as machine:
            load = machine.load(LoadSpec(runtime_s=0.1, domid=1, vdev="xvdb"), every_s=0.02)
            next(load)
            os.kill(machine.pids["guest-1"], signal.SIGSTOP)  # before it can answer
            asked = machine._requests.begin("guest", 1, "read", 0, 0, 512)
            machine.guest(1).pause()
            time.sleep(1.2)
            machine.guest(1).unpause()
            assert list(machine._requests.results(asked)) == [bytes(512)]
            list(load)  # its runtime has gone on, as fio's does
            no_harm(machine)
    finally:
        with attach("k") as machine:
            machine._requests.begin("down")
            serves.join(30)
        assert not serves.is_alive()
        keeper.close()
        run_dir.remove()


def test_a_load_that_is_left_while_its_guest_is_paused_ends_later(
    machine: AttachedMachine, shared: Shared
) -> None:
    mine = machine.load(LoadSpec(runtime_s=600, domid=1, vdev="xvdb"), every_s=0.02)
    next(mine)
    load = subprocess.Popen(
        ["./run.sh", "load", "lives", "1:xvda", "--runtime", "600"],
        cwd=ROOT, env=environment(shared.base), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    eventually(lambda: machine.status()["loads"] == 2)
    before = machine.snapshot().frontend[1]["ios"][0]
    eventually(lambda: machine.snapshot().frontend[1]["ios"][0] > before)
    machine.guest(1).pause()
    os.killpg(load.pid, signal.SIGINT)
    _, err = load.communicate(timeout=60)
    assert load.returncode == 130
    assert err == "grantlab: error: interrupted; the load has ended, lives stays\n"
    mine.close()
    assert machine.status()["loads"] == 2  # their last I/Os are on their way
    machine.guest(1).unpause()
    eventually(lambda: machine.status()["loads"] == 0)
    assert len(machine.guest(1).disk.read(0, 512)) == 512
    no_harm(machine)


def test_a_keepers_death_leaves_no_stopped_process(doomed: AttachedMachine) -> None:
    doomed.guest(1).pause()
    everybody = processes_of(doomed)
    os.kill(doomed.described["pid"], signal.SIGKILL)
    eventually(lambda: not any(map(runs, everybody)))


# --- suspend --------------------------------------------------------------------------------------


def test_a_guest_is_suspended_and_resumed_by_others_under_load(
    machine: AttachedMachine, shared: Shared
) -> None:
    load = machine.load(LoadSpec(rw="randrw", iodepth=8, runtime_s=600), every_s=0.02)
    next(load)
    for turn in range(4):
        if turn:
            machine.guest(1).suspend()
        else:
            said = grantlab("suspend", "lives", "1", run_base=shared.base)
            assert said.stdout == "guest 1 is suspended\n"
        view = machine.look(1)
        assert view.ring is None and view.grants.grants == () and view.maptrack.mappings == ()
        before = done(machine.snapshot(), 1)
        await_progress(machine, 2)
        assert done(machine.snapshot(), 1) == before
        assert shown(machine)[0] == ("suspended", "---s--")
        assert [disk["state"] for disk in machine.status()["disks"][:2]] == ["Closed"] * 2
        for asked in (machine.guest(1).suspend, lambda: machine.guest(1).disk.read(0, 512)):
            with pytest.raises(MachineError, match=SUSPENDED):
                asked()
        machine.guest(1).resume()
        await_progress(machine, 1)
    with pytest.raises(MachineError, match=r"^guest 1 is not suspended$"):
        machine.guest(1).resume()
    load.close()
    no_harm(machine)


def test_a_guest_that_hangs_holds_nobody_up_and_one_that_is_paused_may_die_or_leave(
    doomed: AttachedMachine,
) -> None:
    """It neither suspends nor stops; who has ordered that waits alone."""
    guest = doomed.pids["guest-1"]
    os.kill(guest, signal.SIGSTOP)  # by somebody else
    with attach("doomed") as other:
        number = other._requests.begin("suspend", 1)
        eventually(lambda: shown(doomed)[0][0] == "being suspended")
        with pytest.raises(MachineError, match=r"^guest 1 is being suspended$"):
            doomed.guest(1).suspend()
        assert len(doomed.guest(2).disk.read(0, 512)) == 512
        assert doomed.look(1).ring is not None
        os.kill(guest, signal.SIGCONT)
        list(other._requests.results(number))
    doomed.guest(1).resume()
    for domid in (1, 2):
        doomed.guest(domid).pause()
    os.kill(guest, signal.SIGKILL)
    eventually(lambda: shown(doomed)[0] == ("dead", "----c-"))
    with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
        doomed.guest(1).unpause()
    doomed.down()
    assert doomed.closed is not None and doomed.close_failure == ""
    assert doomed.closed.hypervisor[2]["grants_mapped"][0] == 0


# --- look -----------------------------------------------------------------------------------------


def test_others_see_what_who_holds_it_would(machine: AttachedMachine, shared: Shared) -> None:
    before = machine.look(1, "xvdb").ring
    list(machine.load(LoadSpec(ios=40, iodepth=4, rw="randwrite", domid=1)))
    view = machine.look(1, "xvdb")
    assert before is not None and view.ring is not None
    assert view.ring.req_prod == view.ring.rsp_prod == before.req_prod + 40
    assert view.tree is not None and len(view.tree.nodes) > 0
    mapped = {grant.gref for grant in view.grants.grants if "reading" in grant.flags}
    assert {mapping.ref for mapping in view.maptrack.mappings} == mapped
    assert {node.gref for node in view.tree.nodes} < mapped
    said = grantlab("look", "lives", "--at", "1:xvdb", "--show", "ring,tree", run_base=shared.base)
    assert said.returncode == 0, said.stderr
    head = "lives, persistent, guest 1's xvdb, running"
    assert said.stdout.startswith(f"{head}\n\nring: req_prod {view.ring.req_prod} ")
    assert f"tree: {view.tree.nr_nodes} of at most" in said.stdout
    load = machine.load(LoadSpec(runtime_s=600), every_s=0.02)
    next(load)
    machine.guest(2).pause()  # who stands still is seen as it stands
    with attach("lives") as other:
        eventually(lambda: other.look(2).ring == other.look(2).ring)
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
    topology = Topology(guests=1, disks=["ram:4m"], dom0_vcpus=2, on_crash="preserve")
    up(topology, "lives", lambda _: None)
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
    machine.down(force=True)


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


def test_a_guest_that_is_not_there_is_one_line(machine: AttachedMachine, shared: Shared) -> None:
    for domid in (0, 3, 4095):
        for word in ("pause", "unpause", "suspend", "resume"):
            with pytest.raises(
                ConfigError, match=rf"^guest: {domid} is not one of this machine's$"
            ):
                machine.order(word, domid)
    done_ = grantlab("unpause", "lives", "2", run_base=shared.base)
    line = "grantlab: error: lives: guest 2 is not paused\n"
    assert (done_.returncode, done_.stderr) == (1, line)
    for domid, vdev in ((1, "xvdc"), (3, "xvda"), ("x", "xvda"), (1, 5)):
        with pytest.raises(ConfigError, match=r"^look: .* is no disk there is$"):
            machine.look(domid, vdev)  # type: ignore[arg-type]
