"""The real runtime's hands for a ring's worker: a dom0 thread that makes hypercalls and maps pages.

Owns: one thread for each ring, on one dom0 vCPU, and what it does for each effect of
`backend/worker.py`. All it spends time in is compiled code without the GIL, or blocked.
"""

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from backend import phases
from backend.blkback import BLKBACK, BROKEN_REASONS, Blkback, begin_close
from backend.doors import called_for
from backend.steps import CLEAR, LOOK
from backend.stores import Store
from backend.worker import BETWEEN_REQUESTS, LOOKS_PER_SLICE, work
from common import effects, steps
from common.abi import (
    BLKIF_OP_READ,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    HYPERVISOR_GRANT_TABLE_OP,
    SECTOR_SIZE,
    XEN_PAGE_SIZE,
)
from common.arena import Arena
from common.atomics import store_release
from common.compiled import direct
from common.copying import byte_view
from common.event_channel import EventChannel
from common.hypercall import Hypercalls
from common.hypercall_gate import collect
from common.not_done import NOT_DONE
from common.process import name_thread
from common.spinning import slept

FRUITLESS_MAX: Final = 2  # a spin takes requests whose event is still on its way
NAP_MS_MAX: Final = 16

log = logging.getLogger(__name__)


class Vcpu:
    """The state of one dom0 vCPU that the hypervisor sees: running, and its CPU dirty.

    running, dirty: the machine's u32 words by CPU. Several rings' threads may share a vCPU: it runs
    while any of them does.
    """

    def __init__(self, cpu: int, running: np.ndarray, dirty: np.ndarray) -> None:
        self.cpu = cpu
        self._running, self._dirty = running, dirty
        self._threads = 0
        self._lock = threading.Lock()

    def run(self) -> None:
        """A thread of this vCPU starts to run: its CPU may hold dom0's translations from now on."""
        with self._lock:
            self._threads += 1
            store_release(self._dirty, self.cpu, np.uint32(1))
            store_release(self._running, self.cpu, np.uint32(1))

    def idle(self) -> None:
        """A thread of this vCPU goes to sleep."""
        with self._lock:
            self._threads -= 1
            if self._threads == 0:
                store_release(self._running, self.cpu, np.uint32(0))


class RingThread:
    """Serves one ring from `start` until it is asked to stop.

    on_end: called from the ring's thread as the last it does, with everything unmapped; with why,
    if the frontend broke the ring, else with "".
    """

    def __init__(
        self,
        dev: Blkback,
        store: Store,
        channel: EventChannel,
        hypercalls: Hypercalls,
        vcpu: Vcpu,
        on_end: Callable[[str], None],
    ) -> None:
        self._dev, self._store, self._channel = dev, store, channel
        self._hypercalls, self._vcpu = hypercalls, vcpu
        self._rings = BLKBACK.rows(Arena(XEN_PAGE_SIZE), 1)
        BLKBACK.write(self._rings[0], dev)
        self._on_end, self._work = on_end, direct(work, self._rings, 0, 0, 0)
        self._fruitless, self._requests = 0, 0
        self._stopping, self._ended = False, threading.Event()
        self._stop = -1  # an eventfd, from `start` on
        remote = int(dev.back["remote_domid"][0])
        self._thread = threading.Thread(target=self._main, name=f"blkback-{remote}", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._stop = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Stop serving once the requests that have been taken are answered."""
        self._stopping = True
        if self._stop >= 0:
            os.eventfd_write(self._stop, 1)

    def has_ended(self, wait_s: float | None) -> bool:
        """Has it stopped, everything unmapped? Waits for that at most `wait_s` (None: for ever).

        So it is from before `on_end` is called: who hears of the end there and looks finds it.
        """
        return self._thread.ident is None or self._ended.wait(wait_s)

    def close(self) -> None:
        """Forget it, once it has ended."""
        if self._stop >= 0:
            os.close(self._stop)

    def _main(self) -> None:
        name_thread(self._thread.name)
        self._vcpu.run()
        try:
            reason = self._serve()
            begin_close(self._dev)
            while self._do(self._work(self._rings, 0, LOOKS_PER_SLICE, 0)) != effects.DONE:
                pass
        finally:
            self._vcpu.idle()
        self._ended.set()
        self._on_end(reason)

    def _serve(self) -> str:
        """Until asked to stop, or the frontend breaks the ring: why, then."""
        dev = self._dev
        while not (self._stopping and dev.turn[steps.STEP] in (CLEAR, LOOK)):
            stops = BETWEEN_REQUESTS if self._stopping else 0
            if self._do(self._work(self._rings, 0, LOOKS_PER_SLICE, stops)) == effects.BROKEN:
                return BROKEN_REASONS[int(dev.back["broken"][0])]
        return ""

    def _do(self, effect: int) -> int:
        """What the loop asks for; which that was."""
        if effect == effects.WAKE:
            self._channel.wake_far_end()
        elif effect == effects.HYPERCALL:
            self._hypercall()
        elif effect == effects.IO:
            self._store_io()
        elif effect == effects.WAIT:
            self._wait()
        return effect

    def _wait(self) -> None:
        self._dev.counters["waits"] += np.uint64(1)
        self._vcpu.idle()
        self._nap()
        began_ns = time.monotonic_ns()
        self._channel.wait(-1, (self._stop,))
        slept(self._dev.spin, time.monotonic_ns() - began_ns)
        self._vcpu.run()

    def _nap(self) -> None:
        """Events that bring no request, one after the other, cost their sender time (XSA-332)."""
        requests = int(self._dev.counters["requests"][0])
        self._fruitless = self._fruitless + 1 if requests == self._requests else 0
        self._requests = requests
        if self._fruitless > FRUITLESS_MAX:
            poller = select.poll()
            poller.register(self._stop, select.POLLIN)
            poller.poll(min(2 ** (self._fruitless - FRUITLESS_MAX), NAP_MS_MAX))

    def _hypercall(self) -> None:
        """Wait for the call that is in the gate, or make it by message.

        If it fails as a whole it has filled no status, and they say so.
        """
        cmd, ops = called_for(self._dev)
        if not self._dev.back["posted"][0]:
            rc = self._hypercalls.call(HYPERVISOR_GRANT_TABLE_OP, cmd, ops)
        else:
            self._hypercalls.kick()
            rc = int(collect(self._dev.gate, ops.ctypes.data, ops.nbytes))
        if rc != 0:
            log.error("grant_table_op %d: %d", cmd, rc)

    def _store_io(self) -> None:
        """Call the store for each sound request of the batch: one callback a segment."""
        dev = self._dev
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
        dev = self._dev
        segment = dev.segments[index, at]
        nr_bytes = int(segment["nr_sectors"]) * SECTOR_SIZE
        view = byte_view(phases.page_address(dev, index, at), nr_bytes)
        phases.touch(dev, int(segment["handle"]))
        if dev.requests[index]["operation"] == BLKIF_OP_READ:
            self._store.read(offset, view)
        else:
            self._store.write(offset, view)
        return nr_bytes
