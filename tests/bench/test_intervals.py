"""When a version is slower: the interval against what can be counted out, and the decision."""

from itertools import product

import numpy as np
import pytest

from bench.intervals import BAR, NEW, OLD, interval, is_missed, order

SEVEN = [0.91, 0.93, 0.95, 0.97, 0.99, 1.01, 1.03]


def exactly(values: list[float], level: float) -> tuple[float, float]:
    """The bootstrap itself, no sampling: the medians of all n**n draws."""
    draws = np.array(list(product(values, repeat=len(values))))
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(np.median(draws, axis=1), tails, method="inverted_cdf")
    return float(low), float(high)


@pytest.mark.parametrize("level", [0.6, 0.8, 0.9])
@pytest.mark.parametrize("values", [[1.1], [0.9, 1.2], [1.0, 0.8, 1.3], SEVEN[:6]], ids=len)
def test_it_is_the_interval_of_all_draws(values: list[float], level: float) -> None:
    assert interval(values, level) == exactly(values, level)


def test_of_seven_it_leaves_out_the_lowest_and_the_highest() -> None:
    """P(median of 7 draws is the lowest) = P(Bin(7, 1/7) >= 4) = 1 %; of the two lowest, 11 %."""
    assert interval(SEVEN) == (0.93, 1.01)
    assert interval(SEVEN[::-1]) == (0.93, 1.01)


def test_one_wild_pair_moves_no_end() -> None:
    assert interval([*SEVEN[:6], 40.0]) == (0.93, 1.01)


@pytest.mark.parametrize("seed", range(20))
def test_of_seven_pairs_no_seed_decides(seed: int) -> None:
    assert interval(SEVEN, seed=seed) == (0.93, 1.01)


def test_the_same_seed_gives_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few draws that chance shows."""
    monkeypatch.setattr("bench.intervals.RESAMPLES", 20)
    many = list(np.random.default_rng(5).normal(1, 0.1, 40))
    assert interval(many, seed=3) == interval(many, seed=3)
    assert len({interval(many, seed=seed) for seed in range(50)}) > 1


def test_a_wider_level_is_a_wider_interval() -> None:
    many = list(np.random.default_rng(5).normal(1, 0.1, 40))
    (low, high), (lower, higher) = interval(many, 0.5), interval(many, 0.99)
    assert lower < low < 1.05
    assert 0.95 < high < higher


def test_of_nothing_there_is_no_interval() -> None:
    with pytest.raises(ValueError, match="no ratios"):
        interval([])


@pytest.mark.parametrize(
    ("ends", "missed"),
    [
        ((0.90, 0.96), True),  # wholly below
        ((0.90, 0.9699), True),
        ((0.90, BAR), False),  # touches it
        ((0.50, 0.98), False),  # about the bar: a doubt
        ((0.97, 0.99), False),
        ((0.98, 1.02), False),
        ((1.10, 1.20), False),
    ],
)
def test_only_what_lies_wholly_below_the_bar_is_missed(
    ends: tuple[float, float], missed: bool
) -> None:
    assert is_missed(ends) is missed


@pytest.mark.parametrize(
    ("ratios", "missed"),
    [
        ([0.9] * 7, True),
        ([0.9] * 6 + [1.5], True),  # one good pair does not save it
        ([0.9] * 5 + [0.98, 1.5], False),  # two do
        ([0.98] * 5 + [0.1, 0.2], False),  # two bad ones do not condemn it
        ([1.0] * 7, False),
    ],
)
def test_seven_pairs_are_missed_if_six_are_below_the_bar(ratios: list[float], missed: bool) -> None:
    assert is_missed(interval(ratios)) is missed


def test_who_is_first_alternates() -> None:
    assert [order(pair) for pair in range(4)] == [(OLD, NEW), (NEW, OLD)] * 2
