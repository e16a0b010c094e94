"""One measurement: what every contestant is held to.

Owns: the four numbers, and how a running grantlab machine gives them.
"""

from typing import NamedTuple

import numpy as np

from toolstack.loadspec import LoadSpec
from toolstack.results import latency_us
from toolstack.snapshot import difference
from toolstack.topology import RunningMachine


class Figure(NamedTuple):
    """I/Os a second; latencies in us; CPU seconds of all processes for a million requests."""

    iops: float
    p50_us: float
    p99_us: float
    cpu_s_per_million: float


def measure(machine: RunningMachine, spec: LoadSpec) -> Figure:
    """Run `spec` on every guest, and say what came of it. Raises AssertionError on a bad byte."""
    before = machine.snapshot()
    *_, after = machine.load(spec)
    run = difference(after, before)
    counts = list(run.frontend.values())
    for field in ("verify_errors", "io_errors"):
        assert not any(int(block[field][0]) for block in counts), field
    ios = sum(int(block["ios"][0]) for block in counts)
    requests = sum(int(block["requests"][0]) for block in counts)
    latency = latency_us(np.concatenate(list(run.latency.values())).sum(axis=(0, 1)))
    return Figure(
        ios / run.at_s,
        latency["p50"] or 0.0,
        latency["p99"] or 0.0,
        run.cpu_seconds / max(requests, 1) * 1e6,
    )
