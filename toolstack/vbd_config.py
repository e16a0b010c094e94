"""What the toolstack writes into the store for a virtual disk, as `xl` does: both directories.

Rule: the backend's directory first, or a frontend that looks finds no other end and closes.
Source: `tests/golden/handshake-writes.txt`.
"""

from functools import partial
from typing import Final

from common.xenbus import INITIALISING, backend_path, frontend_path
from common.xenstore import XenStoreClient
from common.xenstore_talks import write_if_there

XVDA: Final = 51712  # 202 << 8: Xen's block major, first disk


def create_vbd(store: XenStoreClient, domid: int, disk_mib: int) -> None:
    """Plug a ramdisk of `disk_mib` MiB into `domid` as xvda."""
    front, back = frontend_path(domid, XVDA), backend_path(domid, XVDA)
    for path, perms in ((back, ["n0", f"r{domid}"]), (front, [f"n{domid}", "r0"])):
        store.mkdir(path)
        store.set_perms(path, perms)
    for key, value in (
        ("frontend", front),
        ("frontend-id", str(domid)),
        ("online", "1"),
        ("params", f"ram:{disk_mib}"),
        ("type", "phy"),
        ("mode", "w"),
        ("dev", "xvda"),
        ("device-type", "disk"),
        ("physical-device", "1:0"),
        ("hotplug-status", "connected"),
        ("state", str(INITIALISING)),
    ):
        store.write(f"{back}/{key}", value.encode())
    for key, value in (
        ("backend", back),
        ("backend-id", "0"),
        ("virtual-device", str(XVDA)),
        ("device-type", "disk"),
        ("state", str(INITIALISING)),
    ):
        store.write(f"{front}/{key}", value.encode())


def take_offline(store: XenStoreClient, domid: int) -> None:
    """Tell the backend that this disk, once closed, is not to come back. It may be gone."""
    talk = partial(write_if_there, backend_path(domid, XVDA), {"online": 0})
    if store.run(talk()) == "again":  # somebody writes there all the time: not waited for
        store.run(talk(whole=False))


def forget_domain(store: XenStoreClient, domid: int) -> None:
    """Remove the backends of a domain's disks, and its own directory, as `xl destroy` does."""
    for path in (f"/local/domain/0/backend/vbd/{domid}", f"/local/domain/{domid}"):
        if store.exists(path):
            store.rm(path)
