"""Physical CPUs in virtual time: a run queue each, time stolen by interrupts, where time goes.

Owns: who runs on a CPU, and what each CPU has spent its time on. Rules
1. A thread computes only while its CPU is its own (`take` to `leave`, or a slice's end).
2. An IPI's handler takes its time from whatever the CPU runs: a computation that was interrupted
   ends that much later. Nothing is cancelled: the thread looks when it would have ended.
3. dom0's shared words say what a context switch would: a CPU that runs one of dom0's vCPUs is
   running and dirty; one that goes idle stays dirty (Xen switches lazily); one that another domain
   takes over is dirty no more (Xen's __context_switch).
Time is whole nanoseconds.
"""

from collections import deque
from collections.abc import Callable, Generator
from random import Random
from typing import Any, Final

import numpy as np
import simpy

from common.effects import STOP
from common.event_channel import EventWords, clear_pending
from common.steps import ANY_STEP, STEP
from simulator.costs import Costs

Steps = Generator[simpy.Event, Any, None]
Phases = Generator[simpy.Event, Any, int]

PHASE_NS_MAX: Final = 5_000  # where phases are run one by one

# What a CPU's time goes to; what is left is idle.
KINDS: Final = (
    "requests",
    "copies",
    "grants",
    "events",
    "flushes",
    "lock wait",
    "IPI handlers",
)
REQUESTS, COPIES, GRANTS, EVENTS, FLUSHES, LOCK_WAIT, HANDLERS = range(len(KINDS))


class Cpu:
    """One physical CPU. dirty, running: dom0's words if one of its vCPUs is pinned here."""

    def __init__(self, env: simpy.Environment, number: int, costs: Costs) -> None:
        self.env, self.number = env, number
        self.stolen = 0  # by interrupt handlers, ever
        self.spent = [0] * len(KINDS)
        self._dirty: np.ndarray | None = None
        self._running: np.ndarray | None = None
        self._slice_ns = int(costs.slice_us * 1000)
        self._switch_ns = int(costs.wakeup_ns)
        self._current: Thread | None = None
        self._last: Thread | None = None
        self._since = 0
        self._queue: deque[tuple[Thread, simpy.Event]] = deque()

    def pin(self, dirty: np.ndarray, running: np.ndarray) -> None:
        """A vCPU of dom0 is pinned here; `dirty`, `running` are the machine's words by CPU."""
        self._dirty, self._running = dirty, running

    @property
    def idle(self) -> bool:
        """Does nobody run?"""
        return self._current is None

    def take(self, thread: "Thread") -> Steps:
        """Wait until `thread` has the CPU."""
        if self._current is None:
            self._run(thread)
        else:
            turn = self.env.event()
            self._queue.append((thread, turn))
            yield turn
        if self._last is not thread:
            if self._last is not None:
                yield from thread.work(self._switch_ns, EVENTS)
            self._last = thread

    def leave(self) -> None:
        """Who runs sleeps: the next one runs."""
        self._current = None
        if self._queue:
            thread, turn = self._queue.popleft()
            self._run(thread)
            turn.succeed()
        elif self._running is not None:
            self._running[self.number] = 0

    def slice_is_over(self) -> bool:
        """Has who runs had its slice, and does another want the CPU?"""
        return bool(self._queue) and self.env.now - self._since >= self._slice_ns

    def _run(self, thread: "Thread") -> None:
        self._current, self._since = thread, int(self.env.now)
        if self._running is not None and self._dirty is not None:
            self._running[self.number] = self._dirty[self.number] = int(thread.is_dom0)


class Thread:
    """What computes: a guest's vCPU, or a thread of dom0 on one of its vCPUs.

    `random` is its own, so that no thread's luck depends on another's.
    """

    def __init__(self, cpu: Cpu, name: str, is_dom0: bool, costs: Costs, seed: int) -> None:
        self.cpu, self.name, self.is_dom0, self.costs = cpu, name, is_dom0, costs
        self.env = cpu.env
        self.random = Random(f"{seed} {name}")
        self._spread = costs.spread * 3**0.5  # a uniform distribution of that deviation
        self._asleep: simpy.Event | None = None
        # If there is one, time passes between any two phases, and it is called there.
        self.between: Callable[[], None] | None = None

    def phases(self, loop: Callable[[int], int], turn: np.ndarray, stops: int) -> Phases:
        """Run `loop(stops)`, or, if there is a `between`, phase by phase; its effect."""
        if self.between is None:
            return loop(stops)
        while True:
            self.between()
            yield self.env.timeout(self.random.randrange(PHASE_NS_MAX))
            if (effect := loop(ANY_STEP)) != STOP or stops >> int(turn[STEP]) & 1:
                return effect

    def varied(self, ns: float) -> int:
        """A software time as it is this once."""
        return int(ns * (1 + self._spread * (2 * self.random.random() - 1)))

    def work(self, ns: int, kind: int, more_ns: int = 0) -> Steps:
        """Compute for `ns`, and for what interrupts steal meanwhile.

        more_ns: computed besides, and already booked to another kind by the caller.
        """
        cpu = self.cpu
        cpu.spent[kind] += ns
        stolen = cpu.stolen
        yield self.env.timeout(ns + more_ns)
        while cpu.stolen != stolen:
            late, stolen = cpu.stolen - stolen, cpu.stolen
            yield self.env.timeout(late)

    def sleep(self) -> Steps:
        """Give the CPU up until `wake`; the event's delivery and the wake-up are paid here."""
        self._asleep = self.env.event()
        self.cpu.leave()
        yield self._asleep
        self._asleep = None
        yield self.env.timeout(int(self.costs.ipi_delivery_ns))
        yield from self.cpu.take(self)
        yield from self.work(int(self.costs.wakeup_ns), EVENTS)

    def wait(self, events: EventWords, counters: np.ndarray) -> Steps:
        """The effect WAIT: sleep until our event is pending, and take it. counters: `waits` too."""
        counters["waits"] += np.uint64(1)
        if not clear_pending(events.pending, events.port[0]):
            yield from self.sleep()
            clear_pending(events.pending, events.port[0])

    def wake(self) -> None:
        """The thread's event has become pending."""
        if self._asleep is not None and not self._asleep.triggered:
            self._asleep.succeed()

    def yield_cpu(self) -> Steps:
        """The slice is over: to the end of the run queue."""
        self.cpu.leave()
        yield from self.cpu.take(self)
