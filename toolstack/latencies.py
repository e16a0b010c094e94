"""What a histogram of latencies says, in nanoseconds and by fio's names.

Owns: its extremes, mean, deviation and percentiles, each as exact as a bucket is wide (1.6 %).
"""

from typing import Any, Final

import numpy as np

from common.counters import OPERATIONS

PERCENTILES: Final = (
    1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99,
)  # fmt: skip
BYTES: Final = ("bytes_read", "bytes_written", "bytes_discarded")  # of each of OPERATIONS
NOTHING: Final = {"min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0}


def of_operations(counts: np.ndarray, counters: np.ndarray) -> dict[str, dict[str, Any]]:
    """What a disk's load did of each: I/Os, bytes, `latency_ns`. counts: u64, shape
    (len(OPERATIONS), BUCKETS); counters: FRONTEND_COUNTERS (1,)."""
    return {
        name: {
            "ios": int(histogram.sum()),
            "bytes": int(counters[nbytes][0]),
            "latency_ns": summary(histogram),
        }
        for name, nbytes, histogram in zip(OPERATIONS, BYTES, counts, strict=True)
    }


def summary(histogram: np.ndarray) -> dict[str, Any]:
    """fio's clat_ns of a histogram (u64, shape (BUCKETS,)), with its bins."""
    if not histogram.any():
        return {**NOTHING, "percentile": {f"{each:f}": 0 for each in PERCENTILES}, "bins": {}}
    # Brings Numba, which `--help` does not need.
    from common.histogram import middle_of, value_at  # noqa: PLC0415

    bins = {middle_of(int(at)): int(histogram[at]) for at in np.flatnonzero(histogram)}
    values, weights = np.array(list(bins), float), np.array(list(bins.values()), float)
    mean = float(np.average(values, weights=weights))
    return {
        "min": min(bins),
        "max": max(bins),
        "mean": mean,
        "stddev": float(np.sqrt(np.average((values - mean) ** 2, weights=weights))),
        "N": int(weights.sum()),
        "percentile": {f"{each:f}": value_at(histogram, each) for each in PERCENTILES},
        "bins": {str(value): count for value, count in bins.items()},
    }
