"""A guest in virtual time: one vCPU that runs its load and blkfront.

Owns: what a turn of the load costs, and the guest's sleep. The load and blkfront are the real ones
(`frontend/load.py`, `frontend/blkfront.py`), on plain memory. As Linux does, and unlike the real
runtime's default, it never spins: it arms the ring's event, looks again, and sleeps.
"""

from typing import Final, NamedTuple, Protocol

import numpy as np

from common import ring
from common.event_channel import clear_pending
from common.ring import RING_BROKEN
from frontend.blkfront_info import BROKEN_REASONS, Blkfront
from frontend.load import Load
from simulator.costs import Costs
from simulator.cpus import COPIES, EVENTS, REQUESTS, Cpu, Steps, Thread
from simulator.kernels import (
    OVER,
    REPORT_WORDS,
    guest_turn,
)
from simulator.shared import Memory
from simulator.trace import Trace

SUBMITTING: Final = 0.5  # of an I/O's software time: the rest is spent on its completion


class Channel(NamedTuple):
    """One end of an event channel: its own pending words, and the far end's."""

    pending: np.ndarray
    far_pending: np.ndarray
    far_mask: np.ndarray
    port: int


class Waker(Protocol):
    """The far end's thread."""

    def wake(self) -> None: ...


class Guest(Thread):
    """The vCPU of guest `domid`; `run` is its life until its load is over."""

    def __init__(
        self,
        cpu: Cpu,
        domid: int,
        costs: Costs,
        seed: int,
        dev: Blkfront,
        job: Load,
        channel: Channel,
        memory: Memory,
        trace: Trace,
    ) -> None:
        super().__init__(cpu, f"guest {domid}", False, costs, seed)
        self.dev, self.job = dev, job
        self.peer: Waker | None = None
        self._channel, self._memory, self._trace = channel, memory, trace
        self._report = np.zeros(REPORT_WORDS, np.int64)
        self._io_ns = costs.guest_io_ns + costs.block_layer_ns
        self._idle_ns = int(costs.hypercall_ns)
        self._nr_ents = len(dev.shadow)

    def run(self) -> Steps:
        """Run the load to its end."""
        dev, channel, report, peer = self.dev, self._channel, self._report, self.peer
        args = (channel.pending, channel.far_pending, channel.far_mask, channel.port)
        assert peer is not None
        yield from self.cpu.take(self)
        while True:
            guest_turn(dev, self.job, *args, int(self.env.now), report)
            taken, written, event, wake, copied, over = report[: OVER + 1].tolist()
            assert taken != RING_BROKEN, BROKEN_REASONS[int(dev.front["broken"][0])]
            if wake:
                peer.wake()
            if taken or written or event or wake:
                yield from self._pay(taken, written, event + wake, copied)
            elif over:
                break
            else:
                yield from self._idle()
            if self.cpu.slice_is_over():
                yield from self.yield_cpu()
        self.cpu.leave()

    def _pay(self, taken: int, written: int, events: int, copied: int) -> Steps:
        costs, spent = self.costs, self.cpu.spent
        completing = self.varied(taken * self._io_ns * (1 - SUBMITTING)) if taken else 0
        submitting = self.varied(self._io_ns * SUBMITTING) if written else 0
        notifying = int(events * (costs.interrupt_ns + costs.hypercall_ns) / 2)
        copying = self._memory.hot_ns(copied)
        spent[COPIES] += copying
        spent[EVENTS] += notifying
        if self._trace.wanted:
            parts = [
                ("event", notifying),
                ("complete", completing),
                ("copy", copying),
                ("submit", submitting),
            ]
            self._trace.add_each(self.name, self.cpu.number, self.env.now, parts)
        yield from self.work(completing + submitting, REQUESTS, copying + notifying)

    def _idle(self) -> Steps:
        """REARM, RECHECK with a moment between them, then sleep until an event."""
        dev = self.dev
        ring.rearm(dev.words, dev.half, ring.RSP)
        yield from self.work(self._idle_ns, EVENTS)
        if ring.unconsumed(dev.words, dev.half, ring.RSP, self._nr_ents) != 0:
            return
        self.dev.counters["waits"] += np.uint64(1)
        if not clear_pending(self._channel.pending, self._channel.port):
            yield from self.sleep()
            clear_pending(self._channel.pending, self._channel.port)
