"""What the toolstack writes into the store for a virtual disk, and what it removes from it.

What is written to plug one in is `machine/plug.py`'s.
"""

from collections.abc import Iterable
from functools import partial

from common.xenbus import backend_path
from common.xenstore import XenStoreClient
from common.xenstore_talks import write_if_there
from machine.plug import XVDA, plug
from toolstack.disks import Disk


def plug_in(store: XenStoreClient, disks: Iterable[Disk]) -> None:
    """Plug these in."""
    for disk in disks:
        create_vbd(store, disk.domid, disk.spec.params, disk.device, disk.read_only)


def create_vbd(
    store: XenStoreClient, domid: int, target: str, device: int = XVDA, read_only: bool = False
) -> None:
    """Plug a disk into `domid`, as xvda if nothing else is said."""
    store.run(plug(domid, target, device, read_only))


def take_offline(store: XenStoreClient, domid: int, device: int = XVDA) -> None:
    """Tell the backend that this disk, once closed, is not to come back. It may be gone."""
    talk = partial(write_if_there, backend_path(domid, device), {"online": 0})
    if store.run(talk()) == "again":  # somebody writes there all the time: not waited for
        store.run(talk(whole=False))


def forget_domain(store: XenStoreClient, domid: int) -> None:
    """Remove the backends of a domain's disks, and its own directory, as `xl destroy` does."""
    for path in (f"/local/domain/0/backend/vbd/{domid}", f"/local/domain/{domid}"):
        if store.exists(path):
            store.rm(path)
