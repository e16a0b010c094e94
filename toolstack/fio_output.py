"""Results by fio's names: what `fio --output-format=json` writes, so that its readers read ours.

Owns: which of our figures is which of fio's. A job is a disk that a load ran on, a group is a run;
latencies begin when an I/O is queued and end when it was found done, so clat and lat are the same
and slat is none. What nobody knows of one disk, as the CPU time, is 0.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from toolstack.latencies import NOTHING
from toolstack.results import Run

VERSION: Final = "fio-3.33"  # whose form this is
EIO, EILSEQ = 5, 84  # fio's errors of an I/O that failed, and of one that is not what it was to be
MS: Final = 1000
# What lies below each, in ns, us and ms.
BELOW: Final = (2, 4, 10, 20, 50, 100, 250, 500, 750, 1000)
UNITS: Final = {"latency_ns": 1, "latency_us": 1_000, "latency_ms": 1_000_000}
DEPTHS: Final = (1, 2, 4, 8, 16, 32, 64)
FEW: Final = (0, 4, 8, 16, 32, 64)
SAMPLES: Final = {
    **dict.fromkeys(("bw_min", "bw_max"), 0),
    **dict.fromkeys(("bw_agg", "bw_mean", "bw_dev"), 0.0),
    "bw_samples": 0,
    **dict.fromkeys(("iops_min", "iops_max"), 0),
    **dict.fromkeys(("iops_mean", "iops_stddev"), 0.0),
    "iops_samples": 0,
}


def fio_json(runs: Sequence[Run], bins: bool = False) -> bytes:
    """As `--output-format=json` has it; bins: as json+ has it."""
    now = time.time()
    jobs = [
        _job(run, group, guest["domid"], disk, bins)
        for group, run in enumerate(runs)
        for guest in run["guests"]
        for disk in guest["disks"]
        if disk["load"] is not None
    ]
    whole = {
        "fio version": VERSION,
        "timestamp": int(now),
        "timestamp_ms": int(now * MS),
        "time": time.ctime(now),
        "jobs": jobs,
    }
    return f"{json.dumps(whole, indent=2, allow_nan=False)}\n".encode()


def _job(run: Run, group: int, domid: int, disk: Mapping[str, Any], bins: bool) -> dict[str, Any]:
    load, totals = disk["load"], disk["totals"]
    seconds = totals["seconds"]
    directions = {
        name: _direction(found, seconds, bins) for name, found in disk["operations"].items()
    }
    error = EIO if totals["io_errors"] else EILSEQ if totals["verify_errors"] else 0
    flushes = disk["counters"]["flush_requests"]
    depth = load["iodepth"]
    return {
        "jobname": load["name"] or f"guest-{domid}.{disk['vdev']}",
        "groupid": group,
        "error": error,
        "eta": 0,
        "elapsed": max(1, round(seconds)),
        "job options": _options(run, load, domid, disk),
        **directions,
        "sync": {"total_ios": flushes, "lat_ns": NOTHING},
        "job_runtime": round(seconds * MS),
        **dict.fromkeys(("usr_cpu", "sys_cpu"), 0.0),
        **dict.fromkeys(("ctx", "majf", "minf"), 0),
        "iodepth_level": _shares(DEPTHS, max(at for at in DEPTHS if at <= depth)),
        "iodepth_submit": _shares(FEW, 4),
        "iodepth_complete": _shares(FEW, 4),
        **_spread(disk["operations"].values()),
        "latency_depth": depth,
        "latency_target": 0,
        "latency_percentile": 100.0,
        "latency_window": 0,
    }


def _direction(found: Mapping[str, Any], seconds: float, bins: bool) -> dict[str, Any]:
    latency = {name: value for name, value in found["latency_ns"].items() if name in NOTHING}
    more = ("percentile", *(("bins",) if bins else ())) if found["ios"] else ()
    clat = {**latency, **{name: found["latency_ns"][name] for name in more}}
    rate = found["bytes"] / seconds if seconds > 0 else 0.0
    return {
        "io_bytes": found["bytes"],
        "io_kbytes": found["bytes"] >> 10,
        "bw_bytes": int(rate),
        "bw": int(rate) >> 10,
        "iops": found["ios"] / seconds if seconds > 0 else 0.0,
        "runtime": round(seconds * MS) if found["ios"] else 0,
        "total_ios": found["ios"],
        "short_ios": 0,
        "drop_ios": 0,
        "slat_ns": NOTHING,
        "clat_ns": clat,
        "lat_ns": latency,
        **SAMPLES,
    }


def _options(run: Run, load: Mapping[str, Any], domid: int, disk: Mapping[str, Any]) -> Any:
    """What fio would have been told, and what it could not."""
    said = {
        "rw": load["rw"],
        "bs": load["bs"],
        "iodepth": load["iodepth"],
        "rwmixread": load["rwmixread"],
        "runtime": load["runtime_s"],
        "filename": f"guest-{domid}.{disk['vdev']}",
        "ioengine": f"grantlab-{run['config']['mode']}",
    }
    return {name: str(value) for name, value in said.items() if value is not None}


def _shares(steps: Sequence[int], at: int) -> dict[str, float]:
    """Of a load that keeps its depth: all is at one of the steps."""
    names = [str(step) for step in steps[:-1]] + [f">={steps[-1]}"]
    if steps is FEW:
        names.insert(-1, str(steps[-1]))
    return {
        name: 100.0 if name.removeprefix(">=") == str(at) and name != "64" else 0.0
        for name in names
    }


def _spread(operations: Any) -> dict[str, dict[str, float]]:
    """How many percent of all took how long: each step's, from the one before it on."""
    bins = [
        (int(value), count)
        for found in operations
        for value, count in found["latency_ns"]["bins"].items()
    ]
    total = sum(count for _, count in bins) or 1

    def share(low_ns: float, high_ns: float) -> float:
        within = sum(count for value, count in bins if low_ns <= value < high_ns)
        return round(100 * within / total, 6)

    found: dict[str, dict[str, float]] = {}
    for name, unit in UNITS.items():
        lows = (0 if unit == 1 else unit, *(step * unit for step in BELOW))
        found[name] = {
            str(step): share(low, step * unit) for low, step in zip(lows, BELOW, strict=False)
        }
    second = UNITS["latency_ms"] * MS
    found["latency_ms"]["2000"] = share(second, 2 * second)
    found["latency_ms"][">=2000"] = share(2 * second, float("inf"))
    return found
