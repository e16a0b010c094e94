"""A careless hand: what a backend's directory may say, and in which order.

Whatever it is, nobody hangs and dom0 lives: who is hurt is the disk that was written to, which says
why, and everybody else goes on.
"""

import time

import pytest

from common.targets import FORM
from common.xenbus import (
    CLOSED,
    CONNECTED,
    INIT_WAIT,
    backend_path,
    frontend_path,
)
from machine.plug import XVDA
from tests.patience import eventually
from tests.system.scripted import (
    ScriptedGuest,
    await_value,
    connect,
    follow,
    make_again,
    mapped,
    plug,
    write_backend,
    write_frontend,
)
from toolstack.machine import Machine
from toolstack.vbd_config import create_vbd

pytestmark = pytest.mark.system

NO_SIZE = "has a size that is no multiple of 512 in 512..64g"
WRONG: dict[str, tuple[dict[str, str | None], str]] = {
    "no store": (
        {"params": "foo"},
        f"params b'foo' name no disk: 'foo' is not {FORM}",
    ),
    "a path": (
        {"params": "/dev/ram0"},
        f"params b'/dev/ram0' name no disk: '/dev/ram0' is not {FORM}",
    ),
    "nothing": (
        {"params": ""},
        f"params b'' name no disk: '' is not {FORM}",
    ),
    "no size": (
        {"params": "ram:"},
        f"params b'ram:' name no disk: 'ram:' is not {FORM}",
    ),
    "size 0": (
        {"params": "ram:0"},
        f"params b'ram:0' name no disk: 'ram:0' {NO_SIZE}",
    ),
    "half a sector": (
        {"params": "ram:256"},
        f"params b'ram:256' name no disk: 'ram:256' {NO_SIZE}",
    ),
    "negative": (
        {"params": "ram:-1"},
        "params b'ram:-1' name no disk: 'ram:-1' is not ram:SIZE, as in ram:64m",
    ),
    "words": (
        {"params": "ram:ten"},
        "params b'ram:ten' name no disk: 'ram:ten' is not ram:SIZE, as in ram:64m",
    ),
    "too large": (
        {"params": "ram:65g"},
        f"params b'ram:65g' name no disk: 'ram:65g' {NO_SIZE}",
    ),
    "more than there is": (
        {"params": "ram:9999999999999999999999"},
        "params b'ram:9999999999999999999999' name no disk: 'ram:9999999999999999999999' is not"
        " ram:SIZE, as in ram:64m",
    ),
    "no file": (
        {"params": "file:/no/such/file"},
        "/no/such/file: No such file or directory: the file is to be there, with the disk's size",
    ),
    "another's directory": (
        {"frontend": frontend_path(1, XVDA)},
        "frontend b'/local/domain/1/device/vbd/51712' is not '/local/domain/2/device/vbd/51712'",
    ),
    "nonsense": (
        {"frontend": "../../x y\0z"},
        "frontend b'../../x y\\x00z' is not '/local/domain/2/device/vbd/51712'",
    ),
    "no path": ({"frontend": ""}, "frontend b'' is not '/local/domain/2/device/vbd/51712'"),
    "another's id": ({"frontend_id": "1"}, "frontend-id b'1' is not '2'"),
    "no id": ({"frontend_id": "two"}, "frontend-id b'two' is not '2'"),
    "no mode": ({"mode": "x"}, "mode b'x' is neither 'r' nor 'w'"),
}


def test_what_is_wrong_is_said_in_the_error_node_until_it_is_mended(machine: Machine) -> None:
    store, back = machine._store, backend_path(2, XVDA)
    guest = ScriptedGuest(machine._builder, 2)
    for what, (wrong, said) in WRONG.items():
        write_backend(store, 2, **wrong)
        await_value(store, f"{back}/error", said.encode())
        assert store.read(f"{back}/state") == b"1", what
        store.rm(back)
    write_backend(store, 2, params="foo")
    await_value(store, f"{back}/error", WRONG["no store"][1].encode())
    write_frontend(store, 2)
    store.write(f"{back}/params", b"ram:2m")
    vbd = connect(guest)
    await_value(store, f"{back}/error", None)
    assert vbd.disk is not None and vbd.disk.nr_sectors == 2 * 2048
    vbd.detach()
    follow(guest, vbd, CLOSED)
    guest.die()


@pytest.mark.parametrize("order", ["state first", "state last", "backwards", "one is late"])
def test_a_directory_may_be_written_key_by_key_in_any_order(machine: Machine, order: str) -> None:
    store, back = machine._store, backend_path(2, XVDA)
    guest = ScriptedGuest(machine._builder, 2)
    write_frontend(store, 2)
    store.mkdir(back)
    store.set_perms(back, ["n0", "r2"])
    vbd = guest.vbd()
    keys = list(plug(2).items())
    if order == "state first":
        keys = keys[::-1]
    elif order == "backwards":
        keys = [*keys[4::-1], keys[5]]
    elif order == "one is late":
        keys = [keys[-1], *keys[:-1]]
    for number, (key, value) in enumerate(keys):
        assert store.read_or_none(f"{back}/state") in (None, b"1"), f"begun without {key}"
        store.write(f"{back}/{key}", value.encode())
        if number < len(keys) - 1:
            time.sleep(0.02)  # let dom0 look
    follow(guest, vbd, CONNECTED)
    assert store.read_or_none(f"{back}/error") is None
    vbd.detach()
    follow(guest, vbd, CLOSED)
    guest.die()


