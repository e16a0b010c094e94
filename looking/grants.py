"""A domain's grant table, and what is mapped of it: the entries shared with the hypervisor, and the
mapper's maptrack.

Owns: how both are decoded. The table is the guest's to write at any time: its copy may show an
entry half made.
Source: Xen's `grant_table.h`; `hypervisor/maptrack.py`.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from common import abi
from looking.table import table

FLAGS: Final = (
    (abi.GTF_READONLY, "readonly"),
    (abi.GTF_READING, "reading"),
    (abi.GTF_WRITING, "writing"),
)
TYPES: Final = {abi.GTF_PERMIT_ACCESS: "permit_access", abi.GTF_ACCEPT_TRANSFER: "accept_transfer"}
SHOWN_MAX: Final = 64  # rows of a table as text; all of them are in it


class Grant(NamedTuple):
    """An entry that is not invalid."""

    gref: int
    flags: tuple[str, ...]
    domid: int
    frame: int


class Mapping(NamedTuple):
    """A live maptrack handle: grant `ref` of `domid`, at `host_addr` of who mapped it."""

    handle: int
    domid: int
    ref: int
    frame: int
    host_addr: int
    readonly: bool


class GrantTable(NamedTuple):
    """nr_entries: of the whole table; grants: those that are not invalid, by gref."""

    nr_entries: int
    grants: tuple[Grant, ...]

    def __str__(self) -> str:
        rows = [(g.gref, " ".join(g.flags), g.domid, g.frame) for g in self.grants]
        mapped = sum("reading" in grant.flags for grant in self.grants)
        head = f"{len(rows)} of {self.nr_entries} entries are granted, {mapped} are mapped"
        return f"{head}\n{_shortened(('gref', 'flags', 'to', 'frame'), rows, 'nothing is granted')}"


class Maptrack(NamedTuple):
    """The mappings that stand, by handle."""

    mappings: tuple[Mapping, ...]

    def __str__(self) -> str:
        rows = [
            (m.handle, m.domid, m.ref, m.frame, f"{m.host_addr:#x}", "r" if m.readonly else "rw")
            for m in self.mappings
        ]
        columns = ("handle", "domid", "gref", "frame", "host address", "access")
        return f"{len(rows)} mappings\n{_shortened(columns, rows, 'nothing is mapped')}"


def _shortened(head: tuple[str, ...], rows: Sequence[tuple[object, ...]], nothing: str) -> str:
    text = table(head, rows[:SHOWN_MAX], nothing)
    more = len(rows) - SHOWN_MAX
    return f"{text}\n... and {more} more" if more > 0 else text


def grant_table(frames: np.ndarray) -> GrantTable:
    """Decode a copy of a domain's grant-table `frames` (u8)."""
    entries = frames.view(abi.GRANT_ENTRY_V1)
    (granted,) = np.nonzero(entries["flags"] & abi.GTF_TYPE_MASK)
    return granted_entries(len(entries), granted, entries[granted])


def granted_entries(nr_entries: int, grefs: np.ndarray, entries: np.ndarray) -> GrantTable:
    """The same, of a table of `nr_entries` whose `entries` (GRANT_ENTRY_V1) `grefs` are granted."""
    return GrantTable(
        nr_entries,
        tuple(_grant(int(gref), entry) for gref, entry in zip(grefs, entries, strict=True)),
    )


def _grant(gref: int, entry: np.void) -> Grant:
    flags = int(entry["flags"])
    kind = TYPES.get(flags & abi.GTF_TYPE_MASK, f"type {flags & abi.GTF_TYPE_MASK}?")
    names = tuple(name for bit, name in FLAGS if flags & bit)
    return Grant(gref, (kind, *names), int(entry["domid"]), int(entry["frame"]))


def maptrack(handles: np.ndarray, entries: np.ndarray) -> Maptrack:
    """The live ones of `entries` (MAPTRACK_ENTRY), whose handles are `handles`."""
    return Maptrack(
        tuple(
            Mapping(
                int(handle),
                int(entry["domid"]),
                int(entry["ref"]),
                int(entry["frame"]),
                int(entry["host_addr"]),
                bool(entry["flags"] & abi.GNTMAP_READONLY),
            )
            for handle, entry in zip(handles, entries, strict=True)
            if entry["flags"]
        )
    )
