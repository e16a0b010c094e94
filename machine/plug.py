"""What the toolstack writes into the store for a virtual disk, as `xl` does: both directories.

Rule: the backend's directory first, or a frontend that looks finds no other end and closes.
Source: `tests/golden/handshake-writes.txt`.
"""

from typing import Final

from common.xenbus import INITIALISING, backend_path, disk_name, frontend_path
from common.xenstore_exchange import Request, Talk, value_of
from common.xenstore_wire import MessageType, pack_strings

XVDA: Final = 51712  # 202 << 8: Xen's block major, first disk


def plug(domid: int, target: str, device: int = XVDA, read_only: bool = False) -> Talk[None]:
    """Plug a disk into `domid`, as xvda if nothing else is said; target: `backend/plug.py`'s."""
    front, back = frontend_path(domid, device), backend_path(domid, device)
    requests: list[Request] = []
    for path, perms in ((back, (b"n0", b"r%d" % domid)), (front, (b"n%d" % domid, b"r0"))):
        requests.append(Request(MessageType.MKDIR, path))
        requests.append(Request(MessageType.SET_PERMS, path, pack_strings(*perms)))
    for path, key, value in (
        (back, "frontend", front),
        (back, "frontend-id", domid),
        (back, "online", 1),
        (back, "params", target),
        (back, "type", "phy"),
        (back, "mode", "r" if read_only else "w"),
        (back, "dev", disk_name(device)),
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
