"""Looking in: what lies in the memory of a machine that runs, or rests, for one of its disks.

Owns: where each part is had from. Ring page and event words are in the guest's own segments, which
the toolstack maps; grant table and maptrack are the hypervisor's and the tree dom0's, who are
asked. All are copies, each made at its own moment: of a disk that is busy they may not agree.
Rule: the guest's part is the guest's to write: what it claims is checked before it is followed.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

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

PARTS: Final = ("ring", "grants", "maptrack", "tree", "events")

Ask = Callable[..., Any]  # a process by name, a command, its arguments: the answer


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


def look(memory: MachineMemory, store: XenStoreClient, ask: Ask, domid: int, device: int) -> View:
    """Look at disk `device` of `domid`. Raises HypercallError if there is no such domain."""
    table = _grant_table(ask, domid)
    return View(
        _ring(memory, store, table, domid, device),
        table,
        _maptrack(ask, domid),
        _tree(ask, domid, device),
        events(memory.segment("event", domid).copy()),
    )


def _ring(
    memory: MachineMemory, store: XenStoreClient, table: GrantTable, domid: int, device: int
) -> RingPage | None:
    path = f"{frontend_path(domid, device)}/ring-ref"
    gref = parse_number(store.read(path) if store.exists(path) else None, table.nr_entries)
    ram = memory.segment("ram", domid)
    frames = [grant.frame for grant in table.grants if grant.gref == gref]
    if not frames or frames[0] >= len(ram) // abi.XEN_PAGE_SIZE:
        return None
    start = frames[0] * abi.XEN_PAGE_SIZE
    return ring_page(ram[start : start + abi.XEN_PAGE_SIZE].copy())


def _grant_table(ask: Ask, domid: int) -> GrantTable:
    pieces, nr_entries = list[tuple[bytes, bytes]](), 0
    first = 0
    while not pieces or pieces[-1][0]:
        nr_entries, grefs, entries = ask("hypervisor", "grants", domid, first)
        pieces.append((grefs, entries))
        first = _next(grefs)
    return granted_entries(nr_entries, *_joined(pieces, abi.GRANT_ENTRY_V1))


def _maptrack(ask: Ask, domid: int) -> Maptrack:
    """dom0's mappings of the guest's pages."""
    pieces = list[tuple[bytes, bytes]]()
    first = 0
    while not pieces or pieces[-1][0]:
        handles, entries = ask("hypervisor", "maptrack", abi.DOMID_0, first)
        pieces.append((handles, entries))
        first = _next(handles)
    all_handles, all_entries = _joined(pieces, MAPTRACK_ENTRY)
    ours = all_entries["domid"] == domid
    return maptrack(all_handles[ours], all_entries[ours])


def _next(places: bytes) -> int:
    return int(np.frombuffer(places, "<u4")[-1]) + 1 if places else 0


def _joined(pieces: list[tuple[bytes, bytes]], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    places, entries = (b"".join(part) for part in zip(*pieces, strict=True))
    return np.frombuffer(places, "<u4"), np.frombuffer(entries, dtype)


def _tree(ask: Ask, domid: int, device: int) -> Tree | None:
    """What dom0 keeps mapped for the disk."""
    head, pieces = np.zeros(0, TREE), list[np.ndarray]()
    while not len(head) or sum(map(len, pieces)) < head["cap"][0]:
        answered = ask("dom0", "tree", domid, device, sum(map(len, pieces)))
        if answered is None:
            return None
        head = np.frombuffer(answered[0], TREE)
        pieces.append(np.frombuffer(answered[1], NODE))
        if not len(pieces[-1]):
            break
    return tree(head, np.concatenate(pieces)) if head["cap"][0] else None
