"""A guest in virtual time: one vCPU that runs its load and blkfront.

Owns: what a turn of the load costs, and the guest's sleep. The load and blkfront are the real ones
(`frontend/load_turn.py`, `frontend/blkfront.py`), on plain memory. As Linux does, and unlike the
real runtime's default, it never spins: it arms the ring's event, looks again, and sleeps.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from common import effects
from common.faults import PeerFault
from common.steps import ANY_STEP, mask_of
from frontend import steps
from frontend.blkfront_info import BROKEN_REASONS, Blkfront
from frontend.load import Load
from frontend.load_state import NOW_NS
from simulator.costs import Costs
from simulator.cpus import COPIES, EVENTS, REQUESTS, Cpu, Steps, Thread
from simulator.shared import Memory
from simulator.trace import Trace

SUBMITTING: Final = 0.5  # of an I/O's software time: the rest is spent on its completion
FOR_EVER: Final = 1 << 62  # looks at the ring

# Where time passes: before what was written is published, before a turn without, while arming.
STOPS: Final = mask_of(steps.PUBLISH, steps.ROUND, steps.LOOK_AGAIN)


class Waker(Protocol):
    """The far end's thread."""

    def wake(self) -> None: ...


class Guest(Thread):
    """The vCPU of guest `domid`; `run` is its life until its load is over.

    loop: `stepper.run` of its ring's row.
    """

    def __init__(
        self,
        cpu: Cpu,
        domid: int,
        costs: Costs,
        seed: int,
        dev: Blkfront,
        job: Load,
        loop: Callable[[int, int], int],
        memory: Memory,
        trace: Trace,
    ) -> None:
        super().__init__(cpu, f"guest {domid}", False, costs, seed)
        self.dev, self.job = dev, job
        self.peer: Waker | None = None
        self._memory, self._trace = memory, trace
        self._copied = dev.counters["bytes_copied_by_guest"].data
        self.loop = partial(loop, FOR_EVER)
        self._io_ns = costs.guest_io_ns + costs.block_layer_ns
        self._idle_ns = int(costs.hypercall_ns)

    def run(self) -> Steps:
        """Run the load to its end. Raises PeerFault."""
        dev, job, turn = self.dev, self.job, self.dev.turn
        assert self.peer is not None
        yield from self.cpu.take(self)
        copied = self._copied[0]
        while True:
            job.clock[NOW_NS] = self.env.now
            effect = yield from self.phases(self.loop, turn, STOPS)
            place, taken, written, event, woke, *_ = turn.tolist()
            if woke:
                self.peer.wake()
            if effect == effects.STOP and place != steps.LOOK_AGAIN:
                before, copied = copied, int(self._copied[0])
                yield from self._pay(taken, written, event + woke, copied - before)
            elif effect == effects.STOP:
                yield from self.work(self._idle_ns, EVENTS)
                if self.loop(ANY_STEP) == effects.WAIT:
                    yield from self.wait(dev.events, dev.counters)
            elif effect == effects.BROKEN:
                raise PeerFault(BROKEN_REASONS[int(dev.front["broken"][0])])
            else:
                break
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
