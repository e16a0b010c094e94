"""How full the rings of a machine's disks are: what is published on each and not answered.

Owns: where a ring's page is. It is the guest's, in the guest's own memory: its producers are read
once, and what they claim is not believed beyond the ring's size. The hypervisor knows which frame
was granted; it is asked once a disk, and again when that may have changed.
"""

import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np

from common import abi
from common.hypercall import HypercallError
from common.machine_memory import MachineMemory
from common.ring import REQ, RSP, nr_ents_of
from common.xenbus import frontend_path, parse_number
from common.xenstore import XenStoreClient, XenStoreError

INDEX_MASK: Final = 0xFFFFFFFF
TRUSTED_S: Final = 5.0  # how long a ring is believed to be where it was

Ask = Callable[..., Any]  # a process by name, a command, its arguments: the answer


class _Place(NamedTuple):
    """The ring granted as `gref` was found in `frame` at `at_s`; None: no frame is granted so."""

    gref: int
    frame: int | None
    at_s: float


class RingFills:
    """Of all disks of a machine."""

    def __init__(self, memory: MachineMemory, store: XenStoreClient, ask: Ask) -> None:
        self._memory, self._store, self._ask = memory, store, ask
        self._places: dict[tuple[int, int], _Place] = {}

    def of(self, domid: int, device: int) -> dict[str, int] | None:
        """`used` and `slots` of a disk's ring; None if none is shared."""
        try:
            fill = self._read(domid, device)
            if fill is not None and fill["used"] > fill["slots"]:  # it is there no more, or lies
                del self._places[domid, device]
                fill = self._read(domid, device)
        except (HypercallError, XenStoreError):  # there is no such domain any more, or no ring
            return None
        return fill and {**fill, "used": min(fill["used"], fill["slots"])}

    def _read(self, domid: int, device: int) -> dict[str, int] | None:
        frame = self._frame(domid, device)
        ram = self._memory.segment("ram", domid)
        if frame is None or frame >= len(ram) // abi.XEN_PAGE_SIZE:
            return None
        page = ram[frame * abi.XEN_PAGE_SIZE :][: abi.XEN_PAGE_SIZE]
        words = page[: abi.SRING_HEADER_SIZE].view(np.uint32).copy()
        used = (int(words[REQ]) - int(words[RSP])) & INDEX_MASK
        return {"used": used, "slots": nr_ents_of(page)}

    def _frame(self, domid: int, device: int) -> int | None:
        path = f"{frontend_path(domid, device)}/ring-ref"
        gref = parse_number(self._store.read(path), INDEX_MASK)
        place, now_s = self._places.get((domid, device)), time.monotonic()
        if gref is None:
            return None
        if place is None or place.gref != gref or now_s - place.at_s > TRUSTED_S:
            place = _Place(gref, self._granted(domid, gref), now_s)
            self._places[domid, device] = place
        return place.frame

    def _granted(self, domid: int, gref: int) -> int | None:
        """The frame that is granted as `gref`."""
        answer = self._ask("hypervisor", "grants", domid, gref)
        if answer is None:
            return None
        _, grefs, entries = answer
        found = np.frombuffer(grefs, "<u4")
        if not len(found) or found[0] != gref:
            return None
        return int(np.frombuffer(entries, abi.GRANT_ENTRY_V1)["frame"][0])
