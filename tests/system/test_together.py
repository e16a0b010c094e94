"""A machine that stays, with several things done to one guest or disk at once."""

import socket
from collections.abc import Iterator

import pytest

from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.failures import GuestFailed, MachineError
from toolstack.names import machine_names

pytestmark = pytest.mark.system

MIB = 1 << 20


@pytest.fixture
def machine(run_base: str) -> Iterator[AttachedMachine]:
    topology = Topology(guests=2, disks=["ram:4m", "ram:4m"], dom0_vcpus=2, spare_disks=1)
    up(topology, "m", lambda _: None)
    with attach("m") as machine:
        yield machine
    if "m" in machine_names():
        attach("m").down()


def disk(machine: AttachedMachine, vdev: str) -> dict[str, object]:
    (found,) = (
        disk for disk in machine.status()["disks"] if (disk["domid"], disk["vdev"]) == (1, vdev)
    )
    return dict(found)


def greeted(client: socket.socket) -> bool:
    return client.recv(8) == b"NBDMAGIC"


def test_an_exported_disk_is_paused_resized_suspended_and_taken_away(
    machine: AttachedMachine,
) -> None:
    export, guest = machine.export(1, "xvda"), machine.guest(1)
    with pytest.raises(MachineError, match=r"xvda is exported: end that first; --force"):
        machine.detach_disk(1, "xvda")
    with pytest.raises(MachineError, match=r"xvda is exported, and has one user at a time"):
        next(machine.load(LoadSpec(vdev="xvda", ios=1)))
    guest.pause()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(export.socket)  # nobody is there to greet it,
        with pytest.raises(MachineError, match=r"^guest 1 is paused$"):
            guest.disk.read(0, 512)  # and nobody else is the worse for it
        machine.guest(2).disk.write(0, bytes(512))
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(8)
        client.settimeout(60)
        guest.unpause()
        assert greeted(client)
    machine.resize(1, "xvda", 8 * MIB)
    assert disk(machine, "xvda")["size"] == 8 * MIB and disk(machine, "xvda")["exported"]
    with pytest.raises(MachineError, match=r"exported"):  # by its new size, too
        next(machine.load(LoadSpec(vdev="xvda", ios=1)))
    guest.suspend()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(export.socket)
        assert greeted(client)  # what it asks for waits
    guest.resume()
    machine.detach_disk(1, "xvda", force=True)
    with pytest.raises(GuestFailed, match=r"xvda"):
        export.wait()
    assert [each["vdev"] for each in machine.status()["disks"]] == ["xvdb", "xvda", "xvdb"]


def test_a_disk_that_has_come_is_resized_suspended_and_goes_as_any(
    machine: AttachedMachine,
) -> None:
    guest = machine.guest(1)
    machine.resize(1, "xvdb", 2 * MIB)
    disk_of = machine.attach_disk(1, "ram:1m,vdev=xvdd")
    disk_of.write(0, b"came" * 128)
    machine.resize(1, "xvdd", 3 * MIB)
    guest.suspend()
    for refused in (
        lambda: machine.attach_disk(1, "null:1m"),
        lambda: machine.detach_disk(1, "xvdd"),
        lambda: machine.resize(1, "xvdd", MIB),
    ):
        with pytest.raises(MachineError, match=r"^guest 1 is suspended$"):
            refused()
    guest.resume()
    guest = machine.guest(1)
    assert [each.size for each in guest.disks] == [4 * MIB, 2 * MIB, 3 * MIB]
    assert guest.numbered(3).read(0, 512) == b"came" * 128
    for _ in machine.load(LoadSpec(ios=200, domid=1)):
        pass
    machine.detach_disk(1, "xvdd")
    guest.pause()
    with pytest.raises(MachineError, match=r"^guest 1 is paused$"):
        machine.attach_disk(1, "null:1m")
    machine.down()
