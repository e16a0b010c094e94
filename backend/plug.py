"""What the toolstack has written for a virtual disk, as dom0's backend understands it.

Owns: which keys of a backend's directory must be there before the backend begins, and what they may
say. They are written in any order, by hand too: what is not there is waited for; what is wrong has
a line for the directory's `error` node, and is looked at again whenever something changes there.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from backend.file_store import FileStore, open_file
from backend.nbd_store import open_nbd
from backend.store_jobs import LaterStore
from backend.stores import NullStore, RamStore, RamStores, Store
from backend.volatile_store import VolatileStore
from common.abi import SECTOR_SIZE
from common.faults import LocalFault, PeerFault
from common.targets import Target, read_target
from common.xenbus import frontend_path, parse_number, shown

NEEDED: Final = ("state", "online", "frontend", "frontend-id", "mode", "params")
DEVICE_MAX: Final = 0xFFFFFFFF


class Plug(NamedTuple):
    """A disk as it is plugged in. params: its target (`common/targets.py`)."""

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


def target_of(params: bytes) -> Target:
    """What `params` say. Raises PeerFault."""
    try:
        return read_target(params.decode())
    except ValueError as error:
        raise PeerFault(f"params {shown(params)} name no disk: {error}") from error


def opens_at_once(target: Target) -> bool:
    """Can `open_disk` be waited for by who has other things to do?"""
    return target.kind in ("ram", "null")


def resize_store(store: Store | LaterStore, nr_sectors: int) -> None:
    """The store has so many sectors now. Whoever says so has seen to it."""
    assert isinstance(store, RamStore | NullStore | FileStore)
    if isinstance(store, RamStore):
        store.resize(nr_sectors)
    else:
        store.nr_sectors = nr_sectors


def open_disk(
    target: Target, domid: int, device: int, rams: RamStores, read_only: bool
) -> Store | LaterStore:
    """The store that `target` names. Raises LocalFault, if it cannot be had.

    A ram disk's memory is that of its name, or of itself.
    """
    nr_sectors = target.nr_bytes // SECTOR_SIZE
    store: Store
    match target.kind:
        case "null":
            return NullStore(nr_sectors, target.sector_size)
        case "nbd":
            return open_nbd(target.where, read_only, target.sector_size, target.timeout_s)
        case "file":
            path = target.path_of(domid)
            store = open_file(path, read_only, target.cache, target.sector_size)
        case _:
            key = target.name or f"{domid}/{device}"
            try:
                store = rams.open(key, nr_sectors, target.sector_size, target.volatile)
            except OSError as error:
                reason = error.strerror or error
                raise LocalFault(f"no ramdisk of {target.nr_bytes} bytes: {reason}") from error
    return VolatileStore(store, target.seed) if target.volatile else store
