"""System tests start real processes: what they leave behind is checked after each one."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.system.scripted import ScriptedGuest
from toolstack.machine import Machine
from toolstack.topology import Topology
from toolstack.vbd_config import create_vbd

ROOT = Path(__file__).parents[2]
OUR_NAMES = ("gl-hypervisor", "gl-xenstored", "gl-dom0", "gl-guest-")


def leftovers(run_base: str) -> list[str]:
    """Anything in `run_base`, shared memory of ours anywhere, processes under us."""
    found = [str(path) for path in Path(run_base).iterdir()]
    found += [str(path) for path in Path("/dev/shm").glob("grantlab-*")]
    children = psutil.Process().children(recursive=True)
    found += [p.name() for p in children if p.name().startswith(OUR_NAMES)]
    return found


@pytest.fixture
def run_base(monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory of this test's own for run directories; short, as socket paths are."""
    base = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    monkeypatch.setenv("XDG_RUNTIME_DIR", base)
    monkeypatch.setenv("TMPDIR", base)
    return base


@pytest.fixture(autouse=True)
def nothing_left_behind(run_base: str) -> Iterator[None]:
    """Within five seconds of a test's end, nothing of its machines exists."""
    yield
    deadline = time.monotonic() + 5
    while leftovers(run_base) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert leftovers(run_base) == []
    os.rmdir(run_base)


def environment(run_base: str) -> dict[str, str]:
    """A command's, whose run directories are this test's."""
    return {**os.environ, "XDG_RUNTIME_DIR": run_base, "TMPDIR": run_base}


def grantlab(*args: str, run_base: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        ["./run.sh", *args],
        cwd=ROOT,
        env=environment(run_base),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture
def machine() -> Iterator[Machine]:
    """One honest guest, whose disk works at the end as at the beginning; room for more domains."""
    with Topology(guests=1, disk_mib=4, events="pipe").start() as machine:
        machine.guest(1).disk.write(0, b"honest" * 256)
        yield machine
        assert machine.guest(1).disk.read(0, 1536) == b"honest" * 256
        machine._supervisor.check()  # dom0 lives, always
    assert machine.close_failure == ""


@pytest.fixture
def guest(machine: Machine) -> Iterator[ScriptedGuest]:
    """Domain 2, with a disk plugged in; the test is its frontend."""
    guest = ScriptedGuest(machine._builder, 2)
    create_vbd(machine._store, 2, "ram:2m")
    yield guest
    guest.die()
