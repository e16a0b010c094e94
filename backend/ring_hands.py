"""The real runtime's hands for one ring's worker: hypercalls, wake-ups, a store's callbacks.

Owns: what is done for an effect of `backend/worker.py` that is one ring's own, by whichever thread
serves it (`backend/vcpu_thread.py`).
"""

import logging

from backend import phases
from backend.at_store import complete, take_started
from backend.blkback import Blkback
from backend.doors import called_for
from backend.slots import READ
from backend.stores import Store
from common import effects
from common.abi import (
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    HYPERVISOR_GRANT_TABLE_OP,
    SECTOR_SIZE,
)
from common.copying import byte_view
from common.event_channel import EventChannel
from common.hypercall import Hypercalls
from common.hypercall_gate import collect

log = logging.getLogger(__name__)


class RingHands:
    """Of the ring `dev`, whose disk is `store`. hypercalls: of the vCPU that serves it."""

    def __init__(
        self, dev: Blkback, store: Store, channel: EventChannel, hypercalls: Hypercalls
    ) -> None:
        self.dev, self.channel = dev, channel
        self._store, self._hypercalls = store, hypercalls

    def do(self, effect: int) -> None:
        """What the loop asks for, if it is the ring's own."""
        if effect == effects.WAKE:
            self.channel.wake_far_end()
        elif effect == effects.HYPERCALL:
            self.hypercall()
        elif effect == effects.IO:
            self.store_io()

    def hypercall(self) -> None:
        """Wait for the call that is in the gate, or make it by message.

        If it fails as a whole it has filled no status, and they say so.
        """
        cmd, ops = called_for(self.dev)
        if not self.dev.back["posted"][0]:
            rc = self._hypercalls.call(HYPERVISOR_GRANT_TABLE_OP, cmd, ops)
        else:
            self._hypercalls.kick()
            rc = int(collect(self.dev.gate, ops.ctypes.data, ops.nbytes))
        if rc != 0:
            log.error("grant_table_op %d: %d", cmd, rc)

    def store_io(self) -> None:
        """Call the store for each slot that is handed over."""
        for slot in take_started(self.dev):
            complete(self.dev, slot, self._slot_io(slot))

    def _slot_io(self, slot: int) -> int:
        """One callback a segment; the status."""
        request = self.dev.requests[slot]
        offset = int(request["sector"]) * SECTOR_SIZE
        try:
            for at in range(int(request["nr_segments"])):
                offset += self._segment_io(slot, at, offset)
        except OSError as error:
            log.warning("store: sector %d: %s", request["sector"], error)
            return BLKIF_RSP_ERROR
        return BLKIF_RSP_OKAY

    def _segment_io(self, slot: int, at: int, offset: int) -> int:
        dev = self.dev
        nr_bytes = int(dev.segments["nr_sectors"][slot, at]) * SECTOR_SIZE
        view = byte_view(phases.page_address(dev, slot, at), nr_bytes)
        phases.touch(dev, slot, at)
        if dev.requests["kind"][slot] == READ:
            self._store.read(offset, view)
        else:
            self._store.write(offset, view)
        return nr_bytes
