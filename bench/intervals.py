"""When is a version slower? The arithmetic of measuring in pairs.

Owns: the order of a pair's two sides, the ratio of a cell, its bootstrap interval, the decision.
Rules
1. The two sides of a pair are measured one after the other, and who is first alternates: what
   drifts slowly, or favours the second, falls on both alike.
2. Of a cell's ratios the median counts: on a shared machine one pair in seven may be far out.
3. A cell is missed only if the whole interval lies below the bar: a doubt is not a miss.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

BAR: Final = 0.97
LEVEL: Final = 0.90
RESAMPLES: Final = 20_000
SEED: Final = 1

OLD: Final = "old"
NEW: Final = "new"


def order(pair: int) -> tuple[str, str]:
    """Who is measured first and who second in pair number `pair`, counted from 0."""
    return (OLD, NEW) if pair % 2 == 0 else (NEW, OLD)


def interval(
    ratios: Sequence[float], level: float = LEVEL, seed: int = SEED
) -> tuple[float, float]:
    """The percentile bootstrap interval of the median of `ratios`; the same for the same seed.

    Both ends are medians that were drawn, not points between two of them. Of seven ratios the
    90 % interval is from the second lowest to the second highest. Raises ValueError without any.
    """
    if not ratios:
        raise ValueError("no ratios")
    values = np.asarray(ratios, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.median(values[picks], axis=1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(medians, tails, method="inverted_cdf")
    return float(low), float(high)


def is_missed(ends: tuple[float, float], bar: float = BAR) -> bool:
    """Whether an interval lies wholly below the bar."""
    return ends[1] < bar
