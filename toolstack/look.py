"""Looking in: what lies in the memory of a machine that runs, or rests, for one of its disks.

Owns: where each part is had from, and how all of it is shown. Ring page and event words are in the
guest's own segments, which the toolstack maps; grant table and maptrack are the hypervisor's and
the tree dom0's, who are asked. All are copies, each made at its own moment: of a disk that is busy
they may not agree. A `Raw` is what was copied, in plain bytes: it goes from process to process.
Rule: the guest's part is the guest's to write: what it claims is checked before it is followed.
"""

from typing import Final, NamedTuple

import numpy as np

from backend.persistent_grants import NODE, TREE
from common import abi
from common.machine_memory import MachineMemory
from common.xenbus import frontend_path, parse_number
from common.xenstore import XenStoreClient
from hypervisor.maptrack import MAPTRACK_ENTRY
from looking.events import Events, events
from looking.grants import GrantTable, Maptrack, granted_entries, maptrack
from looking.ring_page import RingPage, ring_page
from looking.tree import Tree, tree
from toolstack.conversation import Asking
from toolstack.failures import MachineError

PARTS: Final = ("ring", "grants", "maptrack", "tree", "events")


class Raw(NamedTuple):
    """One disk's, undecoded. grefs, handles: u32, the places of `entries` and `mappings`; tree: its
    head and its nodes."""

    ring: bytes | None
    nr_entries: int
    grefs: bytes
    entries: bytes
    handles: bytes
    mappings: bytes
    tree: list[bytes] | None
    events: bytes


class View(NamedTuple):
    """One disk's: the ring's page and the tree are None where there is none."""

    ring: RingPage | None
    grants: GrantTable
    maptrack: Maptrack
    tree: Tree | None
    events: Events

    def text(self, parts: tuple[str, ...] = PARTS) -> str:
        """Some of it, one below the other."""
        nothing = {"ring": "no ring is shared", "tree": "nothing is kept mapped"}
        return "\n\n".join(
            f"{part}: {shown if (shown := getattr(self, part)) is not None else nothing[part]}"
            for part in parts
        )


def view_of(raw: Raw) -> View:
    """All of it, decoded."""
    entries = np.frombuffer(raw.entries, abi.GRANT_ENTRY_V1)
    mappings = np.frombuffer(raw.mappings, MAPTRACK_ENTRY)
    kept = None if raw.tree is None else np.frombuffer(raw.tree[0], TREE)
    return View(
        None if raw.ring is None else ring_page(np.frombuffer(raw.ring, np.uint8).copy()),
        granted_entries(raw.nr_entries, np.frombuffer(raw.grefs, "<u4"), entries),
        maptrack(np.frombuffer(raw.handles, "<u4"), mappings),
        None
        if kept is None or raw.tree is None or not kept["cap"][0]
        else tree(kept, np.frombuffer(raw.tree[1], NODE)),
        events(np.frombuffer(raw.events, np.uint8).copy()),
    )


def asking(memory: MachineMemory, store: XenStoreClient, domid: int, device: int) -> Asking:
    """Look at disk `device` of `domid`: asks, and returns a Raw. Raises HypercallError if there is
    no such domain, XenStoreError."""
    nr_entries, grefs, entries = yield from _grant_table(domid)
    ring = _ring(memory, store, grefs, entries, nr_entries, domid, device)
    handles, mappings = yield from _maptrack(domid)
    kept = yield from _tree(domid, device)
    words = memory.segment("event", domid).tobytes()
    return Raw(ring, nr_entries, grefs, entries, handles, mappings, kept, words)


def _ring(
    memory: MachineMemory,
    store: XenStoreClient,
    grefs: bytes,
    entries: bytes,
    nr_entries: int,
    domid: int,
    device: int,
) -> bytes | None:
    path = f"{frontend_path(domid, device)}/ring-ref"
    gref = parse_number(store.read(path) if store.exists(path) else None, nr_entries)
    ram = memory.segment("ram", domid)
    frames = np.frombuffer(entries, abi.GRANT_ENTRY_V1)["frame"]
    frames = frames[np.frombuffer(grefs, "<u4") == gref]
    if not len(frames) or frames[0] >= len(ram) // abi.XEN_PAGE_SIZE:
        return None
    start = int(frames[0]) * abi.XEN_PAGE_SIZE
    return ram[start : start + abi.XEN_PAGE_SIZE].tobytes()


def _grant_table(domid: int) -> Asking:
    pieces, nr_entries = list[tuple[bytes, bytes]](), 0
    first = 0
    while not pieces or pieces[-1][0]:
        nr_entries, grefs, entries = yield "hypervisor", ("grants", domid, first)
        pieces.append((grefs, entries))
        first = _next(grefs)
    return nr_entries, *_joined(pieces)


def _maptrack(domid: int) -> Asking:
    """dom0's mappings of the guest's pages."""
    pieces = list[tuple[bytes, bytes]]()
    first, more = 0, True
    while more:
        handles, entries = yield "hypervisor", ("maptrack", abi.DOMID_0, first)
        first, more = _next(handles), bool(handles)
        all_entries = np.frombuffer(entries, MAPTRACK_ENTRY)
        ours = all_entries["domid"] == domid
        places = np.frombuffer(handles, "<u4")[ours]
        pieces.append((places.tobytes(), all_entries[ours].tobytes()))
    return _joined(pieces)


def _next(places: bytes) -> int:
    return int(np.frombuffer(places, "<u4")[-1]) + 1 if places else 0


def _joined(pieces: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    places, entries = (b"".join(part) for part in zip(*pieces, strict=True))
    return places, entries


def _tree(domid: int, device: int) -> Asking:
    """What dom0 keeps mapped for the disk, if it has a ring, and dom0 lives."""
    head, pieces, cap = b"", list[bytes](), 1
    while sum(map(len, pieces)) < cap * NODE.itemsize:
        first = sum(map(len, pieces)) // NODE.itemsize
        try:
            answered = yield "dom0", ("tree", domid, device, first)
        except MachineError:
            return None
        if answered is None:
            return None
        head, piece = answered
        cap = int(np.frombuffer(head, TREE)["cap"][0])
        pieces.append(piece)
        if not piece:
            break
    return [head, b"".join(pieces)]
