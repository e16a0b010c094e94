"""The worker CPUs that dom0's vCPUs are pinned to, and the TLB flushes that interrupt them.

Owns: what one flush costs in interrupts, by policy, and the counts. dom0 says in shared words which
of its CPUs run and which are dirty, as a context switch would; this reads them.

A flush goes to CPUs of dom0's dirty mask, never to the caller's own, which flushes itself without
an interrupt. Policies:
    mask        all in the mask; one that is idle stays in it (Xen since 4.11, c64bf2d2a6)
    mask-2012   all in the mask; one found idle leaves it, until its vCPU runs again
    accessed    as `mask`, but none at all if dom0's CPUs never touched the pages (a Citrix patch)
    precise     those CPUs that touched one of the pages, so may hold its translation
Rule: `accessed` words (four u64 a maptrack handle: a bit for each of 256 CPUs) stand for the
accessed bits of dom0's page tables. They are cleared when the mapping goes.

Source: Xen's `arch/x86/smp.c` (flush_area_mask, one global flush_lock) and `common/grant_table.c`
(one flush for each 32 unmaps).
"""

from typing import Final

import numpy as np

from common.atomics import fence, load_acquire, store_release
from common.compiled import direct, kernel
from hypervisor.maptrack import UNMAPPED

FLUSH_ENTRIES_MAX: Final = 32  # GNTTAB_UNMAP_BATCH_SIZE

MASK: Final = 0
MASK_2012: Final = 1
ACCESSED: Final = 2
PRECISE: Final = 3
POLICIES: Final = {"mask": MASK, "mask-2012": MASK_2012, "accessed": ACCESSED, "precise": PRECISE}

ACCESSED_WORDS: Final = 4
NO_FLUSH: Final = -1
NO_CPU: Final = -1


class Cpus:
    """`nr_cpus` worker CPUs under `policy`.

    dirty, running: u32 by CPU, shared with dom0; counters: CPU_COUNTERS by CPU; accessed: u64,
    ACCESSED_WORDS for each handle that dom0 may have; holders: scratch, u64 (ACCESSED_WORDS,).
    Raises ValueError for a policy that is none.
    """

    def __init__(
        self,
        nr_cpus: int,
        policy: str,
        *,
        dirty: np.ndarray,
        running: np.ndarray,
        counters: np.ndarray,
        accessed: np.ndarray,
        holders: np.ndarray,
    ) -> None:
        if policy not in POLICIES:
            raise ValueError(f"flush policy: {policy!r} is not one of {', '.join(POLICIES)}")
        self.nr_cpus = nr_cpus
        self._policy = POLICIES[policy]
        self._words = dirty, running, counters, accessed, holders
        none = np.zeros(0, UNMAPPED)
        self._flush = direct(flush, self._policy, NO_CPU, False, none, *self._words)

    def stop(self) -> None:
        """Who ran there is dead, and could not say that it runs no more."""
        self._words[1][:] = 0

    def flush(self, caller: int, unmapped: np.ndarray, waited: bool) -> int:
        """The flush after `unmapped` (UNMAPPED, at most 32): IPIs sent, or NO_FLUSH if none is due.

        caller: the CPU that unmaps; waited: it has queued on the flush lock behind another's.
        """
        assert len(unmapped) <= FLUSH_ENTRIES_MAX
        ipis: int = self._flush(self._policy, caller, waited, unmapped, *self._words)
        return ipis


@kernel
def flush(
    policy: int,
    caller: int,
    waited: bool,
    unmapped: np.ndarray,
    dirty: np.ndarray,
    running: np.ndarray,
    counters: np.ndarray,
    accessed: np.ndarray,
    holders: np.ndarray,
) -> int:
    """See `Cpus` and its `flush`. Clears the accessed words of what was unmapped, in any case."""
    holders[:] = 0
    entries = 0
    for index in range(len(unmapped)):
        if unmapped[index].done:
            entries += 1
            first = np.int64(unmapped[index].handle) * ACCESSED_WORDS
            for word in range(ACCESSED_WORDS):
                holders[word] |= accessed[first + word]
                accessed[first + word] = np.uint64(0)
    held = (holders[0] | holders[1] | holders[2] | holders[3]) != 0
    if policy in (ACCESSED, PRECISE) and not held:
        return NO_FLUSH
    ipis = 0
    for cpu in range(len(dirty)):
        if cpu == caller or load_acquire(dirty, cpu) == 0:
            continue
        if policy == PRECISE and not holders[cpu >> 6] >> np.uint64(cpu & 63) & np.uint64(1):
            continue
        ipis += 1
        counters[cpu].ipis_received += np.uint64(1)
        if policy == MASK_2012:
            _leave_if_idle(dirty, running, cpu)
    counters[caller].ipis_sent += np.uint64(ipis)
    counters[caller].flushes += np.uint64(1)
    counters[caller].flush_entries += np.uint64(entries)
    counters[caller].flush_lock_waits += np.uint64(waited)
    return ipis


@kernel
def _leave_if_idle(dirty: np.ndarray, running: np.ndarray, cpu: int) -> None:
    """The deferred switch of an idle CPU: out of the mask, unless its vCPU has come back.

    The bit goes first and comes back if the vCPU runs; the vCPU says that it runs before it sets
    the bit. So whichever way the two cross, a running vCPU's CPU is in the mask.
    """
    store_release(dirty, cpu, np.uint32(0))
    fence()
    if load_acquire(running, cpu):
        store_release(dirty, cpu, np.uint32(1))
