"""The one result format, schema 2: from snapshots to the numbers that people and tools read.

Owns: every number of a result, computed here (a histogram's in `toolstack/latencies.py`) and
nowhere else. The report, the machine's counters()
and the files (`toolstack/files.py`) take theirs from here.
Rules: names are stable within a schema; those of schema 1 are sums over all that is below them. A
count that exists for the whole machine only is None in a guest's own share (`ipis_by_cpu`,
`host_tlb_shootdowns`, `cpu_seconds`), and one that the hypervisor keeps by guest in a disk's
(flushes and what they cause). A latency of nothing is None, too.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from common.abi import DOMID_0
from common.counters import BACKEND_COUNTERS, CPU_COUNTERS
from toolstack.disks import Disk
from toolstack.jobs import Job, jobs_on
from toolstack.latencies import of_operations
from toolstack.loadspec import LoadSpec
from toolstack.settings import Settings
from toolstack.snapshot import Snapshot, difference

SCHEMA: Final = 2
US: Final = 1000  # nanoseconds

Run = dict[str, Any]

PERCENTILES: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}


class Part(NamedTuple):
    """What part of a machine: a guest, or one of its disks by number; all of it by default."""

    domid: int | None = None
    disk: int | None = None


WHOLE: Final = Part()
WHERE: Final = ("vdev", "domid", "job")  # of a load's settings, those that say where it runs


class _Source(NamedTuple):
    """Where a counter comes from, and how shares are put together."""

    block: str
    field: str
    combine: Callable[[Iterable[int]], int] = sum

    def of(self, change: Snapshot, part: Part) -> int | None:
        """The count in `change` of `part`; None if it is not known of a part so small."""
        block = self.block
        if part.disk is not None and block == "hypervisor":
            if self.field not in RING_OPS:
                return None
            block = "backend"
        return self.combine(_values(change, block, self.field, part))


def _largest(levels: Iterable[int]) -> int:
    return max(levels, default=0)


# What the hypervisor counts by guest, and a ring's backend for the ring: all but the mapping of the
# ring's own page.
RING_OPS: Final = ("map_ops", "unmap_ops", "copy_ops", "hypercalls")

COUNTERS: Final[dict[str, _Source]] = {
    "grants_issued": _Source("frontend", "grants_issued"),
    "grants_ended": _Source("frontend", "grants_ended"),
    "map_ops": _Source("hypervisor", "map_ops"),
    "unmap_ops": _Source("hypervisor", "unmap_ops"),
    "copy_ops": _Source("hypervisor", "copy_ops"),
    "hypercalls": _Source("hypervisor", "hypercalls"),
    "flushes": _Source("hypervisor", "flushes"),
    "flush_entries": _Source("hypervisor", "flush_entries"),
    "ipis": _Source("hypervisor", "ipis"),
    "flush_lock_waits": _Source("hypervisor", "flush_lock_waits"),
    "notify_to_back": _Source("frontend", "notify_to_back"),
    "notify_to_front": _Source("backend", "notify_to_front"),
    "bytes_copied_by_guest": _Source("frontend", "bytes_copied_by_guest"),
    "persistent_max": _Source("backend", "persistent_max", _largest),
    "overflow_segments": _Source("backend", "overflow_segments"),
    "bad_requests": _Source("backend", "bad_requests"),
    "flush_requests": _Source("frontend", "flush_requests"),
    "discard_requests": _Source("frontend", "discard_requests"),
    "bytes_discarded": _Source("frontend", "bytes_discarded"),
    "store_flushes": _Source("backend", "store_flushes"),
    "store_discards": _Source("backend", "store_discards"),
}


def counters(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """What the whole machine counted from `before` to `after`, by the names of the format.

    `ipis_by_cpu` are those each worker CPU received.
    """
    return _counters(difference(after, before))


def latency_us(counts: np.ndarray) -> dict[str, float | None]:
    """Mean, percentiles and maximum in microseconds, of a latency block (u64, shape (BUCKETS,))."""
    if not counts.any():
        return dict.fromkeys(("mean", *PERCENTILES, "max"))
    # Brings Numba, which `--help` does not need.
    from common.histogram import middle_of, value_at  # noqa: PLC0415

    total = sum(int(counts[bucket]) * middle_of(int(bucket)) for bucket in np.flatnonzero(counts))
    return {
        "mean": total / int(counts.sum()) / US,
        **{name: value_at(counts, percentile) / US for name, percentile in PERCENTILES.items()},
        "max": value_at(counts, 100) / US,
    }


def build_run(
    topology: Settings,
    spec: LoadSpec | None,
    *,
    booted: Snapshot,
    started: Snapshot,
    finished: Snapshot,
    closed: Snapshot,
) -> Run:
    """One RUN of the result format: the load from `started` to `finished`.

    What came before, from `booted` on, is `setup`; what came after, until `closed`, `teardown`.
    spec: None where somebody only looked.
    """
    phases = {
        "run": difference(finished, started),
        "setup": difference(started, booted),
        "teardown": difference(closed, finished),
    }
    ran = [] if spec is None else jobs_on(spec, topology.every_disk())
    jobs = {(job.disk.domid, job.disk.number): job for job in ran}
    return {
        "config": {
            "runtime": "real",
            "mode": topology.mode,
            **topology.model_dump(mode="json", exclude={"seed"}),
            "topology_seed": topology.seed,
            **({} if spec is None else spec.model_dump(mode="json")),
        },
        **_share(phases, WHOLE),
        "guests": [
            {
                "domid": domid,
                "suspect": domid in finished.suspects,
                **_share(phases, Part(domid)),
                "disks": [
                    _disk(phases, disk, jobs.get((domid, disk.number)))
                    for disk in topology.disks_of(domid)
                ],
            }
            for domid in topology.domids
        ],
        "backends": [_backend(phases["run"], topology)],
    }


def _disk(phases: dict[str, Snapshot], disk: Disk, job: Job | None) -> dict[str, Any]:
    """A disk's share. load: what ran on it, None if it was left alone; a ring is all of it yet."""
    part = Part(disk.domid, disk.number)
    share, (counters,) = _share(phases, part), _blocks(phases["run"], "frontend", part)
    return {
        "vdev": disk.vdev,
        "target": disk.spec.params,
        "access": disk.spec.access,
        "verified": job.verified if job else None,
        "load": job.spec.model_dump(mode="json", exclude=set(WHERE)) if job else None,
        "operations": of_operations(_latencies(phases["run"], part), counters),
        **share,
        "rings": [{"ring": 0, **share}],
    }


