"""Disks of a machine that stays get other sizes, under load, as Linux's backend announces it."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from common.xenbus import backend_path
from common.xenstore import XenStoreClient
from tests.patience import eventually
from tests.system.conftest import grantlab
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.disks import Disk, DiskSpec, device_of
from toolstack.failures import MachineError
from toolstack.loadspec import ConfigError
from toolstack.resizing import _check_file, _resize_file, checked_size

pytestmark = pytest.mark.system

MIB = 1 << 20


class Shared(NamedTuple):
    """A machine that stays: guest 1 has ram, null, what it shares with guest 2, and a file."""

    machine: AttachedMachine
    base: str
    file: Path


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with (
        tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as base,
        tempfile.TemporaryDirectory() as files,
    ):
        file = Path(files, "disk")
        file.write_bytes(bytes(4 * MIB))
        guests = [
            {"disks": ["ram:4m", "null:1g", "ram:4m,name=s", f"file:{file}"]},
            {"disks": ["ram:4m", "ram:4m,name=s,access=ro", "volatile:ram:4m"]},
        ]
        topology = Topology(guests=2, guest=guests, dom0_vcpus=2, on_crash="restart")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", base)
            up(topology, "sized", lambda _: None)
            machine = attach("sized")
        yield Shared(machine, base, file)
        machine.down()
        assert os.listdir(base) == []


@pytest.fixture
def machine(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> AttachedMachine:
    monkeypatch.setenv("XDG_RUNTIME_DIR", shared.base)
    return shared.machine


def row(machine: AttachedMachine, domid: int, vdev: str) -> dict[str, object]:
    return next(
        disk for disk in machine.status()["disks"] if (disk["domid"], disk["vdev"]) == (domid, vdev)
    )


def counted(machine: AttachedMachine, domid: int, name: str) -> list[int]:
    return [int(value) for value in machine.snapshot().frontend[domid][name]]


def test_a_ram_disk_grows_and_shrinks_under_loads(machine: AttachedMachine, shared: Shared) -> None:
    disk, spec = machine.guest(1).disk, LoadSpec(rw="randrw", iodepth=8, domid=1, vdev="xvda")
    running = machine.load(LoadSpec(**{**spec.given(), "runtime_s": 600}), every_s=0.02)
    next(running)
    path = backend_path(1, device_of("xvda"))
    store = XenStoreClient(machine.xenstore_path)
    store.watch(f"{path}/state", "seen")
    store.receive(1)
    store.events()
    done = grantlab("resize", "sized", "1:xvda", "8m", run_base=shared.base)
    assert (done.returncode, done.stdout, done.stderr) == (
        0, "guest 1's xvda has 8m bytes\n", ""
    )  # fmt: skip
    store.receive(1)
    assert [path for path, _ in store.events()] == [f"{path}/state"]  # written again, as it is
    assert (store.read(f"{path}/state"), store.read(f"{path}/sectors")) == (b"4", b"16384")
    store.close()
    before = counted(machine, 1, "ios")
    eventually(lambda: counted(machine, 1, "ios")[0] > before[0] + 1000)
    running.close()
    found = row(machine, 1, "xvda")
    assert (found["size"], found["target"]) == (8 * MIB, "ram:8m")
    assert "8m" in grantlab("ls", "sized", run_base=shared.base).stdout
    assert np.frombuffer(disk.read(4 * MIB, 65536), np.uint8).max() == 0  # none ran beyond
    disk.write(8 * MIB - 512, b"e" * 512)
    list(machine.load(LoadSpec(rw="write", bs="64k", ios=128, domid=1, vdev="xvda")))
    list(machine.load(LoadSpec(rw="read", bs="64k", ios=128, domid=1, vdev="xvda")))
    assert disk.read(8 * MIB - 512, 512) not in (b"e" * 512, bytes(512))
    assert not any(counted(machine, 1, "verify_errors") + counted(machine, 1, "io_errors"))

    running = machine.load(LoadSpec(**{**spec.given(), "runtime_s": 600}), every_s=0.02)
    next(running)
    machine.resize(1, "xvda", "2m")
    eventually(lambda: counted(machine, 1, "io_errors")[0] > 0)  # the guest's own lookout
    running.close()
    assert disk.read(2 * MIB - 512, 512) != bytes(512)
    with pytest.raises(MachineError, match=r"past the disk's end at 2097152"):
        disk.read(2 * MIB, 512)
    with pytest.raises(ConfigError, match="size: 4m from 0 on is more than guest 1's xvda has, 2m"):
        next(machine.load(LoadSpec(size="4m", domid=1, vdev="xvda")))
    machine.resize(1, "xvda", 4 * MIB)
    assert disk.read(2 * MIB, 2 * MIB) == bytes(2 * MIB)  # what was beyond an end is gone
    list(machine.load(LoadSpec(**{**spec.given(), "ios": 4000})))
    assert not any(counted(machine, 1, "verify_errors"))
    assert machine.failures == {}


def test_disks_of_one_store_have_one_size(machine: AttachedMachine) -> None:
    machine.resize(1, "xvdc", "6m")
    machine.guest(1).disks[2].write(5 * MIB, b"both" * 128)
    assert machine.guest(2).disks[1].read(5 * MIB, 512) == b"both" * 128
    assert row(machine, 2, "xvdb")["size"] == 6 * MIB


def test_a_file_and_a_null_disk_too(machine: AttachedMachine, shared: Shared) -> None:
    machine.resize(1, "xvdb", "2g")
    assert len(machine.guest(1).disks[1].read((2 << 30) - 512, 512)) == 512
    disk = machine.guest(1).disks[3]
    machine.resize(1, "xvdd", "8m")
    assert shared.file.stat().st_size == 8 * MIB
    disk.write(7 * MIB, b"file" * 128)
    assert shared.file.read_bytes()[7 * MIB :][:512] == b"file" * 128
    machine.resize(1, "xvdd", "1m")
    assert shared.file.stat().st_size == MIB
    with pytest.raises(MachineError, match="past the disk's end"):
        disk.read(MIB, 512)
    assert disk.read(MIB - 512, 512) == bytes(512)


def test_the_next_dom0_has_it_as_it_is(machine: AttachedMachine) -> None:
    disk = machine.guest(1).disk
    for size, nbytes in (("12m", 12 * MIB), ("3m", 3 * MIB)):
        machine.resize(1, "xvda", size)
        disk.write(nbytes - 512, size.encode().ljust(512))
        killed = machine.pids["dom0"]
        os.kill(killed, signal.SIGKILL)
        eventually(lambda killed=killed: machine.pids.get("dom0") not in (None, killed))
        assert disk.read(nbytes - 512, 512) == size.encode().ljust(512)
        with pytest.raises(MachineError, match="past the disk's end"):
            disk.read(nbytes, 512)


def test_a_guest_that_hangs_learns_it_later_and_holds_nobody_up(machine: AttachedMachine) -> None:
    guest = machine.pids["guest-2"]
    os.kill(guest, signal.SIGSTOP)
    number = machine._requests.begin("resize", 2, "xvda", 5 * MIB)
    eventually(lambda: row(machine, 2, "xvda")["size"] == 5 * MIB)
    assert len(machine.guest(1).disk.read(0, 512)) == 512
    os.kill(guest, signal.SIGCONT)
    list(machine._requests.results(number))
    assert len(machine.guest(2).disk.read(5 * MIB - 512, 512)) == 512


def test_what_cannot_be_is_one_line(machine: AttachedMachine, shared: Shared) -> None:
    for size, said in (
        (0, r"^size: 0 is not 512\.\.68719476736 bytes, a multiple of 512$"),
        (513, r"^size: 513 is not 512"),
        ("64g", r"^size: guest 1's xvda may grow to 64m, and not to 64g$"),
        ("big", r"^size: 'big' is not a size in bytes, as 512, 4k or 32m$"),
    ):
        with pytest.raises(ConfigError, match=said):
            machine.resize(1, "xvda", size)
    with pytest.raises(ConfigError, match=r"^resize: 1:xvdp is no disk there is$"):
        machine.resize(1, "xvdp", "1m")
    with pytest.raises(ConfigError, match=r"^resize: guest 2's xvdc is volatile; ram, null and"):
        machine.resize(2, "xvdc", "1m")
    for way, back, said in (
        ("pause", "unpause", r"^guest 1 is paused$"),
        ("suspend", "resume", r"^guest 1 is suspended$"),
    ):
        machine.order(way, 1)
        with pytest.raises(MachineError, match=said):
            machine.resize(1, "xvda", "4m")
        machine.order(back, 1)
    done = grantlab("resize", "sized", "1xvda", "1m", run_base=shared.base)
    line = "grantlab: error: disk: '1xvda' is not GUEST:VDEV, as 1:xvda\n"
    assert (done.returncode, done.stderr) == (2, line)


def test_an_nbd_disks_size_is_its_servers() -> None:
    disk = Disk(1, 0, "xvda", DiskSpec.of("nbd://localhost/x"))
    with pytest.raises(ConfigError, match=r"^resize: guest 1's xvda is an NBD server's; ram, null"):
        checked_size(disk, MIB)


def test_a_block_device_has_the_size_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is one is all that is pretended: there is none without root."""
    path = tmp_path / "device"
    path.write_bytes(bytes(MIB))
    monkeypatch.setattr("toolstack.resizing._is_device", lambda path: True)
    _check_file(str(path), MIB)
    _resize_file(str(path), 2 * MIB)
    assert path.stat().st_size == MIB
    with pytest.raises(MachineError, match=r"is a block device of 1048576 bytes, and not 2097152$"):
        _check_file(str(path), 2 * MIB)
    with pytest.raises(MachineError, match=r"nowhere: No such file or directory$"):
        _check_file(str(tmp_path / "nowhere"), MIB)
