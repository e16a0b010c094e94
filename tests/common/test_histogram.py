"""Latencies in buckets: which one, what it stands for, and how far off that is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.histogram import BUCKETS, SUB_BUCKETS, VALUE_MAX, bucket_of, middle_of, to_hdr

NO_DEADLINE = settings(deadline=None)  # the first example compiles
VALUES = st.integers(0, VALUE_MAX) | st.integers(0, 40).map(lambda power: 1 << power)


@NO_DEADLINE
@given(VALUES)
def test_a_bucket_stands_for_its_values_to_a_128th(value: int) -> None:
    bucket = bucket_of(value)
    assert 0 <= bucket < BUCKETS
    assert abs(middle_of(bucket) - value) * 2 * SUB_BUCKETS <= value


@NO_DEADLINE
@given(VALUES, VALUES)
def test_a_longer_latency_is_never_in_an_earlier_bucket(a: int, b: int) -> None:
    assert bucket_of(min(a, b)) <= bucket_of(max(a, b))


def test_every_buckets_middle_lies_in_that_bucket() -> None:
    assert [bucket_of(middle_of(bucket)) for bucket in range(BUCKETS)] == list(range(BUCKETS))


def test_middles_are_ascending() -> None:
    middles = [middle_of(bucket) for bucket in range(BUCKETS)]
    assert middles == sorted(set(middles))


@pytest.mark.parametrize(
    ("nanoseconds", "bucket"),
    [
        (-(2**63), 0),
        (-1, 0),
        (0, 0),
        (1, 1),
        (127, 127),
        (128, 128),
        (129, 128),
        (130, 129),
        (2**41 - 1, 2303),
        (2**41, 2303),
        (2**63 - 1, 2303),
    ],
)
def test_what_is_out_of_range_is_in_the_first_or_last_bucket(nanoseconds: int, bucket: int) -> None:
    assert bucket_of(nanoseconds) == bucket


def test_an_hdr_histogram_holds_every_count_at_its_latency() -> None:
    counts = np.zeros(BUCKETS, np.uint64)
    for nanoseconds, times in ((20_000, 90), (300_000, 9), (5_000_000, 1)):
        counts[bucket_of(nanoseconds)] += np.uint64(times)
    histogram = to_hdr(counts)
    assert histogram.get_total_count() == 100
    for percentile, expected in ((50, 20_000), (90, 20_000), (99, 300_000), (100, 5_000_000)):
        assert histogram.get_value_at_percentile(percentile) == pytest.approx(expected, rel=0.016)


def test_an_hdr_histogram_of_nothing_is_empty() -> None:
    assert to_hdr(np.zeros(BUCKETS, np.uint64)).get_total_count() == 0


def test_an_hdr_histogram_takes_the_first_and_the_last_bucket() -> None:
    counts = np.zeros(BUCKETS, np.uint64)
    counts[0] = counts[-1] = 1
    histogram = to_hdr(counts)
    assert histogram.get_total_count() == 2
    assert histogram.get_max_value() == pytest.approx(VALUE_MAX, rel=0.016)
