"""A ring's worker in virtual time: a thread of dom0 on one of its vCPUs.

Owns: the order of a batch's costs, and what is done for what `backend/phases.py` asks: the
hypercalls of the real hypervisor core, the flush lock around an unmap. Rules
1. A batch is paid for before its answer is published, and an unmap's flush before its pages are
   answered for (Linux: the response goes out after the unmap).
2. Like Linux's, the thread never spins: it arms the ring's event, looks again, and sleeps.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from backend.blkback import BROKEN_REASONS, Blkback
from backend.grant_copy import finish_copies, list_copies, settle_unmaps
from common import abi, ring
from common.copying import address_of
from common.event_channel import clear_pending
from common.ring import RING_BROKEN
from simulator.costs import Costs, Era
from simulator.cpus import COPIES, EVENTS, GRANTS, REQUESTS, Cpu, Steps, Thread
from simulator.flush import FlushLock, ObservedCpus, send_ipis
from simulator.guest import Channel, Waker
from simulator.kernels import (
    COPIED,
    EVENT,
    MAPS,
    REPORT_WORDS,
    SEGMENTS,
    TAKEN,
    UNMAPS,
    WAKE,
    back_answer,
    back_execute,
    back_take,
    interrupts_others,
    settle_copies,
)
from simulator.shared import Channel as BookedChannel
from simulator.shared import Memory, RequestPool
from simulator.trace import DOM0, Trace

# (command, an array of its structs, whether the caller queued on the flush lock): one hypercall.
Hypercall = Callable[[int, int, np.ndarray, bool], None]


class Dom0(NamedTuple):
    """What dom0's threads share. cpus: the physical ones; bounce: the frame in dom0's `ram` where
    grant copies land, for each ring by domid; hole: a page that no mapping leads to.
    """

    hypercall: Hypercall
    cpus: list[Cpu]
    worker_cpus: ObservedCpus
    policy: int
    dirty: np.ndarray
    accessed: np.ndarray
    lock: FlushLock
    table_lock: BookedChannel
    pool: RequestPool
    memory: Memory
    ram: np.ndarray
    hole: np.ndarray
    era: Era
    trace: Trace


class BackendThread(Thread):
    """Serves the ring of guest `domid`; `run` never ends. guest_ram: u8, the guest's frames.

    bounce: the first of this ring's own frames for grant copies, or None if it maps.
    """

    def __init__(
        self,
        cpu: Cpu,
        domid: int,
        costs: Costs,
        seed: int,
        dev: Blkback,
        channel: Channel,
        dom0: Dom0,
        guest_ram: np.ndarray,
        bounce: int | None,
    ) -> None:
        super().__init__(cpu, f"blkback {domid}", True, costs, seed)
        self.dev = dev
        self.peer: Waker | None = None
        self._channel, self._dom0, self._bounce = channel, dom0, bounce
        self._ram_address, self._hole = address_of(guest_ram), address_of(dom0.hole)
        self._dom0_address = address_of(dom0.ram)
        self._report = np.zeros(REPORT_WORDS, np.int64)
        self._gather_max = self._room = int(dev.back["gather_max"][0])
        self._nr_ents = len(dev.requests)
        dev.back["bounce_frame"] = bounce or 0
        self._woke = False

    def run(self) -> Steps:
        """Serve for ever; the machine's end is its guests' end."""
        dev, report, channel = self.dev, self._report, self._channel
        yield from self.cpu.take(self)
        while True:
            if self._dom0.era.requests_max is not None:
                yield from self._wait_for_room()
            back_take(dev, channel.pending, channel.port, report)
            taken = int(report[TAKEN])
            assert taken != RING_BROKEN, BROKEN_REASONS[int(dev.back["broken"][0])]
            if taken:
                self._dom0.pool.take(taken)
                if self._bounce is None:
                    yield from self._serve_by_map(taken)
                else:
                    yield from self._serve_by_copy(taken)
                self._dom0.pool.give(taken)
                self._notify()
            else:
                yield from self._idle(bool(report[EVENT]))
            if self.cpu.slice_is_over():
                yield from self.yield_cpu()

    # --- one batch --------------------------------------------------------------------------

    def _serve_by_map(self, taken: int) -> Steps:
        dev, dom0, report, channel = self.dev, self._dom0, self._report, self._channel
        maps = int(report[MAPS])
        mapping = self._grant_ns(maps)
        yield from self._pay(taken, [("map", mapping)] if maps else [])
        if maps:
            ops = dev.map_ops[:maps]
            dom0.hypercall(self.cpu.number, abi.GNTTABOP_MAP_GRANT_REF, ops, False)
        far = (channel.far_pending, channel.far_mask, channel.port)
        back_execute(dev, self._ram_address, *far, report)
        unmaps = int(report[UNMAPS])
        if unmaps:
            yield from self._unmap(unmaps)
            back_answer(dev, self._hole, *far, report)

    def _serve_by_copy(self, taken: int) -> Steps:
        """GNTTABOP_copy: into dom0's own pages before a write, out of them after a read."""
        dev, dom0, report, channel = self.dev, self._dom0, self._report, self._channel
        assert self._bounce is not None
        segments = int(report[SEGMENTS])
        copying = self._grant_ns(segments) + dom0.memory.hot_ns(int(report[COPIED]))
        yield from self._pay(taken, [("grant copy", copying)])
        settle_copies(dev, self._dom0_address)
        self._copy(False)
        far = (channel.far_pending, channel.far_mask, channel.port)
        back_execute(dev, self._ram_address, *far, report)
        if report[UNMAPS]:
            self._copy(True)
            settle_unmaps(dev)
            back_answer(dev, self._hole, *far, report)

    def _copy(self, to_guest: bool) -> None:
        count = int(list_copies(self.dev, to_guest))
        if count:
            ops = self.dev.copy_ops[:count]
            self._dom0.hypercall(self.cpu.number, abi.GNTTABOP_COPY, ops, False)
            finish_copies(self.dev)

    def _unmap(self, unmaps: int) -> Steps:
        """One unmap hypercall; under the flush lock if its flush goes to another CPU."""
        dom0, cpu = self._dom0, self.cpu
        ops = self.dev.unmap_ops[:unmaps]
        number = cpu.number
        asked = self.env.now
        locks = interrupts_others(dom0.policy, number, self.dev, dom0.dirty, dom0.accessed)
        if locks:
            waits = dom0.lock.held  # behind another's flush
            yield from dom0.lock.acquire(self)
            held = self.env.now
            dom0.hypercall(number, abi.GNTTABOP_UNMAP_GRANT_REF, ops, waits)
            for targets in dom0.worker_cpus.take():
                yield from send_ipis(self, targets, dom0.cpus, self.costs)
            dom0.lock.release()
            if dom0.trace.wanted:
                waited = held - asked
                parts = [("flush lock", waited), ("flush", self.env.now - held)]
                dom0.trace.add_each(DOM0, number, asked, parts)
        else:
            dom0.hypercall(number, abi.GNTTABOP_UNMAP_GRANT_REF, ops, False)
            dom0.worker_cpus.take()
        ns = self._grant_ns(unmaps)
        if dom0.era.local_flush:
            ns += int(self.costs.local_flush_ns * unmaps)
        dom0.trace.add(DOM0, number, "unmap", self.env.now, ns)
        yield from self.work(ns, GRANTS)

    # --- what things cost -------------------------------------------------------------------

    def _pay(self, taken: int, grants: list[tuple[str, int]]) -> Steps:
        """The software, the copy to or from the ramdisk, the interrupt if there was one."""
        report, costs, spent = self._report, self.costs, self.cpu.spent
        events = int(costs.interrupt_ns) if report[EVENT] else 0
        if self._woke:
            events += int(costs.hypercall_ns)  # the last batch's EVTCHNOP_send
            self._woke = False
        software = self.varied(taken * costs.block_layer_ns)
        copying = self._dom0.memory.cold_ns(int(report[COPIED]))
        granting = sum(ns for _, ns in grants)
        spent[EVENTS] += events
        spent[COPIES] += copying
        spent[GRANTS] += granting
        if self._dom0.trace.wanted:
            parts = [("event", events), ("request", software), *grants, ("copy", copying)]
            self._dom0.trace.add_each(DOM0, self.cpu.number, self.env.now, list(parts))
        yield from self.work(software, REQUESTS, events + copying + granting)

    def _grant_ns(self, operations: int) -> int:
        """A grant-table hypercall, with its wait for 2012's one lock for each table."""
        if operations == 0:
            return 0
        ns = self.costs.hypercall_ns + self.costs.grant_op_ns * operations
        if self._dom0.era.table_lock:
            held = self.costs.table_lock_ns * operations
            ns += self._dom0.table_lock.book(held) - held
        return int(ns)

    def _notify(self) -> None:
        if self._report[WAKE]:
            assert self.peer is not None
            self.peer.wake()
            self._woke = True

    # --- waiting ----------------------------------------------------------------------------

    def _wait_for_room(self) -> Steps:
        pool = self._dom0.pool
        while (room := pool.room(self._gather_max)) == 0:
            self.cpu.leave()
            yield from pool.wait()
            yield from self.cpu.take(self)
        if room != self._room:
            self.dev.back["gather_max"] = self._room = room

    def _idle(self, interrupted: bool) -> Steps:
        """REARM, RECHECK with a moment between them, then sleep until an event."""
        dev = self.dev
        ring.rearm(dev.words, dev.half, ring.REQ)
        ns = self.costs.hypercall_ns + self.costs.interrupt_ns * interrupted
        yield from self.work(int(ns), EVENTS)
        if ring.unconsumed(dev.words, dev.half, ring.REQ, self._nr_ents) != 0:
            return
        self.dev.counters["waits"] += np.uint64(1)
        if not clear_pending(self._channel.pending, self._channel.port):
            yield from self.sleep()
            clear_pending(self._channel.pending, self._channel.port)
