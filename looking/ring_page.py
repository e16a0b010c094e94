"""A ring's page, decoded: its four indices, and what is in each slot.

Owns: which slot holds what. A slot is a request's from when the frontend writes it until the
backend answers; the answer covers the first 16 bytes of it, and what lies behind them is as the
request was. What was published when says nothing of a private index, so a slot that is being
written shows as what it was.
Source: Xen's `io/ring.h`, `io/blkif.h`.
"""

from typing import Final, NamedTuple

import numpy as np

from common import abi
from common.abi import XEN_PAGE_SIZE, blkif_ring_size
from looking.table import table

OPERATIONS: Final = {
    abi.BLKIF_OP_READ: "READ",
    abi.BLKIF_OP_WRITE: "WRITE",
    abi.BLKIF_OP_WRITE_BARRIER: "WRITE_BARRIER",
    abi.BLKIF_OP_FLUSH_DISKCACHE: "FLUSH_DISKCACHE",
    abi.BLKIF_OP_DISCARD: "DISCARD",
    abi.BLKIF_OP_INDIRECT: "INDIRECT",
}
STATUSES: Final = {
    abi.BLKIF_RSP_OKAY: "OKAY",
    abi.BLKIF_RSP_ERROR: "ERROR",
    abi.BLKIF_RSP_EOPNOTSUPP: "EOPNOTSUPP",
}

REQUEST: Final = "request"  # waiting, or being served
RESPONSE: Final = "response"  # the last answer
UNUSED: Final = "unused"

INDEX_MASK: Final = 0xFFFFFFFF


class Slot(NamedTuple):
    """ring_index: the free-running one that wrote it (None: nobody has); what: REQUEST, RESPONSE or
    UNUSED; segments: (gref, first_sect, last_sect) of a request's."""

    number: int
    what: str
    ring_index: int | None = None
    id: int = 0
    operation: str = ""
    sector: int | None = None
    status: str = ""
    segments: tuple[tuple[int, int, int], ...] = ()


class RingPage(NamedTuple):
    """The header's words, and every slot in the order of its number."""

    req_prod: int
    req_event: int
    rsp_prod: int
    rsp_event: int
    slots: tuple[Slot, ...]

    @property
    def outstanding(self) -> int:
        """Requests published and not answered; more than there are slots if one end lies."""
        return (self.req_prod - self.rsp_prod) & INDEX_MASK

    def __str__(self) -> str:
        head = (
            f"req_prod {self.req_prod}  req_event {self.req_event}"
            f"  rsp_prod {self.rsp_prod}  rsp_event {self.rsp_event}"
            f"  ({self.outstanding} of {len(self.slots)} outstanding)"
        )
        rows = [_row(slot) for slot in self.slots if slot.what != UNUSED]
        columns = ("slot", "index", "what", "id", "operation", "sector", "status", "segments")
        return f"{head}\n{table(columns, rows, 'no slot has been used')}"


def ring_page(pages: np.ndarray) -> RingPage:
    """Decode a copy of a ring's `pages` (u8, whole pages)."""
    header = pages[: abi.SRING_HEADER_SIZE].view(abi.BLKIF_SRING_HEADER)[0]
    nr_ents = blkif_ring_size(len(pages) // XEN_PAGE_SIZE)
    req_prod, rsp_prod = int(header["req_prod"]), int(header["rsp_prod"])
    space = pages[abi.SRING_HEADER_SIZE :][: nr_ents * abi.BLKIF_REQUEST.itemsize]
    requests = space.view(abi.BLKIF_REQUEST)
    slots = tuple(
        _slot(number, requests[number], req_prod, rsp_prod, nr_ents) for number in range(nr_ents)
    )
    return RingPage(req_prod, int(header["req_event"]), rsp_prod, int(header["rsp_event"]), slots)


def _slot(number: int, raw: np.void, req_prod: int, rsp_prod: int, nr_ents: int) -> Slot:
    waiting = (number - rsp_prod) % nr_ents
    if waiting < ((req_prod - rsp_prod) & INDEX_MASK):
        return _request(number, (rsp_prod + waiting) & INDEX_MASK, raw)
    answered = (rsp_prod - number - 1) % nr_ents + 1
    # Indices start at 0, and run on past 2^32: whether one before them is meant the bytes tell.
    if answered > rsp_prod and not np.frombuffer(raw.tobytes(), np.uint8).any():
        return Slot(number, UNUSED)
    response = np.frombuffer(raw.tobytes()[: abi.BLKIF_RESPONSE.itemsize], abi.BLKIF_RESPONSE)[0]
    return Slot(
        number,
        RESPONSE,
        (rsp_prod - answered) & INDEX_MASK,
        int(response["id"]),
        _named(OPERATIONS, int(response["operation"])),
        status=_named(STATUSES, int(response["status"])),
    )


def _request(number: int, index: int, raw: np.void) -> Slot:
    segments = raw["seg"][: min(int(raw["nr_segments"]), abi.BLKIF_MAX_SEGMENTS_PER_REQUEST)]
    if raw["operation"] == abi.BLKIF_OP_DISCARD:
        segments = segments[:0]  # there a flag stands in place of their number
    return Slot(
        number,
        REQUEST,
        index,
        int(raw["id"]),
        _named(OPERATIONS, int(raw["operation"])),
        int(raw["sector_number"]),
        segments=tuple(
            (int(s["gref"]), int(s["first_sect"]), int(s["last_sect"])) for s in segments
        ),
    )


def _named(names: dict[int, str], value: int) -> str:
    return names.get(value, f"{value}?")


def _row(slot: Slot) -> tuple[object, ...]:
    segments = " ".join(f"{gref}[{first}-{last}]" for gref, first, last in slot.segments)
    sector = "" if slot.sector is None else slot.sector
    name = (slot.number, slot.ring_index, slot.what, slot.id, slot.operation)
    return (*name, sector, slot.status, segments)
