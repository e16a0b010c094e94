"""Xen's flush lock and the IPIs sent under it.

Owns: who holds the lock, in which order it is had, what a flush costs whom. Rules (Xen's
`arch/x86/smp.c`): the caller holds one global lock from before the first IPI to the last
acknowledgement; every target runs the handler at once, whatever it does. Passing the lock on costs
a transfer of its cache line for each waiter, as all of them read it again.
A byte lock (until 2015) goes to any of those who want it when it is free, also to one that has
only just come; a ticket lock goes to who came first.
"""

from random import Random

import numpy as np
import simpy

from backend.blkback import Blkback
from common.atomics import load_acquire
from common.compiled import kernel
from hypervisor.cpus import ACCESSED_WORDS, PRECISE, Cpus
from simulator.costs import Costs
from simulator.cpus import FLUSHES, HANDLERS, LOCK_WAIT, Cpu, Steps, Thread


class ObservedCpus(Cpus):
    """The hypervisor's worker CPUs; remembers whom each flush has interrupted since `take`."""

    def __init__(self, nr_cpus: int, policy: str, **words: np.ndarray) -> None:
        super().__init__(nr_cpus, policy, **words)
        self.matrix = np.zeros((nr_cpus, nr_cpus), np.int64)  # IPIs by sender and target
        self._received = words["counters"]["ipis_received"]
        self._targets: list[list[int]] = []

    def flush(self, caller: int, unmapped: np.ndarray, waited: bool) -> int:
        """See `Cpus.flush`."""
        before = self._received.copy()
        ipis = super().flush(caller, unmapped, waited)
        if ipis >= 0:
            targets = np.flatnonzero(self._received != before)
            self.matrix[caller, targets] += 1
            self._targets.append(targets.tolist())
        return ipis

    def take(self) -> list[list[int]]:
        """The targets of each flush since the last call."""
        targets, self._targets = self._targets, []
        return targets


class FlushLock:
    """One global lock in virtual time; its wait is spent spinning on the waiter's CPU."""

    def __init__(self, env: simpy.Environment, costs: Costs, byte_lock: bool, seed: int) -> None:
        self.busy_ns = 0
        self._env, self._handover_ns = env, costs.lock_handover_ns
        self._random = Random(f"{seed} flush lock") if byte_lock else None
        self.held = False
        self._since = 0
        self._waiters: list[simpy.Event] = []

    def acquire(self, thread: Thread) -> Steps:
        """Hold the lock; the time until then is the thread's CPU's."""
        if not self.held:
            self.held, self._since = True, int(self._env.now)
            return
        asked, stolen = int(self._env.now), thread.cpu.stolen
        mine = self._env.event()
        self._waiters.append(mine)
        yield mine
        stolen = thread.cpu.stolen - stolen  # interrupts are taken while spinning
        thread.cpu.spent[LOCK_WAIT] += max(0, int(self._env.now) - asked - stolen)

    def release(self) -> None:
        """Pass the lock on."""
        if not self._waiters:
            self.held = False
            self.busy_ns += int(self._env.now) - self._since
            return
        handover = self._env.timeout(int(self._handover_ns * len(self._waiters)))
        assert handover.callbacks is not None
        handover.callbacks.append(self._pass_on)

    def _pass_on(self, _: simpy.Event) -> None:
        # A byte lock's newcomers are among the waiters by now: any may win.
        chosen = 0 if self._random is None else self._random.randrange(len(self._waiters))
        self._waiters.pop(chosen).succeed()


def send_ipis(thread: Thread, targets: list[int], cpus: list[Cpu], costs: Costs) -> Steps:
    """Interrupt `targets` and wait until all have acknowledged; an idle one must wake up first."""
    if not targets:
        return
    handler_ns = int(costs.ipi_handler_ns)
    hold_ns = costs.ipi_ack_ns + costs.ipi_send_ns * len(targets)
    if any(cpus[target].idle for target in targets):
        hold_ns += costs.idle_exit_ns
    for target in targets:
        cpus[target].stolen += handler_ns
        cpus[target].spent[HANDLERS] += handler_ns
    thread.cpu.spent[FLUSHES] += int(hold_ns)
    yield thread.env.timeout(int(hold_ns))


@kernel
def interrupts_others(
    policy: int, caller: int, dev: Blkback, dirty: np.ndarray, accessed: np.ndarray
) -> bool:
    """Would the flush of `dev`'s unmaps go to another CPU, so that the flush lock is needed?

    Xen's flush_area_mask looks at the mask before it takes the lock, and copies it after.
    """
    for cpu in range(len(dirty)):
        if cpu == caller or load_acquire(dirty, cpu) == 0:
            continue
        if policy != PRECISE:
            return True
        for done in range(dev.back[0].unmap_ops):
            word = np.int64(dev.unmap_ops[done].handle) * ACCESSED_WORDS + (cpu >> 6)
            if accessed[word] >> np.uint64(cpu & 63) & np.uint64(1):
                return True
    return False
