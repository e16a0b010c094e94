"""A careless hand: what may be written into the store while a disk is busy.

Whatever it is, nobody hangs and dom0 lives: who is hurt is the disk that was written to, which says
why, and everybody else goes on.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from common.xenbus import (
    backend_path,
    frontend_path,
)
from common.xenstore import XenStoreClient, XenStoreError
from machine.plug import XVDA
from tests.patience import PATIENCE_S
from tests.system.conftest import ROOT, environment
from tests.system.scripted import await_value, detach, make_again
from toolstack.loadspec import LoadSpec
from toolstack.machine import GuestFailed
from toolstack.topology import Topology

pytestmark = pytest.mark.system

Harm = Callable[[XenStoreClient, int], None]


def write_front(value: bytes) -> Harm:
    return lambda store, domid: store.write(f"{frontend_path(domid, XVDA)}/state", value)


def write_back(value: bytes) -> Harm:
    return lambda store, domid: store.write(f"{backend_path(domid, XVDA)}/state", value)


def remove(*paths: Callable[[int, int], str]) -> Harm:
    def harm(store: XenStoreClient, domid: int) -> None:
        for path in paths:
            store.rm(path(domid, XVDA))

    return harm


# --- (a) under load ---------------------------------------------------------------------------

HARMS: dict[str, Harm] = {
    "the frontend's state 5": write_front(b"5"),
    "the frontend's state 6": write_front(b"6"),
    "the frontend's state x": write_front(b"x"),
    "the frontend's state 99": write_front(b"99"),
    "the frontend's state empty": write_front(b""),
    "the frontend's directory removed": remove(frontend_path),
    "both directories removed": remove(frontend_path, backend_path),
    "the backend's directory removed": remove(backend_path),
    "the backend's state removed": lambda s, d: s.rm(f"{backend_path(d, XVDA)}/state"),
    "the backend's state 6": write_back(b"6"),
    "the backend's state x": write_back(b"x"),
    "made again with another size": make_again,
    "detached by the toolstack": detach,
}


@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_a_disk_that_is_written_to_under_load_fails_its_io_and_the_others_go_on(mode: Any) -> None:
    guests = len(HARMS) + 1
    topology = Topology(guests=guests, disk_mib=4, buffer_mib=1).with_mode(mode)
    with topology.start() as machine:
        harmed = dict(enumerate(HARMS, 1))
        load = machine.load(LoadSpec(runtime_s=600, iodepth=4), every_s=0.1)
        before = next(load)
        while any(int(c["ios"][0]) < 50 for c in before.frontend.values()):
            before = next(load)
        for domid, name in harmed.items():
            HARMS[name](machine._store, domid)
        deadline = time.monotonic() + PATIENCE_S
        while len(machine.failures) < len(harmed):
            after = next(load)
            missing = {harmed[d] for d in harmed if f"guest-{d}" not in machine.failures}
            assert time.monotonic() < deadline, f"still running: {missing}"
        for domid in harmed:
            failure = machine.failures[f"guest-{domid}"]
            assert failure.startswith(f"domain {domid}: xvda: "), failure
            assert "I/Os in flight have failed" in failure
        at = after.frontend[guests]["ios"][0]
        while (after := next(load)).frontend[guests]["ios"][0] <= at:
            assert time.monotonic() < deadline, "the others' load does not go on"
        load.close()
        assert set(machine.failures) == {f"guest-{domid}" for domid in harmed}
        for domid in harmed:
            with pytest.raises(GuestFailed, match=rf"domain {domid}: xvda: not Connected"):
                machine.guest(domid).disk.read(0, 512)
        for domid in range(1, guests):  # told to disconnect, it does not hang
            assert machine.ask(f"guest-{domid}", "disconnect") == 0
    assert machine.close_failure == "" and machine.closed is not None
    for domid in range(1, guests + 1):
        counted = machine.closed.frontend[domid]
        assert machine.closed.hypervisor[domid]["grants_mapped"][0] == 0, harmed.get(domid)
        assert counted["grants_issued"][0] == counted["grants_ended"][0], harmed.get(domid)
        assert counted["verify_errors"][0] == 0
    assert machine.closed.frontend[guests]["io_errors"][0] == 0


def test_a_backend_that_is_told_to_begin_again_does_and_the_load_goes_on() -> None:
    with Topology(guests=2, disk_mib=4).start() as machine:
        for at, _ in enumerate(machine.load(LoadSpec(runtime_s=3), every_s=0.1)):
            if at in (3, 8):
                write_back(b"1")(machine._store, 1)
        assert machine.failures == {}
        assert machine.snapshot().frontend[1]["io_errors"][0] == 0
    assert machine.close_failure == "" and machine.closed is not None


def test_a_load_ends_with_guest_failed_once_the_others_are_done() -> None:
    with Topology(guests=2, disk_mib=4).start() as machine:
        load = machine.load(LoadSpec(runtime_s=3), every_s=0.1)
        next(load)
        write_front(b"5")(machine._store, 1)
        with pytest.raises(GuestFailed, match="domain 1: xvda: ") as failed:
            for _ in load:
                pass
        assert "domain 2" not in str(failed.value)
        assert machine.guest(2).disk.read(0, 512)


class Run:
    """`./run.sh` with two guests, both Connected."""

    def __init__(self, run_base: str, runtime: int) -> None:
        flags = ("--guests", "2", "--persistent", "--disk-mib", "4", "--runtime", str(runtime))
        self.process = subprocess.Popen(
            ["./run.sh", *flags],
            cwd=ROOT,
            env=environment(run_base),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            self._find(Path(run_base))
        except BaseException:
            self.process.kill()  # and with it all of its machine
            raise

    def _find(self, run_base: Path) -> None:
        """Its store, once it has one, and its disks, once they are Connected."""
        deadline = time.monotonic() + 300  # it may have to compile
        while True:
            assert time.monotonic() < deadline and self.process.poll() is None
            found = list(run_base.glob("grantlab-*/xenstored"))
            with suppress(XenStoreError):  # it is bound, and not listened to yet
                if found:
                    self.store = XenStoreClient(str(found[0]))
                    break
            time.sleep(0.1)
        for domid in (1, 2):
            await_value(self.store, f"{frontend_path(domid, XVDA)}/state", b"4")

    def end(self) -> tuple[int, str]:
        """Its exit status and what it said on stderr."""
        _, err = self.process.communicate(timeout=60)
        self.store.close()
        assert "Traceback" not in err
        return self.process.returncode, err


def test_a_run_names_the_disk_and_ends_with_1(run_base: str) -> None:
    run = Run(run_base, runtime=3)
    time.sleep(1)  # into its load; before it, the same is said
    run.store.rm(frontend_path(1, XVDA))
    status, err = run.end()
    assert status == 1
    assert "domain 1: xvda: " in err and "domain 2" not in err


@pytest.mark.parametrize("name", ["both directories removed", "detached by the toolstack"])
def test_ctrl_c_ends_a_run_whose_disks_are_all_gone(run_base: str, name: str) -> None:
    run = Run(run_base, runtime=600)
    time.sleep(1)
    HARMS[name](run.store, 1)
    time.sleep(0.5)
    run.process.send_signal(signal.SIGINT)
    status, _ = run.end()
    assert status == 130