def _backend(run: Snapshot, topology: Settings) -> dict[str, Any]:
    """dom0: what its CPUs and its rings counted by themselves."""
    assert CPU_COUNTERS.names is not None and BACKEND_COUNTERS.names is not None
    return {
        "domid": DOMID_0,
        "cpus": [
            {"cpu": cpu, **{name: int(row[name]) for name in CPU_COUNTERS.names}}
            for cpu, row in enumerate(run.cpus)
        ],
        "rings": [
            {
                "domid": disk.domid,
                "vdev": disk.vdev,
                "ring": 0,
                **{
                    name: int(run.backend[disk.domid][name][disk.number])
                    for name in BACKEND_COUNTERS.names
                },
            }
            for disk in topology.every_disk()
        ],
    }


def grants_left(closed: Snapshot) -> int:
    """Grants that are still mapped after every disk was closed: 0, or something leaked."""
    return sum(int(block["grants_mapped"][0]) for block in closed.hypervisor.values())


def faults(runs: Sequence[Run], left: Sequence[int], failures: Sequence[Sequence[str]] = ()) -> str:
    """What makes these runs unsound, for people; empty if nothing does.

    left: see grants_left; failures: what became of guests, for each run.
    """
    found = []
    for run, grants, failed in zip(runs, left, failures or [()] * len(runs), strict=True):
        totals, counted = run["totals"], run["counters"]
        phases = (counted, counted["setup"], counted["teardown"])
        counts = {
            "verify errors": totals["verify_errors"],
            "I/O errors": totals["io_errors"],
            # Our own blkfront writes none: one that is refused is a fault of either end.
            "bad requests": sum(phase["bad_requests"] for phase in phases),
            "grants left mapped": grants,
        }
        named = [*failed, *(f"{count} {name}" for name, count in counts.items() if count)]
        suspects = [str(guest["domid"]) for guest in run["guests"] if guest["suspect"]]
        if suspects:
            named.append(f"the own figures of guest {', '.join(suspects)} cannot be true")
        if named:
            found.append(f"{run['config']['mode']}: {', '.join(named)}")
    return "; ".join(found)


def _share(phases: dict[str, Snapshot], part: Part) -> dict[str, Any]:
    """Totals, latencies and counters of a part of the machine."""
    run = phases["run"]
    return {
        "totals": _totals(run, part),
        "latency_us": latency_us(_latencies(run, part).sum(axis=0)),
        "counters": {
            **_counters(run, part),
            "setup": _counters(phases["setup"], part),
            "teardown": _counters(phases["teardown"], part),
        },
    }


def _latencies(change: Snapshot, part: Part) -> np.ndarray:
    """Of all disks of `part` together: u64, shape (len(OPERATIONS), BUCKETS)."""
    return np.asarray(np.concatenate(_blocks(change, "latency", part)).sum(axis=0))


def _totals(run: Snapshot, part: Part) -> dict[str, Any]:
    def total(field: str) -> int:
        return sum(_values(run, "frontend", field, part))

    seconds = run.at_s
    return {
        "requests": total("requests"),
        "segments": total("segments"),
        "bytes_read": total("bytes_read"),
        "bytes_written": total("bytes_written"),
        "seconds": seconds,
        "iops": total("ios") / seconds if seconds > 0 else 0.0,  # fio's: the load's own I/Os
        "verify_errors": total("verify_errors"),
        "io_errors": total("io_errors"),
        "cpu_seconds": run.cpu_seconds if part == WHOLE else None,
    }


def _counters(change: Snapshot, part: Part = WHOLE) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, source in COUNTERS.items():
        found[name] = source.of(change, part)
        if name == "ipis":
            received = change.cpus["ipis_received"].tolist()
            found["ipis_by_cpu"] = received if part == WHOLE else None
    found["host_tlb_shootdowns"] = change.host_tlb_shootdowns if part == WHOLE else None
    return found


def _values(change: Snapshot, block: str, field: str, part: Part) -> list[int]:
    return [value for rows in _blocks(change, block, part) for value in rows[field].tolist()]


def _blocks(change: Snapshot, block: str, part: Part) -> list[np.ndarray]:
    """The rows of each guest that `part` is of, or has."""
    blocks: dict[int, np.ndarray] = getattr(change, block)
    if part.domid is None:
        return list(blocks.values())
    rows = blocks[part.domid]
    return [rows if part.disk is None else rows[part.disk : part.disk + 1]]
