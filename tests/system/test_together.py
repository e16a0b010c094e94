"""A machine that stays, with several things done to one guest or disk at once."""

import socket
from collections.abc import Iterator

import pytest

from common.xenstore import XenStoreClient
from tests.patience import eventually
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.disks import device_of
from toolstack.failures import GuestFailed, MachineError
from toolstack.live_report import page, watch
from toolstack.loadspec import ConfigError
from toolstack.metrics import exposition
from toolstack.names import machine_names
from toolstack.seen import see
from toolstack.vbd_config import create_vbd

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
    disks = machine.status()["disks"]
    found = [disk for disk in disks if (disk["domid"], disk["vdev"]) == (1, vdev)]
    return dict(found[0]) if found else {"state": "none"}


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
    machine.resize(1, "xvdb", 2 * MIB)
    with machine.export(1, "xvdb") as other:
        assert other.nr_bytes == 2 * MIB
        guest.suspend()
    guest.resume()  # an export that ends while it is suspended ends, and nothing else does
    assert machine.guest(1).numbered(1).read(0, 512) == bytes(512)
    with machine.export(1, "xvdb"):
        guest.pause()
    guest.unpause()
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


def test_disks_that_others_plug_in_are_seen_and_not_taken_for_what_they_are_not(
    machine: AttachedMachine,
) -> None:
    with XenStoreClient(machine.xenstore_path) as store:
        create_vbd(store, 1, "ram:2m", device=device_of("xvdc"))
    eventually(lambda: len(machine.guest(1).disks) == 3)  # once both its ends are Connected
    assert disk(machine, "xvdc")["state"] == "Connected"
    with pytest.raises(ConfigError, match=r"xvdc was plugged in by hand: its memory is dom0's own"):
        machine.resize(1, "xvdc", 4 * MIB)
    with XenStoreClient(machine.xenstore_path) as store:
        create_vbd(store, 2, "file:/none/such", device=device_of("xvdc"))
    assert exposition(see(machine)) and page(watch(machine, 0.1, 0.1))
    machine.detach_disk(1, "xvdc")
    machine.detach_disk(2, "xvdc", force=True)


def test_a_vdev_beyond_those_it_was_born_with_has_figures_as_any(run_base: str) -> None:
    up(Topology(guests=1, disks=["ram:1m"], dom0_vcpus=1, spare_disks=0), "m", lambda _: None)
    with attach("m") as machine:
        machine.detach_disk(1, "xvda")
        machine.attach_disk(1, "ram:1m,vdev=xvdf")
        for _ in machine.load(LoadSpec(ios=100)):
            pass
        assert disk(machine, "xvdf")["ios"] == 100
        assert machine.snapshot().frontend[1]["ios"].tolist() == [0] * 5 + [100]
        machine.down()
