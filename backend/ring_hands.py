"""The real runtime's hands for one ring's worker: hypercalls, wake-ups, a store that is called.

Owns: what is done for an effect of `backend/worker.py` that is one ring's own, by whichever thread
serves it (`backend/vcpu_thread.py`), and what its store says meanwhile.
"""

import logging
import os
from collections.abc import Callable
from errno import EOPNOTSUPP
from functools import cached_property

import numpy as np

from backend.at_store import answer_all, take_started
from backend.blkback import BLKBACK, Blkback, jobs_of
from backend.doors import called_for
from backend.error_log import ErrorLog
from backend.queue_sleep import begin_sleep, end_sleep
from backend.slots import DISCARD, FLUSH, READ
from backend.store_jobs import LaterStore
from backend.store_queue import StoreQueue
from backend.stores import Store
from common import effects
from common.abi import (
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    HYPERVISOR_GRANT_TABLE_OP,
    SECTOR_SIZE,
)
from common.arena import Arena
from common.compiled import direct
from common.copying import byte_view
from common.event_channel import EventChannel
from common.hypercall import Hypercalls
from common.hypercall_gate import collect

log = logging.getLogger(__name__)


class RingHands:
    """Of the ring `dev`, whose disk is `store`. hypercalls: of the vCPU that serves it; name: the
    disk's, for people; later: the store, if it answers later; queue_fd: what is polled of a store
    that is reached through a queue, or -1.
    """

    def __init__(
        self,
        dev: Blkback,
        store: Store | LaterStore,
        channel: EventChannel,
        hypercalls: Hypercalls,
        name: str = "store",
        queue_fd: int = -1,
    ) -> None:
        self.dev, self.channel, self.queue_fd = dev, channel, queue_fd
        self.later = store if isinstance(store, LaterStore) else None
        self._hypercalls, self._errors = hypercalls, ErrorLog(name)
        self._store = None if isinstance(store, LaterStore) else store
        self._queue_errors = 0
        self._rows = BLKBACK.rows(Arena(), 1)
        BLKBACK.write(self._rows[0], dev)
        if self.later is not None:
            self.later.attach(jobs_of(dev))

    @cached_property
    def _answer_all(self) -> Callable[[np.ndarray, int], None]:
        """For a ring whose store is asked by us; most are not."""
        return direct(answer_all, self._rows, 0)

    @cached_property
    def _begin_sleep(self) -> Callable[[StoreQueue], bool]:
        return direct(begin_sleep, self.dev.queue)

    @cached_property
    def _end_sleep(self) -> Callable[[StoreQueue], None]:
        return direct(end_sleep, self.dev.queue)

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

    # --- the store --------------------------------------------------------------------------

    def store_io(self) -> None:
        """Have the store begin, or do, what has been started."""
        slots = take_started(self.dev)
        if self.later is not None:
            self._take(self.later.start(slots))
            return
        for at, slot in enumerate(slots.tolist()):
            self.dev.answered[at], self.dev.statuses[at] = slot, self._job_io(slot)
        self._take(len(slots))

    def begin_sleep(self) -> bool:
        """A queue's descriptor is to be slept on; True if it has something already."""
        return bool(self._begin_sleep(self.dev.queue))

    def end_sleep(self) -> None:
        """It is not, any more."""
        self._end_sleep(self.dev.queue)

    def store_is_ready(self) -> bool:
        """Its descriptor is, or its time has come; has it answered anything?"""
        assert self.later is not None
        return self._take(self.later.ready())

    def closing(self) -> None:
        """No more requests are taken."""
        if self.later is not None:
            self.later.closing()

    def tell_counts(self) -> None:
        """The ring has ended: say what has not been said."""
        self.look_at_errors()
        self._errors.tell_counts()

    def look_at_errors(self) -> None:
        """Say what a queue's store could not do."""
        head = self.dev.queue.head[0]
        if (errors := int(head["errors"])) != self._queue_errors:
            errno = int(head["last_errno"])
            why = os.strerror(errno) if errno else "it is shorter than it was"
            self._errors.say(why, errors - self._queue_errors)
            self._queue_errors = errors

    def _take(self, count: int) -> bool:
        if count:
            self._answer_all(self._rows, count)
        return count > 0

    def _job_io(self, slot: int) -> int:
        """One callback a segment; the status."""
        job, store = self.dev.jobs[slot], self._store
        assert store is not None
        kind, offset = int(job["kind"]), int(job["offset"])
        try:
            if kind == FLUSH:
                store.flush()
            elif kind == DISCARD:
                store.discard(offset, int(job["nr_bytes"]))
            for iovec in self.dev.iovecs[slot, : job["nr_iovecs"]]:
                view = byte_view(int(iovec["address"]), int(iovec["nr_bytes"]))
                (store.read if kind == READ else store.write)(offset, view)
                offset += len(view)
        except OSError as error:
            where = f"sector {offset // SECTOR_SIZE}"
            self._errors.say(str(error.strerror or error), where=where)
            unable = error.errno == EOPNOTSUPP and kind in (FLUSH, DISCARD)
            return BLKIF_RSP_EOPNOTSUPP if unable else BLKIF_RSP_ERROR
        return BLKIF_RSP_OKAY