@pytest.mark.parametrize("missing", list(plug(2)))
def test_what_is_missing_is_waited_for(
    machine: Machine, guest: ScriptedGuest, missing: str
) -> None:
    store = machine._store
    guest.await_backend(INIT_WAIT)
    store.rm(guest.back)
    write_backend(store, 2, **{missing.replace("-", "_"): None})
    for _ in range(20):  # events enough for it to look; it must not begin
        store.write(f"{guest.back}/hotplug-status", b"connected")
        time.sleep(0.01)
    assert store.read_or_none(f"{guest.back}/state") == (None if missing == "state" else b"1")
    assert store.read_or_none(f"{guest.back}/error") is None
    store.write(f"{guest.back}/{missing}", plug(2)[missing].encode())
    guest.await_backend(INIT_WAIT)


def test_a_domain_that_does_not_exist_is_said_to_be_none(machine: Machine) -> None:
    store, front = machine._store, frontend_path(40, XVDA)
    write_backend(store, 40)
    write_frontend(store, 40)
    await_value(store, f"{backend_path(40, XVDA)}/state", b"2")
    for key in ("ring-ref", "event-channel"):
        store.write(f"{front}/{key}", b"8")
    store.write(f"{front}/protocol", b"x86_64-abi")
    store.write(f"{front}/state", b"3")
    eventually(
        lambda: store.read_or_none(f"{backend_path(40, XVDA)}/error"), "the error of domain 40"
    )
    assert b"of domain 40" in store.read(f"{backend_path(40, XVDA)}/error")
    assert store.read(f"{backend_path(40, XVDA)}/state") == b"5"


@pytest.mark.parametrize(
    "name", ["0/51712", "65535/51712", "32752/1", "x/51712", "2/x", "02/51712", "2/051712", "2/-1"]
)
def test_names_that_are_no_disks_are_nobodys(machine: Machine, name: str) -> None:
    path = f"/local/domain/0/backend/vbd/{name}"
    for key, value in plug(2).items():
        machine._store.write(f"{path}/{key}", value.encode())
    assert machine.guest(1).disk.read(0, 512)
    assert sorted(machine._store.directory(path)) == sorted(plug(2))
    assert machine._store.read(f"{path}/state") == b"1"


def test_a_disk_made_again_begins_once_its_frontend_has_let_go(
    machine: Machine, guest: ScriptedGuest
) -> None:
    """Removed and made again at once, larger, while connected: the frontend goes on with it."""
    store = machine._store
    vbd = connect(guest)
    guest.disk(vbd).write(0, b"old!" * 1024)
    make_again(store, 2)
    await_value(
        store,
        f"{guest.back}/error",
        b"the frontend has not let go of the disk that was here before",
    )
    assert mapped(machine, 2) == 0
    vbd.settle()  # it sees that, and lets go
    assert vbd.state != CONNECTED and vbd.kept
    follow(guest, vbd, CONNECTED)
    assert vbd.disk is not None and vbd.disk.nr_sectors == 3 * 2048
    assert guest.disk(vbd).read(0, 4096) == bytes(4096)
    await_value(store, f"{guest.back}/error", None)
    vbd.detach()
    follow(guest, vbd, CLOSED)


def test_a_size_that_changes_before_anything_was_promised_is_the_one_that_counts(
    machine: Machine,
) -> None:
    store = machine._store
    guest = ScriptedGuest(machine._builder, 2)
    write_backend(store, 2, params="ram:2m")
    store.rm(backend_path(2, XVDA))
    write_backend(store, 2, params="ram:5m")
    store.write(f"{backend_path(2, XVDA)}/params", b"ram:7m")
    write_frontend(store, 2)
    vbd = connect(guest)
    assert vbd.disk is not None and vbd.disk.nr_sectors == 7 * 2048
    vbd.detach()
    follow(guest, vbd, CLOSED)
    guest.die()


def test_ten_thousand_directories_cost_the_others_nothing_but_turns(machine: Machine) -> None:
    store = machine._store
    for device in range(10_000):
        store.write(f"/local/domain/0/backend/vbd/5/{device}/state", b"1")
    guest = ScriptedGuest(machine._builder, 2)
    create_vbd(store, 2, "ram:2m")
    vbd = connect(guest)
    vbd.detach()
    follow(guest, vbd, CLOSED)
    guest.die()
    store.rm("/local/domain/0/backend/vbd/5")
