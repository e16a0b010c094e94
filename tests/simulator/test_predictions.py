"""The issue's bars: what the model says of 2012, run anew each time; no number here is stored."""

import pytest

from simulator.costs import TABLE
from simulator.experiment import PEAK_GUESTS, PUBLISHED, PUBLISHED_MODE, SATURATED
from tests.simulator.points import point


def iops(mode: str, guests: int) -> float:
    return float(point(mode, guests)["iops"])


def test_at_most_two_parameters_are_fitted() -> None:
    assert sum(row.source == "fitted" for row in TABLE) <= 2


def test_the_peak_is_at_five_guests_and_as_high_as_published() -> None:
    curve = {guests: iops(PUBLISHED_MODE, guests) for guests in range(1, 11)}
    peak = max(curve, key=lambda guests: curve[guests])
    assert abs(peak - PEAK_GUESTS) <= 1
    assert curve[peak] == pytest.approx(PUBLISHED[PEAK_GUESTS], rel=0.05)
    assert curve[PEAK_GUESTS] == pytest.approx(PUBLISHED[PEAK_GUESTS], rel=0.05)


def test_ten_guests_are_predicted() -> None:
    assert iops(PUBLISHED_MODE, 10) == pytest.approx(PUBLISHED[10], rel=0.15)


def test_after_the_peak_each_guest_makes_it_worse() -> None:
    curve = [iops(PUBLISHED_MODE, guests) for guests in range(PEAK_GUESTS + 1, 11)]
    assert curve == sorted(curve, reverse=True)


def test_persistent_is_above_from_two_guests_on_and_falls_only_where_a_resource_is_full() -> None:
    for guests in range(2, 16):
        assert iops("persistent", guests) > iops("non-persistent", guests)
        if iops("persistent", guests) < 0.99 * iops("persistent", guests - 1):
            busy = point("persistent", guests)
            assert max(busy["busy memory"], busy["busy flush lock"]) >= SATURATED


def test_it_is_the_flush_lock_that_saturates() -> None:
    assert point("non-persistent", 10)["busy flush lock"] >= SATURATED
    assert point("persistent", 10)["busy flush lock"] == 0


@pytest.mark.parametrize(("guests", "targets"), [(2, 1), (5, 4), (10, 9)])
def test_an_idle_cpu_leaves_the_mask_so_only_active_ones_are_interrupted(
    guests: int, targets: int
) -> None:
    assert point("non-persistent", guests)["ipis_per_request"] == pytest.approx(targets, rel=0.05)


def test_today_every_cpu_is_interrupted_however_few_are_busy() -> None:
    row = point("non-persistent", 2, "today", "mask")
    assert row["ipis"] == 23 * row["flushes"] == 23 * row["requests"]
    assert row["iops"] < iops("non-persistent", 2)
