"""Whatever dies, and however: one clear line, and nothing left (see the conftest's fixture)."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.system.conftest import OUR_NAMES
from toolstack.loadspec import LoadSpec
from toolstack.machine import MachineError
from toolstack.topology import Topology

pytestmark = pytest.mark.system

ENDLESS = LoadSpec(runtime_s=600)


@pytest.mark.parametrize("victim", ["hypervisor", "dom0", "guest-1", "guest-2"])
def test_a_killed_process_ends_the_run_and_is_named(victim: str) -> None:
    with Topology(guests=2).start() as machine:
        load = machine.load(ENDLESS, every_s=0.1)
        next(load)
        pids = list(machine.pids.values())
        os.kill(machine.pids[victim], signal.SIGKILL)
        with pytest.raises(MachineError, match=rf"{victim} was killed by SIGKILL"):
            for _ in load:
                pass
    for pid in pids:
        assert not psutil.pid_exists(pid) or psutil.Process(pid).name() not in OUR_NAMES


class Running:
    """The command line in a session of its own, its load begun."""

    def __init__(self, run_base: str) -> None:
        self.process = subprocess.Popen(
            ["./run.sh", "--guests", "2", "--persistent", "--runtime", "600"],
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
    _, err = running.process.communicate(timeout=60)
    assert running.process.returncode == status
    assert "Traceback" not in err
    running.wait_for_nobody(pids)


def test_a_killed_supervisor_takes_everything_with_it(run_base: str) -> None:
    running = Running(run_base)
    pids = [process.pid for process in running.ours()]
    running.process.kill()
    running.process.communicate(timeout=60)
    running.wait_for_nobody(pids)


def test_a_killed_fork_server_ends_the_run(run_base: str) -> None:
    running = Running(run_base)
    pids = [process.pid for process in running.ours()]
    psutil.Process(running.ours()[0].ppid()).kill()
    _, err = running.process.communicate(timeout=60)
    assert running.process.returncode == 1
    assert len([line for line in err.splitlines() if "error:" in line]) == 1
    running.wait_for_nobody(pids)
