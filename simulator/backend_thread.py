"""A ring's worker in virtual time: a thread of dom0 on one of its vCPUs.

Owns: what a batch costs and when that is paid, and what is done for what `backend/worker.py` asks:
the hypercalls of the real hypervisor core, the flush lock around an unmap. Rules
1. A batch is paid for before its answer is published, and an unmap's flush before its pages are
   answered for (Linux: the response goes out after the unmap).
2. Like Linux's, the thread never spins: it arms the ring's event, looks again, and sleeps.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from backend import steps
from backend.blkback import BROKEN_REASONS, NOTHING, Blkback, begin_close
from backend.doors import called_for
from backend.worker import BETWEEN_REQUESTS
from common import abi, effects
from common.faults import PeerFault
from common.steps import ANY_STEP, STEP, WOKE, mask_of
from simulator.costs import Costs, Era
from simulator.cpus import COPIES, EVENTS, GRANTS, REQUESTS, Cpu, Steps, Thread
from simulator.flush import FlushLock, ObservedCpus, interrupts_others, send_ipis
from simulator.guest import Waker
from simulator.shared import Channel as BookedChannel
from simulator.shared import Memory, RequestPool
from simulator.trace import DOM0, Trace

# Where time passes: when a batch has been taken (once: no stop where a hypercall comes back), and
# while arming.
TAKEN: Final = mask_of(steps.CLEAR, steps.MOVE, steps.LOOK_AGAIN)

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
    """Serves the ring of guest `domid`; `run` never ends. loop(stops): `worker.work` of it."""

    def __init__(
        self,
        cpu: Cpu,
        domid: int,
        costs: Costs,
        seed: int,
        dev: Blkback,
        loop: Callable[[int], int],
        dom0: Dom0,
    ) -> None:
        super().__init__(cpu, f"blkback {domid}", True, costs, seed)
        self.dev = dev
        self.peer: Waker | None = None
        self._dom0, self._copies = dom0, bool(dev.back["copies"][0])
        self._moves = int(dev.back["store_door"][0]) != NOTHING
        self._gather_max = self._room = int(dev.back["gather_max"][0])
        self._woke = False
        self.loop = loop

    def run(self) -> Steps:
        """Serve for ever; the machine's end is its guests' end. Raises PeerFault."""
        dev, pool = self.dev, self._dom0.pool
        yield from self.cpu.take(self)
        while True:
            if self._dom0.era.requests_max is not None:
                yield from self._wait_for_room()
            effect = yield from self.phases(self.loop, dev.turn, TAKEN)
            place, taken, _, event, _, sectors, segments, *_ = dev.turn.tolist()
            if effect == effects.BROKEN:
                raise PeerFault(BROKEN_REASONS[int(dev.back["broken"][0])])
            if taken:
                pool.take(taken)
                yield from self._serve(effect, taken, event, sectors * abi.SECTOR_SIZE, segments)
                pool.give(taken)
                self._notify()
            elif effect == effects.WAIT:
                yield from self.wait(dev.events, dev.counters)
            elif place == steps.LOOK_AGAIN:  # else a request has come between two phases
                yield from self._idle(bool(event))
            if self.cpu.slice_is_over():
                yield from self.yield_cpu()

    def end(self) -> None:
        """The disk is closed: unmap all that is kept, in no time."""
        while not BETWEEN_REQUESTS >> int(self.dev.turn[STEP]) & 1:
            self.loop(BETWEEN_REQUESTS)
        begin_close(self.dev)
        while self.loop(0) != effects.DONE:
            self._dom0.hypercall(self.cpu.number, *called_for(self.dev), False)

    # --- one batch --------------------------------------------------------------------------

    def _serve(self, effect: int, taken: int, event: int, nbytes: int, segments: int) -> Steps:
        """Pay for what has been taken, then have it done and answered."""
        dev, grants = self.dev, list[tuple[str, int]]()
        if self._copies:
            copying = self._grant_ns(segments) + self._dom0.memory.hot_ns(nbytes)
            grants.append(("grant copy", copying))
        elif effect == effects.HYPERCALL:
            grants.append(("map", self._grant_ns(int(dev.back["map_ops"][0]))))
        yield from self._pay(taken, event, nbytes, grants)
        while effect == effects.HYPERCALL or not BETWEEN_REQUESTS >> int(dev.turn[STEP]) & 1:
            if effect == effects.HYPERCALL:
                cmd, ops = called_for(dev)
                if cmd == abi.GNTTABOP_UNMAP_GRANT_REF:
                    yield from self._unmap(ops)
                else:
                    self._dom0.hypercall(self.cpu.number, cmd, ops, False)
            effect = yield from self.phases(self.loop, dev.turn, BETWEEN_REQUESTS)

    def _unmap(self, ops: np.ndarray) -> Steps:
        """One unmap hypercall; under the flush lock if its flush goes to another CPU."""
        dom0, cpu, unmaps = self._dom0, self.cpu, len(ops)
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

    def _pay(self, taken: int, event: int, nbytes: int, grants: list[tuple[str, int]]) -> Steps:
        """The software, the copy to or from the ramdisk, the interrupt if there was one."""
        costs, spent = self.costs, self.cpu.spent
        events = int(costs.interrupt_ns) if event else 0
        if self._woke:
            events += int(costs.hypercall_ns)  # the last batch's EVTCHNOP_send
            self._woke = False
        software = self.varied(taken * costs.block_layer_ns)
        copying = self._dom0.memory.cold_ns(nbytes) if self._moves else 0
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
        if self.dev.turn[WOKE]:
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
        """While arming: then look again, and wait if there is nothing."""
        ns = self.costs.hypercall_ns + self.costs.interrupt_ns * interrupted
        yield from self.work(int(ns), EVENTS)
        if self.loop(ANY_STEP) == effects.WAIT:
            yield from self.wait(self.dev.events, self.dev.counters)
