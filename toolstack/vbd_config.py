"""What the toolstack writes into the store for a virtual disk, and what it removes from it.

What is written to plug one in, or again, is `machine/plug.py`'s.
"""

import time
from collections.abc import Iterable
from functools import partial

from common.xenbus import backend_path
from common.xenstore import XenStoreClient, XenStoreError
from common.xenstore_connection import REPLY_TIMEOUT_S
from common.xenstore_talks import Outcome, children, write_if_there
from machine.plug import XVDA, plug, plug_again
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


def plug_all_again(store: XenStoreClient) -> None:
    """dom0 has died: another is to begin with every disk that there is. All are told at once.

    Raises XenStoreError.
    """
    root = "/local/domain/0/backend/vbd"
    keys = {
        (int(domid), int(device))
        for domid in filter(str.isdigit, store.run(children(root)))
        for device in filter(str.isdigit, store.run(children(f"{root}/{domid}")))
    }

    def tell(key: tuple[int, int]) -> None:
        store.hold(plug_again(*key), partial(told, key))

    def told(key: tuple[int, int], outcome: Outcome) -> None:
        if outcome == "again":
            tell(key)
        else:
            keys.remove(key)

    for key in list(keys):
        tell(key)
    deadline = time.monotonic() + REPLY_TIMEOUT_S
    while keys:
        if (left := deadline - time.monotonic()) < 0:
            raise XenStoreError("ETIMEDOUT", root, "TRANSACTION_END")
        store.receive(left)


def forget_domain(store: XenStoreClient, domid: int) -> None:
    """Remove the backends of a domain's disks, and its own directory, as `xl destroy` does."""
    for path in (f"/local/domain/0/backend/vbd/{domid}", f"/local/domain/{domid}"):
        if store.exists(path):
            store.rm(path)
