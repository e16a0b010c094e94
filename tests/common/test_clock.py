"""The compiled clock is the clock that Python reads."""

import time

import numpy as np

from common.clock import monotonic_ns


def test_it_reads_what_python_reads_between_two_looks() -> None:
    scratch = np.zeros(2, np.int64)
    monotonic_ns(scratch)
    for _ in range(100):
        before = time.monotonic_ns()
        now = monotonic_ns(scratch)
        assert before <= now <= time.monotonic_ns()


def test_it_leaves_seconds_and_nanoseconds_in_its_scratch() -> None:
    scratch = np.zeros(2, np.int64)
    now = monotonic_ns(scratch)
    assert divmod(now, 1_000_000_000) == (scratch[0], scratch[1])
