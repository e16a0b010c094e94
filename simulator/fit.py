"""The fit: two parameters to one published point. `./run.sh python -m simulator.fit [SECONDS]`.

Owns: which two, and what "5 guests: 650,000, and that is the peak" means as two equations: the
throughput at 5 guests is the published one, and the parabola through 4, 5 and 6 guests has its
vertex at 5. Newton's method on the machine itself; the same seed throughout makes it smooth.
SECONDS is the virtual time of each point.
"""

import sys
from typing import Final

import numpy as np

from simulator.config import Config
from simulator.costs import COSTS, TABLE, Costs
from simulator.experiment import PEAK_GUESTS, PUBLISHED, PUBLISHED_VCPUS, iops, plan

FITTED: Final = tuple(row.name for row in TABLE if row.source == "fitted")
ROUNDS: Final = 5
RUNTIME_S: Final = 0.02
STEP: Final = 0.05  # of a parameter, for the derivatives


def residuals(costs: Costs, runtime_s: float) -> np.ndarray:
    """By how much the two equations are missed, as parts of the published figure."""
    target = PUBLISHED[PEAK_GUESTS]
    below, at, above = (
        iops(Config(plan(runtime_s=runtime_s), guests=guests, dom0_vcpus=PUBLISHED_VCPUS), costs)
        for guests in (PEAK_GUESTS - 1, PEAK_GUESTS, PEAK_GUESTS + 1)
    )
    return np.array([at - target, above - below]) / target


def fit(runtime_s: float = RUNTIME_S) -> Costs:
    """The costs with the two fitted parameters found anew; prints each round."""
    values = np.array([float(getattr(COSTS, name)) for name in FITTED])
    for _ in range(ROUNDS):
        here = residuals(COSTS.but(**dict(zip(FITTED, values, strict=True))), runtime_s)
        print(dict(zip(FITTED, values.round(1).tolist(), strict=True)), here.round(4), flush=True)
        jacobian = np.empty((2, 2))
        for column in range(2):
            moved = values.copy()
            moved[column] *= 1 + STEP
            there = residuals(COSTS.but(**dict(zip(FITTED, moved, strict=True))), runtime_s)
            jacobian[:, column] = (there - here) / (moved[column] - values[column])
        values = values - np.linalg.solve(jacobian, here)
    return COSTS.but(**dict(zip(FITTED, values.round().tolist(), strict=True)))


if __name__ == "__main__":
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else RUNTIME_S
    found = fit(seconds)
    print({name: getattr(found, name) for name in FITTED}, residuals(found, 2.5 * seconds).round(4))
