"""The one result format, schema 1: from snapshots to the numbers that people and tools read.

Owns: every number of a result, computed here and nowhere else, and the JSON file. The report and
the machine's counters() take theirs from here.
Rules: names are stable within a schema. A count that exists for the whole machine only is None in
a guest's own share (`ipis_by_cpu`, `host_tlb_shootdowns`, `cpu_seconds`). A latency of nothing is
None, too.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from toolstack.loadspec import ConfigError, LoadSpec
from toolstack.settings import Settings
from toolstack.snapshot import Snapshot, difference

SCHEMA: Final = 1
US: Final = 1000  # nanoseconds

Run = dict[str, Any]

PERCENTILES: Final = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}


class _Source(NamedTuple):
    """Where a counter comes from, and how guests' shares are put together."""

    block: str
    field: str
    combine: Callable[[Iterable[int]], int] = sum


def _largest(levels: Iterable[int]) -> int:
    return max(levels, default=0)


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
    from common.histogram import middle_of, to_hdr  # noqa: PLC0415

    histogram = to_hdr(counts)
    # HdrHistogram's own mean visits its 65,000 slots one by one: too slow for 64 guests.
    total = sum(int(counts[bucket]) * middle_of(int(bucket)) for bucket in np.flatnonzero(counts))
    return {
        "mean": total / int(counts.sum()) / US,
        **{
            name: histogram.get_value_at_percentile(percentile) / US
            for name, percentile in PERCENTILES.items()
        },
        "max": histogram.get_max_value() / US,
    }


def build_run(
    topology: Settings,
    spec: LoadSpec,
    *,
    booted: Snapshot,
    started: Snapshot,
    finished: Snapshot,
    closed: Snapshot,
) -> Run:
    """One RUN of the result format: the load from `started` to `finished`.

    What came before, from `booted` on, is `setup`; what came after, until `closed`, `teardown`.
    """
    phases = {
        "run": difference(finished, started),
        "setup": difference(started, booted),
        "teardown": difference(closed, finished),
    }
    domids = sorted(finished.frontend)
    return {
        "config": {
            "runtime": "real",
            "mode": topology.mode,
            **topology.model_dump(exclude={"seed"}),
            "topology_seed": topology.seed,
            **spec.model_dump(),
        },
        **_share(phases, None),
        "guests": [
            {"domid": domid, "suspect": domid in finished.suspects, **_share(phases, domid)}
            for domid in domids
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


def _share(phases: dict[str, Snapshot], domid: int | None) -> dict[str, Any]:
    """Totals, latencies and counters of one guest, or of all if `domid` is None."""
    run = phases["run"]
    shares = [counts for guest, counts in run.latency.items() if domid in (None, guest)]
    return {
        "totals": _totals(run, domid),
        "latency_us": latency_us(np.stack(shares).sum(axis=0)),
        "counters": {
            **_counters(run, domid),
            "setup": _counters(phases["setup"], domid),
            "teardown": _counters(phases["teardown"], domid),
        },
    }


def _totals(run: Snapshot, domid: int | None) -> dict[str, Any]:
    def total(field: str) -> int:
        return sum(_values(run, "frontend", field, domid))

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
        "cpu_seconds": run.cpu_seconds if domid is None else None,
    }


def _counters(change: Snapshot, domid: int | None = None) -> dict[str, Any]:
    whole = domid is None
    found: dict[str, Any] = {}
    for name, source in COUNTERS.items():
        found[name] = source.combine(_values(change, source.block, source.field, domid))
        if name == "ipis":
            received = change.cpus["ipis_received"].tolist()
            found["ipis_by_cpu"] = received if whole else None
    found["host_tlb_shootdowns"] = change.host_tlb_shootdowns if whole else None
    return found


def _values(change: Snapshot, block: str, field: str, domid: int | None) -> list[int]:
    blocks: dict[int, np.ndarray] = getattr(change, block)
    return [int(blocks[guest][field][0]) for guest in blocks if domid in (None, guest)]


def check_writable(path: str | Path) -> None:
    """Can a result be written to `path`? Tried, and nothing is left behind. Raises ConfigError."""
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not os.path.isfile(target):  # unlike pathlib's, these never raise
        raise ConfigError(f"json: '{path}' is not a regular file")
    if not os.path.isdir(target.parent):
        raise ConfigError(f"json: '{path}' cannot be written: '{target.parent}' is no directory")
    attempt = _temporary(target)
    try:
        attempt.touch()
        attempt.unlink()
    except OSError as error:
        raise ConfigError(f"json: '{path}' cannot be written: {error.strerror}") from None


def write_json(path: str | Path, runs: Sequence[Run]) -> None:
    """Write `runs` to `path` whole or not at all. Raises ConfigError."""
    check_writable(path)
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    text = json.dumps({"schema": SCHEMA, "runs": list(runs)}, indent=2, allow_nan=False)
    try:
        temporary.write_text(f"{text}\n")
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"json: '{path}' cannot be written: {error.strerror}") from None


def _temporary(target: Path) -> Path:
    """In the same directory, so that the rename is atomic."""
    return target.with_name(f".{target.name}.{os.getpid()}")
