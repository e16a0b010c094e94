"""Latencies in buckets: which one, what it stands for, and how far off that is."""

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from common.histogram import BUCKETS, SUB_BUCKETS, VALUE_MAX, bucket_of, middle_of, value_at

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


@NO_DEADLINE
@given(
    st.dictionaries(st.integers(1, BUCKETS - 1), st.integers(1, 10**6), min_size=1, max_size=20),
    st.sampled_from([0, 1, 50, 95, 99, 99.9, 100]),
)
def test_percentiles_are_hdr_histogram_s(found: dict[int, int], percentile: float) -> None:
    counts, histogram = np.zeros(BUCKETS, np.uint64), HdrHistogram(1, VALUE_MAX, 3)
    for bucket, times in found.items():
        counts[bucket] = times
        histogram.record_value(middle_of(bucket), times)
    expected = histogram.get_value_at_percentile(percentile)
    assert value_at(counts, percentile) == pytest.approx(expected, rel=0.001)


def test_percentiles_reach_the_first_and_the_last_bucket() -> None:
    counts = np.zeros(BUCKETS, np.uint64)
    counts[0] = counts[-1] = 1
    assert value_at(counts, 50) == 0
    assert value_at(counts, 100) == pytest.approx(VALUE_MAX, rel=0.016)
