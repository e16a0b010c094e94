"""What the store says of disks whose dom0 has died: as when they were plugged in."""

import shutil
import tempfile
from collections.abc import Iterator

import pytest

from common.xenbus import backend_path, frontend_path
from common.xenstore import XenStoreClient
from machine.plug import BACKENDS_KEYS, XVDA
from tests.xenstored.serving import Serving
from toolstack.vbd_config import create_vbd, plug_all_again

XVDB = XVDA + 16


@pytest.fixture
def store() -> Iterator[XenStoreClient]:
    run_dir = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    serving = Serving(run_dir)
    with XenStoreClient(serving.path) as client:
        yield client
    serving.stop()
    shutil.rmtree(run_dir)


def everything(store: XenStoreClient, path: str) -> dict[str, bytes]:
    return {name: store.read(f"{path}/{name}") for name in store.directory(path)}


def announced(store: XenStoreClient, domid: int, device: int) -> tuple[bytes, bytes]:
    paths = frontend_path(domid, device), backend_path(domid, device)
    return store.read(f"{paths[0]}/state"), store.read(f"{paths[1]}/state")


def test_a_backends_directory_is_as_it_was_plugged_in(store: XenStoreClient) -> None:
    disks = [(1, XVDA), (1, XVDB), (2, XVDA)]
    for domid, device in disks:
        create_vbd(store, domid, "ram:1m", device)
    before = [everything(store, backend_path(*disk)) for disk in disks]
    for disk in disks:
        for key in BACKENDS_KEYS:
            store.write(f"{backend_path(*disk)}/{key}", b"1")
        store.write(f"{backend_path(*disk)}/state", b"4")
    plug_all_again(store)
    assert [everything(store, backend_path(*disk)) for disk in disks] == before


@pytest.mark.parametrize(
    ("front", "then"),
    [(b"1", b"1"), (b"3", b"1"), (b"4", b"1"), (b"5", b"5"), (b"6", b"6"), (b"x", b"x")],
)
def test_a_frontend_that_has_published_its_ring_begins_again(
    store: XenStoreClient, front: bytes, then: bytes
) -> None:
    create_vbd(store, 1, "ram:1m")
    store.write(f"{frontend_path(1, XVDA)}/state", front)
    store.write(f"{backend_path(1, XVDA)}/state", b"4")
    plug_all_again(store)
    assert announced(store, 1, XVDA) == (then, b"1")


def test_a_disk_that_was_to_go_is_closed(store: XenStoreClient) -> None:
    create_vbd(store, 1, "ram:1m")
    store.write(f"{frontend_path(1, XVDA)}/state", b"4")
    store.write(f"{backend_path(1, XVDA)}/online", b"0")
    plug_all_again(store)
    assert announced(store, 1, XVDA) == (b"4", b"6")


def test_what_is_no_disk_is_let_alone(store: XenStoreClient) -> None:
    plug_all_again(store)
    for path in ("/local/domain/0/backend/vbd/x/51712", "/local/domain/0/backend/vbd/1/51712"):
        store.write(f"{path}/params", b"ram:1m")
    plug_all_again(store)
    assert store.directory("/local/domain/0/backend/vbd/1/51712") == ["params"]
