"""The sequence by which a disk comes and goes, on a real store; the test is both of its ends."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from common.xenbus import backend_path, frontend_path
from common.xenstore import XenStoreClient
from tests.xenstored.serving import Serving
from toolstack.disks import device_of
from toolstack.failures import GuestFailed, MachineError
from toolstack.hotplug import Attaching, Detaching, Plugging
from toolstack.vbd_config import create_vbd

XVDB = device_of("xvdb")
FRONT, BACK = frontend_path(1, XVDB), backend_path(1, XVDB)


@pytest.fixture
def store() -> Iterator[XenStoreClient]:
    run_dir = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    serving = Serving(run_dir)
    with XenStoreClient(serving.path) as client:
        yield client
    serving.stop()
    shutil.rmtree(run_dir)


def follows(store: XenStoreClient, plugging: Plugging, holds: Callable[[], bool]) -> bool:
    """Does it come to that, when it is looked at as its machine looks at it?"""
    deadline = time.monotonic() + 10
    while not holds():
        store.receive(0.01)
        if plugging.token in {token for _, token in store.events()}:
            plugging.stir()
        plugging.look_at_clock()
        if time.monotonic() > deadline:
            return False
    return True


def is_told(store: XenStoreClient, plugging: Plugging) -> None:
    """It has seen what there is by now."""
    for _ in range(20):
        follows(store, plugging, iter([False, True]).__next__)


def everything(store: XenStoreClient, path: str) -> dict[str, bytes]:
    return {name: store.read(f"{path}/{name}") for name in store.directory(path)}


def attaching(store: XenStoreClient) -> Attaching:
    plugging = Attaching(store, 1, "xvdb", "ram:1m", read_only=True)
    assert follows(store, plugging, lambda: store.exists(f"{FRONT}/state"))
    return plugging


def detaching(store: XenStoreClient, force: bool = False) -> Detaching:
    """Of a disk whose ends are Connected."""
    create_vbd(store, 1, "ram:1m", XVDB)
    for path in (FRONT, BACK):
        store.write(f"{path}/state", b"4")
    plugging = Detaching(store, 1, "xvdb", force)
    assert follows(store, plugging, lambda: store.read(f"{BACK}/online") == b"0")
    return plugging


def test_what_is_written_is_what_a_disk_is_born_with(store: XenStoreClient) -> None:
    create_vbd(store, 1, "ram:1m", XVDB, read_only=True)
    born = everything(store, FRONT), everything(store, BACK), store.get_perms(FRONT)
    for path in (FRONT, BACK):
        store.rm(path)
    attaching(store)
    assert (everything(store, FRONT), everything(store, BACK), store.get_perms(FRONT)) == born


def test_it_has_arrived_when_both_ends_are_connected(store: XenStoreClient) -> None:
    plugging = attaching(store)
    store.write(f"{BACK}/sectors", b"2048")
    store.write(f"{BACK}/state", b"4")
    is_told(store, plugging)
    assert not plugging.ended
    store.write(f"{FRONT}/state", b"4")
    assert follows(store, plugging, lambda: plugging.ended)
    assert (plugging.failure, plugging.size) == ("", 1 << 20)


def test_what_is_there_stays_as_it_is(store: XenStoreClient) -> None:
    create_vbd(store, 1, "ram:2m", XVDB)
    plugging = Attaching(store, 1, "xvdb", "ram:1m", read_only=False)
    assert follows(store, plugging, lambda: plugging.ended)
    assert plugging.failure == "guest 1's xvdb is there already"
    assert store.read(f"{BACK}/params") == b"ram:2m"


@pytest.mark.parametrize(
    ("path", "key", "value", "why"),
    [
        (BACK, "error", b"no such file", "guest 1's xvdb cannot be: no such file"),
        (FRONT, "error", b"no room", "guest 1's xvdb is not taken: b'no room': its frontend is"),
        (FRONT, "state", b"6", "guest 1's xvdb is not taken: its frontend is Closed"),
    ],
)
def test_what_cannot_be_is_taken_away(
    store: XenStoreClient, path: str, key: str, value: bytes, why: str
) -> None:
    plugging = attaching(store)
    if path == FRONT:
        store.write(f"{BACK}/state", b"2")
    store.write(f"{path}/{key}", value)
    if path == FRONT and key != "state":  # who is Closed is not waited for
        assert follows(store, plugging, lambda: store.read(f"{BACK}/state") == b"5")
        assert store.read(f"{BACK}/online") == b"0"
        store.write(f"{FRONT}/state", b"6")  # the guest lets go
    assert follows(store, plugging, lambda: plugging.ended)
    assert plugging.failure.startswith(why)
    assert not store.exists(FRONT) and not store.exists(BACK)


def test_nobody_is_waited_for_for_ever(
    store: XenStoreClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolstack.hotplug.UNDO_TIMEOUT_S", 0.05)
    plugging = attaching(store)
    store.write(f"{BACK}/state", b"2")
    is_told(store, plugging)
    plugging.late_at = 0
    assert follows(store, plugging, lambda: plugging.ended)
    states = "its frontend is Initialising, its backend InitWait"
    assert plugging.failure == f"guest 1's xvdb is not Connected within 10 s: {states}"
    assert not store.exists(FRONT) and not store.exists(BACK)


def test_it_goes_in_xen_s_order(store: XenStoreClient) -> None:
    plugging = detaching(store)
    assert store.read(f"{BACK}/state") == b"5"
    for path in (FRONT, BACK):
        is_told(store, plugging)
        assert not plugging.ended and store.exists(FRONT) and store.exists(BACK)
        store.write(f"{path}/state", b"6")
    assert follows(store, plugging, lambda: plugging.ended)
    assert plugging.failure == ""
    assert not store.exists(FRONT) and not store.exists(BACK)
    is_told(store, plugging)
    store.write(f"{FRONT}/state", b"1")
    assert store.wait_event(0.1) is None  # it watches no more


def test_forced_it_asks_no_guest(store: XenStoreClient) -> None:
    plugging = detaching(store, force=True)
    assert not store.exists(FRONT)
    is_told(store, plugging)
    assert not plugging.ended  # dom0 is to let go of it
    store.write(f"{BACK}/state", b"6")
    assert follows(store, plugging, lambda: plugging.ended)
    assert plugging.failure == "" and not store.exists(BACK)


def test_one_that_is_not_let_go_stays(store: XenStoreClient) -> None:
    plugging = detaching(store)
    is_told(store, plugging)
    plugging.late_at = 0
    assert follows(store, plugging, lambda: plugging.ended)
    states = "its frontend is Connected, its backend Closing; --force takes it away"
    assert plugging.failure == f"guest 1's xvdb is not let go within 10 s: {states}"
    assert store.exists(FRONT) and store.exists(BACK)
    again = Detaching(store, 1, "xvdb", force=False)  # and may be asked again
    store.write(f"{BACK}/state", b"6")
    assert follows(store, again, lambda: again.ended) and again.failure == ""


def test_forced_it_goes_from_the_store_whatever_dom0_does(store: XenStoreClient) -> None:
    plugging = detaching(store, force=True)
    is_told(store, plugging)
    plugging.late_at = 0
    assert follows(store, plugging, lambda: plugging.ended)
    assert "is not let go within 10 s: its frontend is Unknown" in plugging.failure
    assert not store.exists(BACK)


def test_what_is_not_there_cannot_go(store: XenStoreClient) -> None:
    plugging = Detaching(store, 1, "xvdb", force=False)
    assert follows(store, plugging, lambda: plugging.ended)
    assert plugging.failure == "guest 1's xvdb is not there"


def test_a_guest_that_dies_is_named(store: XenStoreClient) -> None:
    for plugging in (detaching(store), Detaching(store, 1, "xvdb", force=True)):
        plugging.guest_died("guest-1 was killed by SIGKILL")
        assert follows(store, plugging, lambda p=plugging: p.ended)  # type: ignore[misc]
        assert type(plugging.error()) is GuestFailed
        assert str(plugging.error()) == "guest-1 was killed by SIGKILL"
    late = Detaching(store, 2, "xvdb", force=False)
    assert follows(store, late, lambda: late.ended)
    assert type(late.error()) is MachineError
