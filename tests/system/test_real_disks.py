"""Disks that are files and servers, under real machines: what is counted, and what survives."""

import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from common.xenbus import backend_path
from machine.plug import XVDA
from tests.backend.nbd_servers import Server, nbdkit, served, uri_of
from toolstack import Topology
from toolstack.failures import MachineError
from toolstack.loadspec import LoadSpec
from toolstack.machine import Machine
from toolstack.settings import MODES

pytestmark = pytest.mark.system

SIZE = 4 << 20


def started(**settings: Any) -> Machine:
    machine = Topology(**{"guests": 1, "dom0_vcpus": 2, **settings}).start()
    assert isinstance(machine, Machine)
    return machine


def new_file(path: Path, nr_bytes: int = SIZE) -> Path:
    path.write_bytes(b"")
    os.truncate(path, nr_bytes)
    return path


def run(machine: Machine, **load: Any) -> None:
    for _ in machine.load(LoadSpec(**load)):
        pass


def counts(machine: Machine) -> dict[tuple[int, int], dict[str, int]]:
    """By guest and disk, both ends'; each is as often there as it has fields."""
    taken = machine.snapshot()
    found = {}
    for domid, ends in taken.frontend.items():
        for disk, front in enumerate(ends):
            back = taken.backend[domid][disk]
            found[domid, disk] = {
                **{f"back_{name}": int(back[name]) for name in back.dtype.names},
                **{name: int(front[name]) for name in front.dtype.names},
            }
    return found


class Serving(NamedTuple):
    """A server, and the URI of what it serves."""

    server: Server
    uri: str


@contextmanager
def serving(*arguments: str) -> Iterator[Serving]:
    """nbdkit with these."""
    with tempfile.TemporaryDirectory() as directory:  # a socket's path is to be short
        socket_path = Path(directory, "s")
        with served(nbdkit(socket_path, *arguments), socket_path) as server:
            yield Serving(server, uri_of(socket_path))


@pytest.fixture
def memory() -> Iterator[Serving]:
    with serving("memory", str(SIZE)) as found:
        yield found


@pytest.mark.parametrize("mode", MODES)
def test_ram_file_and_nbd_at_once_are_right_and_counted(mode: str, tmp_path: Path) -> None:
    for domid in (1, 2):
        new_file(tmp_path / f"{domid}.img")
    with serving("memory", str(SIZE)) as one, serving("memory", str(SIZE)) as two:
        files = f"file:{tmp_path}/{{domid}}.img"
        own = [{"disks": ["ram:4m", files, each.uri]} for each in (one, two)]
        with started(guests=2, guest=own, **MODES[mode]) as machine:
            run(machine, rw="randrw", ios=1500, iodepth=8, bs=8192)
            for count in counts(machine).values():
                assert (count["ios"], count["requests"], count["back_requests"]) == (1500,) * 3
                assert count["segments"] == count["back_segments"] == 3000
                assert (count["verify_errors"], count["io_errors"]) == (0, 0)
                assert count["bytes_read"] + count["bytes_written"] == 1500 * 8192
            assert not machine.failures


# --- what survives ----------------------------------------------------------------------------


def judged(tmp_path: Path, target: str) -> tuple[int, int]:
    """Sectors checked, and those outside of their bounds."""
    with started(disks=[target], verify_state=str(tmp_path / "state")) as machine:
        (verdict,) = machine.judge()
        return verdict.checked, verdict.outside


def test_after_dom0_has_died_every_block_lies_between_flushed_and_issued(tmp_path: Path) -> None:
    target, rng = f"volatile:file:{new_file(tmp_path / 'disk')}", random.Random(4)
    for seed in range(2):
        machine = started(disks=[f"{target},seed={seed}"], verify_state=str(tmp_path / "state"))
        with machine, pytest.raises(MachineError, match="dom0"):
            after = time.monotonic() + rng.uniform(0.05, 0.4)
            load = LoadSpec(rw="randwrite", iodepth=16, fsync=8, runtime_s=60, seed=seed)
            for _ in machine.load(load, every_s=0.01):
                if time.monotonic() > after:
                    after = float("inf")
                    os.kill(machine.pids["dom0"], signal.SIGKILL)
        checked, outside = judged(tmp_path, target)
        assert checked > 0 and outside == 0


def test_every_flush_reaches_the_store_and_is_counted(tmp_path: Path) -> None:
    with started(disks=[f"file:{new_file(tmp_path / 'disk')}"]) as machine:
        run(machine, rw="randwrite", ios=400, iodepth=4, fsync=8)
        (count,) = counts(machine).values()
        assert count["flush_requests"] == count["back_flush_requests"] == 50
        assert count["back_store_flushes"] == 50
        machine.guest(1).disk.flush()
        assert counts(machine)[1, 0]["back_store_flushes"] == 51


@pytest.mark.parametrize("rw", ["trim", "randtrim"])
def test_a_trim_load_punches_holes(rw: str, tmp_path: Path) -> None:
    path = new_file(tmp_path / "disk")
    path.write_bytes(b"x" * SIZE)
    before = path.stat().st_blocks
    with started(disks=[f"file:{path}"]) as machine:
        run(machine, rw=rw, ios=200, bs=4096)
        (count,) = counts(machine).values()
        assert (count["discard_requests"], count["back_store_discards"]) == (200, 200)
        assert count["io_errors"] == 0
    assert path.stat().st_blocks < before


@pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="no e2fsprogs")
def test_a_file_system_that_is_written_through_a_guest_is_clean(tmp_path: Path) -> None:
    image, disk = new_file(tmp_path / "image", 8 << 20), new_file(tmp_path / "disk", 8 << 20)
    (tmp_path / "files").mkdir()
    for at in range(20):
        (tmp_path / "files" / str(at)).write_bytes(os.urandom(50_000))
    make = ["mkfs.ext4", "-q", "-d", str(tmp_path / "files"), str(image)]
    subprocess.run(make, check=True, capture_output=True)
    data = np.frombuffer(image.read_bytes(), np.uint8)
    with started(disks=[f"file:{disk}"]) as machine:
        through = machine.guest(1).disk
        for at in range(0, len(data), 1 << 20):
            through.write(at, data[at : at + (1 << 20)].tobytes())
        through.flush()
        assert through.read(4096, 8192) == data[4096 : 4096 + 8192].tobytes()
        check = subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, check=False)
        assert check.returncode == 0, check.stdout
        before = disk.stat().st_blocks
        through.discard(4 << 20, 4 << 20)
        assert disk.stat().st_blocks < before


def test_sectors_of_4096_bytes(tmp_path: Path) -> None:
    target = f"file:{new_file(tmp_path / 'disk')},sector-size=4096"
    with started(disks=[target, "ram:1m,sector-size=4096"]) as machine:
        run(machine, rw="randrw", ios=300, bs=4096)
        for disk in machine.guest(1).disks:
            disk.write(4096, b"x" * 4096)
            with pytest.raises((MachineError, ValueError), match="4096"):
                disk.write(512, b"x" * 512)


# --- servers that come and go -----------------------------------------------------------------


def test_a_server_that_is_killed_and_comes_back_is_gone_on_with(tmp_path: Path) -> None:
    """Its bytes are in a file, so they are still there."""
    new_file(tmp_path / "bytes")
    bytes_ = str(tmp_path / "bytes")
    with serving("file", bytes_) as (server, uri), started(disks=[uri, "ram:4m"]) as machine:
        load = LoadSpec(rw="randrw", ios=None, runtime_s=3, iodepth=8)
        kills = itertools.count()
        for _ in machine.load(load, every_s=0.5):
            if next(kills) < 4:
                server.kill()
                server.start()
        for count in counts(machine).values():
            assert (count["verify_errors"], count["io_errors"]) == (0, 0)
            assert count["ios"] > 100


def test_one_that_never_comes_back_is_errors_in_time_and_the_others_go_on(
    memory: Serving,
) -> None:
    with started(disks=[f"{memory.uri},timeout=1", "ram:4m"]) as machine:
        memory.server.kill()
        began = time.monotonic()
        with pytest.raises(MachineError, match="I/O error"):
            machine.guest(1).disks[0].read(0, 4096)
        assert time.monotonic() - began < 10
        run(machine, rw="randrw", ios=500, vdev="xvdb")
        assert counts(machine)[1, 1]["io_errors"] == 0


def test_a_server_s_error_is_its_own_request_s() -> None:
    flags = ("--filter=error", "memory", str(SIZE), "error-pread-rate=10%", "error=EIO")
    with serving(*flags) as (_, uri), started(disks=[uri, "ram:4m"]) as machine:
        run(machine, rw="randrw", ios=2000, iodepth=8, vdev=["xvda", "xvdb"])
        failing, sound = (counts(machine)[1, disk] for disk in (0, 1))
        assert 0 < failing["io_errors"] == failing["back_io_errors"] < 400
        assert failing["ios"] == sound["ios"] == 2000
        assert failing["verify_errors"] == sound["verify_errors"] == sound["io_errors"] == 0


def test_a_slow_server_holds_up_its_own_disk_alone() -> None:
    slow_reads = ("--filter=delay", "memory", str(SIZE), "delay-read=50ms")
    with serving(*slow_reads) as (_, uri), started(disks=[uri, "ram:4m"]) as machine:
        load = [
            LoadSpec(rw="randread", ios=40, vdev="xvda", iodepth=1),
            LoadSpec(rw="randrw", ios=4000, vdev="xvdb"),
        ]
        for _ in machine.load(load):
            pass
        slow, fast = (counts(machine)[1, disk] for disk in (0, 1))
        assert (slow["ios"], fast["ios"]) == (40, 4000)
        assert slow["io_errors"] == fast["io_errors"] == 0


def test_a_store_that_stalls_is_told_of_and_closing_does_not_wait_for_it(
    memory: Serving,
) -> None:
    with started(disks=[f"{memory.uri},timeout=10"]) as machine:
        memory.server.signal(signal.SIGSTOP)
        try:
            load = machine.load(LoadSpec(rw="randread", ios=64, iodepth=32), every_s=0.5)
            began, path = time.monotonic(), f"{backend_path(1, XVDA)}/stalled"
            for _ in load:
                if machine._store.exists(path) or time.monotonic() - began > 20:
                    break
            assert int(machine._store.read(path)) >= 5
            used = machine.snapshot().cpu_seconds
            time.sleep(1)
            assert machine.snapshot().cpu_seconds - used < 0.3  # nothing spins
            began = time.monotonic()
        finally:
            with suppress(MachineError):
                load.close()
        machine.close()
        assert time.monotonic() - began < 30 and not machine.close_failure
        memory.server.signal(signal.SIGCONT)
