"""The real runtime's hands for one ring's worker: hypercalls, wake-ups, a store's callbacks.

Owns: what is done for an effect of `backend/worker.py` that is one ring's own, by whichever thread
serves it (`backend/vcpu_thread.py`).
"""

import logging

from backend import phases
from backend.blkback import Blkback
from backend.doors import called_for
from backend.stores import Store
from common import effects
from common.abi import (
    BLKIF_OP_READ,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    HYPERVISOR_GRANT_TABLE_OP,
    SECTOR_SIZE,
)
from common.copying import byte_view
from common.event_channel import EventChannel
from common.hypercall import Hypercalls
from common.hypercall_gate import collect
from common.not_done import NOT_DONE

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
        """Call the store for each sound request of the batch: one callback a segment."""
        dev = self.dev
        for index in range(int(dev.back["gathered"][0])):
            request = dev.requests[index]
            if request["status"] != NOT_DONE:
                continue
            offset = int(request["sector"]) * SECTOR_SIZE
            try:
                for at in range(int(request["nr_segments"])):
                    offset += self._segment_io(index, at, offset)
                dev.requests[index]["status"] = BLKIF_RSP_OKAY
            except OSError as error:
                log.warning("store: sector %d: %s", request["sector"], error)
                dev.requests[index]["status"] = BLKIF_RSP_ERROR

    def _segment_io(self, index: int, at: int, offset: int) -> int:
        dev = self.dev
        segment = dev.segments[index, at]
        nr_bytes = int(segment["nr_sectors"]) * SECTOR_SIZE
        view = byte_view(phases.page_address(dev, index, at), nr_bytes)
        phases.touch(dev, int(segment["handle"]))
        if dev.requests[index]["operation"] == BLKIF_OP_READ:
            self._store.read(offset, view)
        else:
            self._store.write(offset, view)
        return nr_bytes
