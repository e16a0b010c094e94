"""Which block is chosen how often: fio's zipf and pareto, as ranks from 0, the most frequent, on.

Owns: the distributions. Zipf: rank k is chosen as often as 1/(k+1)^theta says, exactly, by
rejection and inversion (Hormann and Derflinger, 1996), which needs no table and takes 1.1 tries.
Pareto: the self-similar one (Gray et al., 1994), of which with power h a share 1-h of all goes to a
share h of the blocks, of that again a share 1-h to a share h of those, and so on.
"""

import math
from typing import Final

from common.compiled import kernel, part

NEARLY_ONE: Final = 1e-9  # a theta so close to 1 has the logarithm's integral


@kernel
def _integral(x: float, theta: float) -> float:
    """Of 1/t^theta, from 1 to x."""
    if abs(theta - 1.0) < NEARLY_ONE:
        return math.log(x)
    return (x ** (1.0 - theta) - 1.0) / (1.0 - theta)


@kernel
def _inverse(area: float, theta: float) -> float:
    if abs(theta - 1.0) < NEARLY_ONE:
        return math.exp(area)
    base = 1.0 + area * (1.0 - theta)
    return max(base, 0.0) ** (1.0 / (1.0 - theta))


def zipf_of(nr: int, theta: float) -> tuple[float, float, float]:
    """What `zipf` is to be given for `nr` ranks."""
    integral, inverse = _integral.py_func, _inverse.py_func
    from_first, to_last = integral(1.5, theta) - 1.0, integral(nr + 0.5, theta)
    return from_first, to_last, 2.0 - inverse(integral(2.5, theta) - 2.0**-theta, theta)


@part
def zipf_try(
    uniform: float, nr: int, theta: float, from_first: float, to_last: float, sure: float
) -> int:
    """A rank, of a `uniform` number in 0..1; -1 if it takes another one."""
    area = to_last + uniform * (from_first - to_last)
    x = _inverse(area, theta)
    rank = min(max(int(x + 0.5), 1), nr)
    if rank - x <= sure or area >= _integral(rank + 0.5, theta) - float(rank) ** -theta:
        return rank - 1
    return -1


@part
def pareto(uniform: float, nr: int, power: float) -> int:
    """A rank, of a `uniform` number in 0..1."""
    return min(int(nr * uniform ** (math.log(power) / math.log(1.0 - power))), nr - 1)
