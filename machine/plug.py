"""What the toolstack writes into the store for a virtual disk, as `xl` does: both directories, and
how they go again; and what it writes there once the backend's process has died.

Rule: the backend's directory first, or a frontend that looks finds no other end and closes.
Source: `tests/golden/handshake-writes.txt`.
"""

from typing import Final, Literal

from common.xenbus import (
    CLOSED,
    CLOSING,
    CONNECTED,
    INITIALISED,
    INITIALISING,
    backend_path,
    disk_name,
    frontend_path,
    parse_state,
)
from common.xenstore_exchange import Reply, Request, Talk, value_of
from common.xenstore_talks import BEGIN, Outcome, end, transaction_id
from common.xenstore_wire import MessageType, pack_strings

XVDA: Final = 51712  # 202 << 8: Xen's block major, first disk

Plugged = Literal["committed", "again", "there"]

# What a backend writes into its directory, besides `state`.
BACKENDS_KEYS: Final = (
    "error", "stalled", "feature-max-indirect-segments", "multi-queue-max-queues",
    "max-ring-page-order", "feature-persistent", "sectors", "info", "sector-size",
    "physical-sector-size", "feature-flush-cache", "feature-barrier", "feature-discard",
    "discard-granularity", "discard-alignment", "discard-secure",
)  # fmt: skip


def plug(domid: int, target: str, device: int = XVDA, read_only: bool = False) -> Talk[None]:
    """Plug a disk into `domid`, as xvda if nothing else is said; target: `backend/plug.py`'s."""
    for reply in (yield _plugging(domid, target, device, read_only)):
        value_of(reply)


def plug_new(domid: int, target: str, device: int, read_only: bool) -> Talk[Plugged]:
    """The same where nothing is yet, in one transaction. "there": something is, and nothing is
    written."""
    tx_id = transaction_id((yield [BEGIN])[0])
    ends = (backend_path(domid, device), frontend_path(domid, device))
    found = yield [Request(MessageType.READ, f"{path}/state", tx_id=tx_id) for path in ends]
    if any(isinstance(reply, bytes) for reply in found):
        yield [end(tx_id, "F")]
        return "there"
    requests = _plugging(domid, target, device, read_only)
    *written, ended = yield [*(each._replace(tx_id=tx_id) for each in requests), end(tx_id, "T")]
    for reply in written:
        value_of(reply)
    return "committed" if isinstance(ended, bytes) else "again"


def ask_to_unplug(domid: int, device: int, force: bool, whole: bool = True) -> Talk[Outcome]:
    """Tell a disk's backend to close, and that it is not to come back, as libxl does. force: and
    take the frontend's directory away, whether that answers or not. "gone": it is not there.
    One that is Initialising nobody has promised anything of: it is Closed.

    not whole: in no transaction, which whoever writes there all the time could spoil for ever.
    """
    front, back = frontend_path(domid, device), backend_path(domid, device)
    tx_id = transaction_id((yield [BEGIN])[0]) if whole else 0
    (state,) = yield [Request(MessageType.READ, f"{back}/state", tx_id=tx_id)]
    if not isinstance(state, bytes):
        if whole:
            yield [end(tx_id, "F")]
        return "gone"
    changes = [Request(MessageType.WRITE, f"{back}/online", b"0", tx_id)]
    if _state(state) != CLOSED:
        then = CLOSED if _state(state) == INITIALISING else CLOSING
        changes.append(Request(MessageType.WRITE, f"{back}/state", str(then).encode(), tx_id))
    if force:
        changes.append(Request(MessageType.RM, front, tx_id=tx_id))  # it may be gone
    return (yield from _all(changes, tx_id))


def forget_disk(domid: int, device: int, whole: bool = True) -> Talk[Outcome]:
    """Remove both directories of a disk, as far as they are there. whole: see `ask_to_unplug`."""
    tx_id = transaction_id((yield [BEGIN])[0]) if whole else 0
    ends = (frontend_path(domid, device), backend_path(domid, device))
    return (yield from _all([Request(MessageType.RM, path, tx_id=tx_id) for path in ends], tx_id))


def _all(changes: list[Request], tx_id: int) -> Talk[Outcome]:
    """Make them, and end the transaction, if they are in one."""
    *_, ended = yield [*changes, *([end(tx_id, "T")] if tx_id else [])]
    return "committed" if isinstance(ended, bytes) or not tx_id else "again"


def _plugging(domid: int, target: str, device: int, read_only: bool) -> list[Request]:
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
    return requests


def own_directory(domid: int) -> Talk[None]:
    """A new domain's own directory, which it may read (libxl's `roperm`): it watches there which
    devices come and go."""
    path = f"/local/domain/{domid}"
    perms = pack_strings(b"n0", b"r%d" % domid)
    requests = [Request(MessageType.MKDIR, path), Request(MessageType.SET_PERMS, path, perms)]
    for reply in (yield requests):
        value_of(reply)


def plug_again(domid: int, device: int) -> Talk[Outcome]:
    """A disk's backend has died: have another begin with it, and its frontend begin again.

    In one transaction: the directory is as when it was plugged in, and a frontend that had its ring
    published is announced as Initialising, so that no backend takes that for what it must not map.
    One that was to go is Closed, as its backend would have left it. "gone": it is not there.
    """
    front, back = f"{frontend_path(domid, device)}/state", backend_path(domid, device)
    tx_id = transaction_id((yield [BEGIN])[0])

    def read(path: str) -> Request:
        return Request(MessageType.READ, path, tx_id=tx_id)

    def write(path: str, state: int) -> Request:
        return Request(MessageType.WRITE, path, str(state).encode(), tx_id)

    keys = [f"{back}/{key}" for key in BACKENDS_KEYS]
    paths = [f"{back}/state", f"{back}/online", front, *keys]
    there, online, theirs, *found = yield [read(path) for path in paths]
    if not isinstance(there, bytes):
        yield [end(tx_id, "F")]
        return "gone"
    changes = [write(f"{back}/state", CLOSED if online == b"0" else INITIALISING)]
    if online != b"0" and _state(theirs) in (INITIALISED, CONNECTED):
        changes.append(write(front, INITIALISING))
    for path, reply in zip(keys, found, strict=True):
        if isinstance(reply, bytes):
            changes.append(Request(MessageType.RM, path, tx_id=tx_id))
    *_, ended = yield [*changes, end(tx_id, "T")]
    return "committed" if isinstance(ended, bytes) else "again"


def _state(reply: Reply) -> int:
    return parse_state(reply if isinstance(reply, bytes) else None)
