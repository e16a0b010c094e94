"""What is believed of the figures that a guest writes about itself."""

import numpy as np
import pytest

from common.histogram import BUCKETS
from common.machine_memory import STATS
from toolstack.guest_stats import GROWTH_MAX, GuestStats


@pytest.fixture
def record() -> np.ndarray:
    return np.zeros(1, STATS)


def test_sound_figures_are_those_of_the_moment(record: np.ndarray) -> None:
    stats = GuestStats(record)
    record["counters"]["ios"][0, 0], record["latency"][0, 0, 0, 7] = 5, 3
    first = stats.read()
    assert (first.counters["ios"][0], first.latency[0, 0, 7]) == (5, 3)
    assert (first.counters.shape[0], first.latency.shape[2]) == (len(first.latency), BUCKETS)
    record["counters"]["ios"][0, 0], record["latency"][0, 0, 0, 7] = 6, 9
    second = stats.read()
    assert (second.counters["ios"][0], second.latency[0, 0, 7]) == (6, 9)
    assert (first.counters["ios"][0], first.latency[0, 0, 7]) == (5, 3)  # a copy
    assert not stats.suspect


def grow(record: np.ndarray, amount: int) -> None:
    record["counters"]["bytes_read"][0, 0] += np.uint64(amount)


def shrink(record: np.ndarray, amount: int) -> None:
    record["latency"][0, -1, -1, -1] -= np.uint64(amount)


@pytest.mark.parametrize(
    ("change", "amount", "sound"),
    [
        (grow, 0, True),
        (grow, GROWTH_MAX, True),
        (grow, GROWTH_MAX + 1, False),
        (grow, 1 << 63, False),
        (shrink, 1, False),
        (shrink, 100, False),
    ],
)
def test_figures_that_cannot_be_are_not_believed(
    record: np.ndarray, change: "type[None]", amount: int, sound: bool
) -> None:
    stats = GuestStats(record)
    record["counters"]["ios"][0, 0], record["latency"][0, -1, -1, -1] = 50, 100
    before = stats.read()
    change(record, amount)  # type: ignore[call-arg]
    record["counters"]["ios"][0, 0] = 60
    after = stats.read()
    assert stats.suspect is not sound
    assert after.counters["ios"][0] == (60 if sound else 50)
    if not sound:
        assert (after.counters == before.counters).all()
        assert (after.latency == before.latency).all()


@pytest.mark.parametrize("filled", [0xFF, 0x80, 0x01])
def test_a_suspect_stays_one_and_keeps_its_last_sound_figures(
    record: np.ndarray, filled: int
) -> None:
    stats = GuestStats(record)
    record["counters"]["ios"][0, 0] = 50
    stats.read()
    sound = record.copy()
    record.view(np.uint8)[:] = filled
    assert stats.read().counters["ios"][0] == 50
    record[:] = sound
    record["counters"]["ios"][0, 0] = 51
    assert stats.read().counters["ios"][0] == 50
    assert stats.suspect


def test_garbage_from_the_start_is_nothing(record: np.ndarray) -> None:
    record.view(np.uint8)[:] = 0xAA
    stats = GuestStats(record)
    found = stats.read()
    assert stats.suspect and not found.latency.any()
    assert not found.counters.view(np.uint64).any()


def test_no_two_guests_figures_are_mixed(record: np.ndarray) -> None:
    other = np.zeros(1, STATS)
    one, two = GuestStats(record), GuestStats(other)
    record["counters"]["ios"][0, 0] = 2**63
    other["counters"]["ios"] = 7
    assert one.read().counters["ios"][0] == 0
    assert two.read().counters["ios"][0] == 7
    assert one.suspect and not two.suspect


def test_only_the_disks_that_there_are_are_looked_at(record: np.ndarray) -> None:
    record["latency"][0, :3, 1, 7], record["counters"]["ios"][0, :3] = (1, 2, 3), (4, 5, 6)
    found = GuestStats(record, disks=2).read()
    assert found.latency.shape == (2, 3, BUCKETS) and found.latency[:, 1, 7].tolist() == [1, 2]
    assert found.counters["ios"].tolist() == [4, 5]
