"""What the toolstack has written for a virtual disk, as dom0's backend understands it.

Owns: which keys of a backend's directory must be there before the backend begins, and what they may
say. They are written in any order, by hand too: what is not there is waited for; what is wrong has
a line for the directory's `error` node, and is looked at again whenever something changes there.
"""

from collections.abc import Mapping
from typing import Final

from backend.stores import RamStore
from common.abi import SECTOR_SIZE
from common.faults import LocalFault, PeerFault
from common.xenbus import frontend_path, parse_number, shown

NEEDED: Final = ("state", "online", "frontend", "frontend-id", "mode", "params")
MIB_MAX: Final = (1 << 63) // (1 << 20) - 1
DEVICE_MAX: Final = 0xFFFFFFFF


def parse_name(name: str, maximum: int) -> int | None:
    """A directory's name as the number it is; None if it is none, or not the usual way to write it
    ("051712" is no 51712)."""
    number = parse_number(name.encode(), maximum)
    return number if number is not None and str(number) == name else None


def read_plug(entries: Mapping[str, bytes], domid: int, device: int) -> bytes | None:
    """The `params` of a new disk, or None while not all is there. Raises PeerFault."""
    if any(key not in entries for key in NEEDED):
        return None
    if (entries["state"], entries["online"]) != (b"1", b"1"):
        return None
    expected = frontend_path(domid, device)
    if entries["frontend"] != expected.encode():
        raise PeerFault(f"frontend {shown(entries['frontend'])} is not '{expected}'")
    if entries["frontend-id"] != str(domid).encode():
        raise PeerFault(f"frontend-id {shown(entries['frontend-id'])} is not '{domid}'")
    if b"w" not in entries["mode"]:
        raise PeerFault(f"mode {shown(entries['mode'])} is not served: only 'w'")
    return entries["params"]


def open_disk(params: bytes) -> RamStore:
    """The store that `params` names. Raises PeerFault; LocalFault, if it cannot be had."""
    kind, colon, size = params.partition(b":")
    if (kind, colon) != (b"ram", b":"):
        raise PeerFault(f"params {shown(params)} name no store: 'ram:MIB' does")
    mib = parse_number(size, MIB_MAX)
    if not mib:
        raise PeerFault(f"params {shown(params)} have no size in MiB of at least 1")
    try:
        return RamStore(mib * (1 << 20) // SECTOR_SIZE)
    except (OSError, OverflowError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LocalFault(f"params {shown(params)}: no such ramdisk can be had: {reason}") from error
