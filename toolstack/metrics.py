"""What a machine counts, for Prometheus: its text format, version 0.0.4.

Owns: the names, which are the project's own (common/counters.py) behind who counts: a counter
`map_ops` of the hypervisor is `grantlab_hypervisor_map_ops_total`. What is a level is a gauge.
Rule: labels are the machine's and never a guest's to choose: a guest's own counters are numbers.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
from prometheus_client import Metric, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from common.counters import (
    BACKEND_COUNTERS,
    CPU_COUNTERS,
    FRONTEND_COUNTERS,
    HYPERVISOR_COUNTERS,
    LEVELS,
    OPERATIONS,
)
from toolstack.seen import Seen

PREFIX: Final = "grantlab"
DISK: Final = ("domid", "vdev")
BOUNDS_US: Final = tuple(
    step * 10**power for power in range(1, 7) for step in (1, 2, 5)
)  # 10 us to 5 s
US: Final = 1000  # nanoseconds
S: Final = 10**9

WHO: Final = {
    "frontend": "the guest's blkfront and its load",
    "backend": "dom0's blkback",
    "hypervisor": "the hypervisor",
    "cpu": "the hypervisor, by worker CPU",
}


def exposition(seen: Seen | None) -> bytes:
    """Of a machine as it was seen; None: it has died, and has no more to say."""
    return generate_latest(_Families([_up(seen is not None), *(_families(seen) if seen else ())]))


class _Families(Collector):
    """What prometheus_client writes down."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """As they are."""
        return self._families


def _up(lives: bool) -> Metric:
    text = "1 while the machine runs, 0 when it has died and is kept for its name and its log."
    return GaugeMetricFamily(f"{PREFIX}_up", text, value=lives)


def _families(seen: Seen) -> Iterator[Metric]:
    yield from _machine(seen)
    yield from _domains(seen)
    yield from _disks(seen)
    for block, dtype in (("frontend", FRONTEND_COUNTERS), ("backend", BACKEND_COUNTERS)):
        rows = [
            ((str(disk["domid"]), disk["vdev"]), row)
            for disk in seen.status["disks"]
            if (row := seen.row(block, disk)) is not None
        ]
        yield from _counted(block, dtype, DISK, rows)
    hypervisor = [((str(d),), rows[0]) for d, rows in seen.snapshot.hypervisor.items()]
    yield from _counted("hypervisor", HYPERVISOR_COUNTERS, ("domid",), hypervisor)
    cpus = [((str(cpu),), row) for cpu, row in enumerate(seen.snapshot.cpus)]
    yield from _counted("cpu", CPU_COUNTERS, ("cpu",), cpus)
    yield _latencies(seen)


def _counted(
    who: str,
    dtype: np.dtype[Any],
    labels: tuple[str, ...],
    rows: Sequence[tuple[tuple[str, ...], Any]],
) -> Iterator[Metric]:
    """A family for each word of the counter blocks `rows`, each with the values of its labels."""
    for name in dtype.names or ():
        kind = GaugeMetricFamily if name in LEVELS else CounterMetricFamily
        family = kind(f"{PREFIX}_{who}_{name}", f"{name}, counted by {WHO[who]}.", labels=labels)
        for values, row in rows:
            family.add_metric(values, int(row[name]))
        yield family


def _machine(seen: Seen) -> Iterator[Metric]:
    described, snapshot = seen.described, seen.snapshot
    info = {name: str(described[name]) for name in ("name", "mode")}
    yield InfoMetricFamily(f"{PREFIX}_machine", "What machine it is.", value=info)
    loads = seen.status["loads"]
    yield GaugeMetricFamily(f"{PREFIX}_loads", "Loads that run.", value=loads)
    text = "CPU time of all its processes."
    yield CounterMetricFamily(f"{PREFIX}_cpu_seconds", text, value=snapshot.cpu_seconds)
    if snapshot.host_tlb_shootdowns is not None:
        text = "TLB-shootdown interrupts of the host, for everything that runs on it."
        name = f"{PREFIX}_host_tlb_shootdowns"
        yield CounterMetricFamily(name, text, value=snapshot.host_tlb_shootdowns)


def _domains(seen: Seen) -> Iterator[Metric]:
    text = "1 while the domain lives."
    runs = GaugeMetricFamily(f"{PREFIX}_domain_up", text, labels=("domid", "name"))
    for domain in seen.status["domains"]:
        runs.add_metric((str(domain["domid"]), domain["name"]), domain["state"] == "running")
    yield runs
    text = "1 if what the guest itself counts cannot be true: its last sound figures stand."
    suspect = GaugeMetricFamily(f"{PREFIX}_domain_suspect", text, labels=("domid",))
    for domid in seen.snapshot.frontend:
        suspect.add_metric((str(domid),), domid in seen.snapshot.suspects)
    yield suspect


def _disks(seen: Seen) -> Iterator[Metric]:
    text = "1 for the state of the disk's backend in xenstore."
    state = GaugeMetricFamily(f"{PREFIX}_disk_state", text, labels=(*DISK, "state"))
    text = "Requests on the ring that are not answered."
    used = GaugeMetricFamily(f"{PREFIX}_ring_requests", text, labels=DISK)
    slots = GaugeMetricFamily(f"{PREFIX}_ring_slots", "Requests that fit.", labels=DISK)
    for disk in seen.status["disks"]:
        where = (str(disk["domid"]), disk["vdev"])
        state.add_metric((*where, disk["state"]), 1)
        if disk["ring"] is not None:
            used.add_metric(where, disk["ring"]["used"])
            slots.add_metric(where, disk["ring"]["slots"])
    yield from (state, used, slots)


def _latencies(seen: Seen) -> Metric:
    """Of every operation that a disk's load has done."""
    # Brings Numba, which `--help` does not need.
    from common.histogram import BUCKETS, middle_of  # noqa: PLC0415

    text = "Latencies of the load's I/Os, to the 1.6 % that a bucket of the project is wide."
    labels = (*DISK, "operation")
    family = HistogramMetricFamily(f"{PREFIX}_latency_seconds", text, labels=labels)
    middles = np.array([middle_of(bucket) for bucket in range(BUCKETS)], np.uint64)
    within = [int(np.searchsorted(middles, bound * US, "right")) for bound in BOUNDS_US]
    for disk in seen.status["disks"]:
        rows = seen.row("latency", disk)
        for operation, counts in zip(OPERATIONS, () if rows is None else rows, strict=False):
            up_to = np.concatenate([np.zeros(1, np.uint64), np.cumsum(counts, dtype=np.uint64)])
            if not up_to[-1]:
                continue
            buckets = [
                (str(bound * US / S), int(up_to[nr]))
                for bound, nr in zip(BOUNDS_US, within, strict=True)
            ]
            total_s = float(np.dot(counts.astype(float), middles.astype(float))) / S
            where = (str(disk["domid"]), disk["vdev"], operation)
            family.add_metric(where, [*buckets, ("+Inf", int(up_to[-1]))], total_s)
    return family
