"""What the toolstack writes into the store for a virtual disk, as `xl` does: both directories.

Rule: the backend's directory first, or a frontend that looks finds no other end and closes.
Source: `tests/golden/handshake-writes.txt`.
"""

from typing import Final

from common.xenbus import INITIALISING, backend_path, frontend_path
from common.xenstore_exchange import Request, Talk, value_of
from common.xenstore_wire import MessageType, pack_strings

XVDA: Final = 51712  # 202 << 8: Xen's block major, first disk


def plug(domid: int, disk_mib: int, device: int = XVDA) -> Talk[None]:
    """Plug a ramdisk of `disk_mib` MiB into `domid`, as xvda if nothing else is said."""
    front, back = frontend_path(domid, device), backend_path(domid, device)
    requests: list[Request] = []
    for path, perms in ((back, (b"n0", b"r%d" % domid)), (front, (b"n%d" % domid, b"r0"))):
        requests.append(Request(MessageType.MKDIR, path))
        requests.append(Request(MessageType.SET_PERMS, path, pack_strings(*perms)))
    for path, key, value in (
        (back, "frontend", front),
        (back, "frontend-id", domid),
        (back, "online", 1),
        (back, "params", f"ram:{disk_mib}"),
        (back, "type", "phy"),
        (back, "mode", "w"),
        (back, "dev", "xvda"),
        (back, "device-type", "disk"),
        (back, "physical-device", "1:0"),
        (back, "hotplug-status", "connected"),
        (back, "state", INITIALISING),
        (front, "backend", back),
        (front, "backend-id", 0),
        (front, "virtual-device", device),
        (front, "device-type", "disk"),
        (front, "state", INITIALISING),
    ):
        requests.append(Request(MessageType.WRITE, f"{path}/{key}", str(value).encode()))
    for reply in (yield requests):
        value_of(reply)
