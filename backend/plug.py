"""What the toolstack has written for a virtual disk, as dom0's backend understands it.

Owns: which keys of a backend's directory must be there before the backend begins, and what they may
say. They are written in any order, by hand too: what is not there is waited for; what is wrong has
a line for the directory's `error` node, and is looked at again whenever something changes there.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from backend.stores import NullStore, RamStores, Store
from common.abi import SECTOR_SIZE
from common.faults import LocalFault, PeerFault
from common.xenbus import frontend_path, parse_number, shown

NEEDED: Final = ("state", "online", "frontend", "frontend-id", "mode", "params")
DEVICE_MAX: Final = 0xFFFFFFFF
NBYTES_MAX: Final = 64 << 30
UNITS: Final = {b"": 1, b"k": 1 << 10, b"m": 1 << 20, b"g": 1 << 30}
TARGET: Final = re.compile(
    rb"(?:null|(?P<ram>ram)):(?P<size>[0-9]{1,12})(?P<unit>[kmgKMG]?)"
    rb"(?(ram)(?:,name=(?P<name>[A-Za-z0-9_.-]{1,32}))?)"
)
FORM: Final = "'ram:SIZE[,name=NAME]' or 'null:SIZE', as in 'ram:64m'"


class Plug(NamedTuple):
    """A disk as it is plugged in. params: its target, see `open_disk`."""

    params: bytes
    read_only: bool


def parse_name(name: str, maximum: int) -> int | None:
    """A directory's name as the number it is; None if it is none, or not the usual way to write it
    ("051712" is no 51712)."""
    number = parse_number(name.encode(), maximum)
    return number if number is not None and str(number) == name else None


def read_plug(entries: Mapping[str, bytes], domid: int, device: int) -> Plug | None:
    """What a new disk is to be, or None while not all is there. Raises PeerFault."""
    if any(key not in entries for key in NEEDED):
        return None
    if (entries["state"], entries["online"]) != (b"1", b"1"):
        return None
    expected = frontend_path(domid, device)
    if entries["frontend"] != expected.encode():
        raise PeerFault(f"frontend {shown(entries['frontend'])} is not '{expected}'")
    if entries["frontend-id"] != str(domid).encode():
        raise PeerFault(f"frontend-id {shown(entries['frontend-id'])} is not '{domid}'")
    if not re.fullmatch(b"r|w!?", mode := entries["mode"]):
        raise PeerFault(f"mode {shown(mode)} is neither 'r' nor 'w'")
    return Plug(entries["params"], mode == b"r")


def open_disk(params: bytes, domid: int, device: int, rams: RamStores) -> Store:
    """The store that `params` names. Raises PeerFault; LocalFault, if it cannot be had.

    A ram disk's memory is that of its name, or of itself.
    """
    target = TARGET.fullmatch(params)
    if target is None:
        raise PeerFault(f"params {shown(params)} name no disk: {FORM} does")
    nbytes = int(target["size"]) * UNITS[target["unit"].lower()]
    if not SECTOR_SIZE <= nbytes <= NBYTES_MAX or nbytes % SECTOR_SIZE:
        raise PeerFault(
            f"params {shown(params)} have a size that is no multiple of {SECTOR_SIZE}"
            f" in {SECTOR_SIZE}..{NBYTES_MAX >> 30}g"
        )
    if not target["ram"]:
        return NullStore(nbytes // SECTOR_SIZE)
    key = target["name"].decode() if target["name"] else f"{domid}/{device}"
    try:
        return rams.open(key, nbytes // SECTOR_SIZE)
    except (OSError, LocalFault) as error:
        reason = getattr(error, "strerror", None) or error
        raise LocalFault(f"params {shown(params)}: no such ramdisk can be had: {reason}") from error
