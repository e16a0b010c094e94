"""Machines that stay: brought up, come to by other processes, put down, killed in every part."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.patience import eventually
from tests.system.conftest import ROOT, environment, grantlab
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.failures import GuestFailed, MachineError
from toolstack.loadspec import ConfigError
from toolstack.names import CONTROL, LOG, directory_of, machine_names

pytestmark = pytest.mark.system

ENDLESS = LoadSpec(runtime_s=600)
SMALL = Topology(guests=2, disks=["ram:4m", "ram:4m"], dom0_vcpus=2)


@pytest.fixture
def staying(run_base: str) -> Iterator[AttachedMachine]:
    """A machine that `up` has started, and that is put down if the test has not done so."""
    up(SMALL, "m", lambda _: None)
    with attach("m") as machine:
        yield machine
    if "m" in machine_names():
        attach("m").down()


def processes_of(machine: AttachedMachine) -> list[psutil.Process]:
    keeper = psutil.Process(machine.described["pid"])
    return [keeper, *keeper.children(recursive=True)]


def runs(process: psutil.Process) -> bool:
    """A zombie is for whoever has it now to reap."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- from the command line ------------------------------------------------------------------------


def test_up_ls_load_logs_down(run_base: str) -> None:
    flags = "box --guests 2 --disk ram:4m"
    done = grantlab("up", *flags.split(), run_base=run_base, timeout=400)  # it may compile
    assert (done.returncode, done.stderr) == (0, "")
    first = done.stdout.splitlines()[0]
    assert first == "box is up: persistent, 2 guests with 2 disks, dom0 with 24 vCPUs"
    again = grantlab("up", "box", run_base=run_base)
    assert again.returncode == 1
    line = "grantlab: error: machine 'box' is up already; `down box` puts it down\n"
    assert again.stderr == line
    done = grantlab("load", "box", "2:xvda", "--ios", "500", "--json", f"{run_base}/r", "--quiet",
                    run_base=run_base)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (run,) = json.loads(Path(run_base, "r").read_text())["runs"]
    assert [guest["totals"]["requests"] for guest in run["guests"]] == [0, 500]
    assert run["totals"]["verify_errors"] == 0
    os.unlink(f"{run_base}/r")
    listed = json.loads(grantlab("ls", "--json", run_base=run_base).stdout)
    assert [machine["name"] for machine in listed] == ["box"]
    disks = [
        (disk["domid"], disk["vdev"], disk["state"], disk["ios"]) for disk in listed[0]["disks"]
    ]
    assert disks == [(1, "xvda", "Connected", 0), (2, "xvda", "Connected", 500)]
    shown = grantlab("ls", "box", run_base=run_base).stdout
    assert "box: running, persistent" in shown and "guest-2" in shown and "ram:4m" in shown
    assert "up: persistent, process" in grantlab("logs", "box", run_base=run_base).stdout
    assert grantlab("down", "box", run_base=run_base).returncode == 0
    gone = grantlab("ls", "box", run_base=run_base)
    assert gone.returncode == 2
    line = "grantlab: error: machine 'box' is not up; machines that are: none\n"
    assert gone.stderr == line


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("up a/b", "name: 'a/b' is not 1..32 letters"),
        ("up --persistent --grant-copy", "up: a machine has one mode, and grant-copy, persistent"),
        ("up --guests 99", "guests: 99 is not in 1..64"),
        ("up --disk file:/none/such", "disk: "),
        ("load nobody", "machine 'nobody' is not up; machines that are: none"),
        ("load nobody 1:xvdz", "disk: '1:xvdz' is not GUEST or GUEST:VDEV, as 1 or 1:xvda"),
        ("load nobody x", "disk: 'x' is not GUEST or GUEST:VDEV, as 1 or 1:xvda"),
        ("load nobody --rw up", "rw: 'up' is not one of read"),
        ("logs nobody", "machine 'nobody' is not up; machines that are: none"),
        ("down nobody", "machine 'nobody' is not up; machines that are: none"),
        ("down nobody --force", "machine 'nobody' is not up; machines that are: none"),
        ("ls nobody", "machine 'nobody' is not up; machines that are: none"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(command: str, line: str, run_base: str) -> None:
    done = grantlab(*command.split(), run_base=run_base)
    assert done.returncode == 2
    assert done.stderr.startswith(f"grantlab: error: {line}") and done.stderr.count("\n") == 1


def test_ctrl_c_ends_the_load_and_not_the_machine(staying: AttachedMachine, run_base: str) -> None:
    load = subprocess.Popen(
        ["./run.sh", "load", "m", "1", "--runtime", "600"],
        cwd=ROOT,
        env=environment(run_base),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    eventually(lambda: staying.status()["loads"] == 1)
    eventually(lambda: staying.status()["disks"][0]["ios"] > 1000)
    os.killpg(load.pid, signal.SIGINT)
    out, err = load.communicate(timeout=60)
    assert load.returncode == 130
    assert err == "grantlab: error: interrupted; the load has ended, m stays\n"
    assert "verify errors" in out
    assert staying.status()["loads"] == 0
    assert staying.guest(1).disk.read(0, 512) is not None


def test_a_client_that_is_killed_takes_its_loads_along(
    staying: AttachedMachine, run_base: str
) -> None:
    load = subprocess.Popen(
        [sys.executable, "-m", "toolstack", "load", "m", "--runtime", "600", "--quiet"],
        cwd=ROOT,
        env=environment(run_base),
        stdout=subprocess.DEVNULL,
    )
    eventually(lambda: staying.status()["loads"] == 1)
    load.kill()
    load.wait()
    eventually(lambda: staying.status()["loads"] == 0)


# --- deaths ---------------------------------------------------------------------------------------


def test_a_guests_death_is_that_guests(staying: AttachedMachine) -> None:
    mine = staying.load(LoadSpec(runtime_s=600, domid=1), every_s=0.05)
    others = staying.load(LoadSpec(runtime_s=1, domid=2), every_s=0.05)
    next(mine)
    next(others)
    os.kill(staying.pids["guest-1"], signal.SIGKILL)
    with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
        list(mine)
    assert list(others)[-1].frontend[2]["ios"].min() > 0
    with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
        staying.guest(1).disk.read(0, 512)
    dead, living = staying.status()["domains"]
    assert (dead["state"], dead["failure"], dead["pid"]) == (
        "dead", "guest-1 was killed by SIGKILL", None
    )  # fmt: skip
    assert dead["grants_mapped"] == 0 and living["state"] == "running"


@pytest.mark.parametrize("victim", ["hypervisor", "xenstored", "dom0", "fork server"])
def test_a_machine_that_died_says_so_until_it_is_put_down(
    victim: str, staying: AttachedMachine, run_base: str
) -> None:
    load = staying.load(ENDLESS, every_s=0.05)
    next(load)
    everybody = processes_of(staying)
    os.kill(staying.pids[victim], signal.SIGKILL)
    died = f"{victim} was killed by SIGKILL".replace("fork server", "the fork server")
    with pytest.raises(MachineError, match=f"^{died}$"):
        list(load)
    with pytest.raises(MachineError, match=f"^{died}$"):
        staying.snapshot()
    with attach("m") as other:
        assert other.described["state"] == f"died: {died}"
        log = Path(other.run_dir, LOG).read_text()
        assert f"the machine has died: {died}" in log
    (listed,) = json.loads(grantlab("ls", "--json", run_base=run_base).stdout)
    assert listed["state"] == f"died: {died}"
    done = grantlab("down", "m", run_base=run_base)
    assert done.returncode == 1 and died in done.stderr
    eventually(lambda: not any(map(runs, everybody)))


def test_dom0_is_started_again_where_that_is_asked_for(run_base: str) -> None:
    flags = "m --guests 2 --disk ram:4m --on-crash restart"
    assert grantlab("up", *flags.split(), run_base=run_base).returncode == 0
    with attach("m") as machine:
        load = machine.load(LoadSpec(runtime_s=600), every_s=0.05)
        next(load)
        for _ in range(2):
            killed = machine.pids["dom0"]
            os.kill(killed, signal.SIGKILL)
            eventually(lambda killed=killed: machine.pids.get("dom0") not in (None, killed))
            before = [int(rows["ios"].sum()) for rows in machine.snapshot().frontend.values()]

            def all_go_on(before: list[int] = before) -> bool:
                now = [int(rows["ios"].sum()) for rows in next(load).frontend.values()]
                return all(after > was for was, after in zip(before, now, strict=True))

            eventually(all_go_on)
        load.close()
        counted = machine.snapshot().frontend.values()
        assert (
            sum(int(rows["verify_errors"].sum() + rows["io_errors"].sum()) for rows in counted) == 0
        )
        assert (
            "dom0 was killed by SIGKILL, and is started again"
            in Path(machine.run_dir, LOG).read_text()
        )
        machine.down()


def test_what_is_left_of_a_machine_can_be_preserved(run_base: str) -> None:
    flags = "m --guests 1 --disk ram:4m --on-crash preserve"
    assert grantlab("up", *flags.split(), run_base=run_base).returncode == 0
    machine = attach("m")
    pids = machine.pids
    os.kill(pids["dom0"], signal.SIGKILL)
    died = "dom0 was killed by SIGKILL"
    eventually(lambda: machine._requests.ask("describe")["state"] == f"died: {died}")
    left = [psutil.Process(pids[name]) for name in ("hypervisor", "xenstored", "guest-1")]
    assert all(map(runs, left))
    with pytest.raises(MachineError, match=died):
        machine.down()
    eventually(lambda: not any(map(runs, left)))


def test_a_killed_keeper_takes_everything_along(staying: AttachedMachine, run_base: str) -> None:
    everybody = processes_of(staying)
    os.kill(staying.described["pid"], signal.SIGKILL)
    with pytest.raises(MachineError, match=r"^the machine is gone"):
        staying.snapshot()
    eventually(lambda: not any(map(runs, everybody)))
    eventually(lambda: not os.path.lexists(directory_of("m")))
    done = grantlab("load", "m", run_base=run_base)
    assert done.returncode == 2
    assert done.stderr == "grantlab: error: machine 'm' is not up; machines that are: none\n"


def test_what_even_the_janitor_left_is_said_and_the_name_is_free(
    staying: AttachedMachine, run_base: str
) -> None:
    keeper = psutil.Process(staying.described["pid"])
    janitor = [each for each in keeper.children() if "janitor.py" in " ".join(each.cmdline())]
    for each in (*janitor, keeper):
        each.kill()
    eventually(lambda: not runs(keeper))
    assert Path(staying.run_dir, CONTROL).exists()
    done = grantlab("ls", "m", run_base=run_base)
    assert done.stderr.startswith("grantlab: error: machine 'm' is gone: its keeper was killed")
    assert not os.path.lexists(staying.run_dir)


def test_a_signal_puts_it_down_in_order(staying: AttachedMachine) -> None:
    everybody = processes_of(staying)
    os.kill(staying.described["pid"], signal.SIGTERM)
    eventually(lambda: not any(map(runs, everybody)))
    assert not os.path.lexists(staying.run_dir)


def test_down_tells_what_was_counted_to_the_end(staying: AttachedMachine) -> None:
    list(staying.load(LoadSpec(ios=200)))
    staying.down()
    assert staying.closed is not None and staying.close_failure == ""
    for domid in (1, 2):
        assert staying.closed.hypervisor[domid]["grants_mapped"][0] == 0
        assert staying.closed.frontend[domid]["ios"].tolist() == [200, 200]
    with pytest.raises(ConfigError, match=r"^machine 'm' is not up"):
        attach("m")


def test_down_by_force_asks_nobody(staying: AttachedMachine, run_base: str) -> None:
    everybody = processes_of(staying)
    os.kill(staying.pids["dom0"], signal.SIGSTOP)
    assert grantlab("down", "m", "--force", run_base=run_base).returncode == 0
    eventually(lambda: not any(map(runs, everybody)))
    assert not os.path.lexists(staying.run_dir)


def test_down_by_force_ends_a_keeper_that_hangs(staying: AttachedMachine, run_base: str) -> None:
    os.kill(staying.described["pid"], signal.SIGSTOP)
    done = grantlab("down", "m", "--force", run_base=run_base)
    assert done.returncode == 0
    eventually(lambda: not os.path.lexists(staying.run_dir))
