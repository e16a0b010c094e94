"""What the machine had counted at one moment, and what lies between two moments.

Owns: the shape of a snapshot, differences, and the reader of the host kernel's own count of TLB
shootdowns. Taking one from shared memory is `toolstack/sight.py`'s.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from common.counters import LEVELS

INTERRUPTS: Final = Path("/proc/interrupts")


@dataclass(frozen=True)
class Snapshot:
    """Counters at `at_s` (monotonic seconds), by guest domid; every array is a copy.

    frontend, backend: FRONTEND_COUNTERS, BACKEND_COUNTERS, shape (disks,), by disk number; latency:
    u64, shape (disks, len(OPERATIONS), BUCKETS); hypervisor: HYPERVISOR_COUNTERS, shape (1,); cpus:
    CPU_COUNTERS, one for each worker CPU; host_tlb_shootdowns: the host kernel's, None where it
    does not tell; cpu_seconds: used by all processes of the machine; suspects: domids whose own
    figures cannot be true (`toolstack/guest_stats.py`).
    """

    at_s: float
    frontend: Mapping[int, np.ndarray]
    backend: Mapping[int, np.ndarray]
    hypervisor: Mapping[int, np.ndarray]
    latency: Mapping[int, np.ndarray]
    cpus: np.ndarray
    host_tlb_shootdowns: int | None
    cpu_seconds: float
    suspects: frozenset[int] = frozenset()


def difference(after: Snapshot, before: Snapshot) -> Snapshot:
    """What was counted from `before` to `after`; levels stand as they are in `after`.

    `at_s` becomes the seconds between. A guest or a disk that was not there before had counted
    nothing.
    """
    shootdowns = None
    if after.host_tlb_shootdowns is not None and before.host_tlb_shootdowns is not None:
        shootdowns = after.host_tlb_shootdowns - before.host_tlb_shootdowns
    return Snapshot(
        at_s=after.at_s - before.at_s,
        frontend=_each(after.frontend, before.frontend),
        backend=_each(after.backend, before.backend),
        hypervisor=_each(after.hypervisor, before.hypervisor),
        latency=_each(after.latency, before.latency),
        cpus=_subtract(after.cpus, before.cpus),
        host_tlb_shootdowns=shootdowns,
        cpu_seconds=after.cpu_seconds - before.cpu_seconds,
        suspects=after.suspects,
    )


def only(snapshot: Snapshot, disks: Collection[tuple[int, int]]) -> Snapshot:
    """`snapshot` as if nothing but these disks, by domid and number, had been counted; what is
    counted for the whole machine, or for a guest that has one of them, stands."""
    domids = {domid for domid, _ in disks}

    def kept(blocks: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        found = {domid: np.zeros_like(rows) for domid, rows in blocks.items()}
        for domid, number in disks:
            found[domid][number] = blocks[domid][number]
        return found

    return replace(
        snapshot,
        frontend=kept(snapshot.frontend),
        backend=kept(snapshot.backend),
        latency=kept(snapshot.latency),
        hypervisor={
            domid: rows if domid in domids else np.zeros_like(rows)
            for domid, rows in snapshot.hypervisor.items()
        },
    )


def _each(
    after: Mapping[int, np.ndarray], before: Mapping[int, np.ndarray]
) -> dict[int, np.ndarray]:
    return {
        domid: _subtract(block, _padded(before.get(domid), block)) for domid, block in after.items()
    }


def _padded(before: np.ndarray | None, after: np.ndarray) -> np.ndarray:
    """`before` with as many rows as `after`, the new ones zero."""
    padded = np.zeros_like(after)
    if before is not None:
        padded[: len(before)] = before
    return padded


def _subtract(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Word by word; a record's levels are kept."""
    if after.dtype.names is None:
        return np.asarray(after - before)
    result = after.copy()
    for name in after.dtype.names:
        if name not in LEVELS:
            result[name] -= before[name]
    return result


def host_tlb_shootdowns(interrupts: Path = INTERRUPTS) -> int | None:
    """TLB-shootdown interrupts that this host's CPUs took since boot; None if it counts none.

    The sum of the TLB line of /proc/interrupts (x86). Everything that runs on the host is in it.
    """
    try:
        lines = interrupts.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, counts = line.strip().partition(":")
        if name == "TLB":
            return sum(int(word) for word in counts.split() if word.isdigit())
    return None
