"""fio's distributions against what their definitions say, exactly."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from numba import njit

from frontend.ranks import pareto, zipf_of, zipf_try

NR = 50_000


@njit
def zipf_ranks(uniforms: np.ndarray, nr: int, theta: float, a: float, b: float, c: float) -> int:
    """Puts ranks in place of uniform numbers; how many took another try."""
    rejected = 0
    for at in range(len(uniforms)):
        uniforms[at] = zipf_try(uniforms[at], nr, theta, a, b, c)
        rejected += uniforms[at] < 0
    return rejected


@njit
def pareto_ranks(uniforms: np.ndarray, nr: int, power: float) -> None:
    for at in range(len(uniforms)):
        uniforms[at] = pareto(uniforms[at], nr, power)


def uniforms(count: int) -> np.ndarray:
    return np.random.default_rng(1).random(count)


def chi_squared(found: np.ndarray, wanted: np.ndarray) -> float:
    """By degree of freedom: near 1 if they are of one distribution."""
    expected = wanted * found.sum()
    return float((((found - expected) ** 2) / expected).sum() / (len(found) - 1))


@pytest.mark.parametrize("theta", [0.1, 0.5, 0.99, 1.0, 1.2, 2.5])
@pytest.mark.parametrize("nr", [1, 2, 10, 300])
def test_zipf_is_exact(theta: float, nr: int) -> None:
    ranks = uniforms(NR)
    assert zipf_ranks(ranks, nr, theta, *zipf_of(nr, theta)) < 0.35 * NR
    found = np.bincount(ranks[ranks >= 0].astype(int), minlength=nr)
    assert len(found) == nr
    wanted = np.arange(1, nr + 1.0) ** -theta
    rare = int((wanted > 20 / NR * wanted.sum()).sum())  # and all after it, which are one
    found, wanted = (np.append(each[:rare], each[rare:].sum() + 1e-9) for each in (found, wanted))
    if nr > 1:
        assert chi_squared(found, wanted / wanted.sum()) < 1 + 4 * np.sqrt(2 / rare)


def test_of_millions_of_blocks_the_first_is_as_hot_as_it_should_be() -> None:
    nr, theta, ranks = 10_000_000, 1.2, uniforms(NR)
    zipf_ranks(ranks, nr, theta, *zipf_of(nr, theta))
    kept = ranks[ranks >= 0]
    wanted = 1 / (np.arange(1.0, nr + 1) ** -theta).sum()
    assert (kept == 0).mean() == pytest.approx(wanted, rel=0.05)
    assert kept.max() < nr


@pytest.mark.parametrize("power", [0.1, 0.2, 0.4])
def test_pareto_gives_the_rest_of_all_to_its_share_of_the_blocks(power: float) -> None:
    nr, ranks = 1_000_000, uniforms(NR)
    pareto_ranks(ranks, nr, power)
    assert ranks.min() == 0 and ranks.max() < nr
    for level in (1, 2, 3):
        share = (ranks < nr * power**level).mean()
        assert share == pytest.approx((1 - power) ** level, abs=0.02)


@pytest.mark.skipif(shutil.which("fio-genzipf") is None, reason="needs Debian's fio")
@pytest.mark.parametrize(("name", "skew"), [("zipf", 0.6), ("zipf", 1.2), ("pareto", 0.2)])
def test_fio_s_own_tool_draws_alike(name: str, skew: float) -> None:
    """How many percent of all go to the first 5, 10, ... percent of those that were drawn."""
    nr = (1 << 30) // 4096
    ranks = uniforms(int(1.3 * nr))
    if name == "zipf":
        zipf_ranks(ranks, nr, skew, *zipf_of(nr, skew))
    else:
        pareto_ranks(ranks, nr, skew)
    ranks = ranks[ranks >= 0][:nr]
    assert len(ranks) == nr  # as fio draws
    counts = np.sort(np.bincount(ranks.astype(int)))[::-1]
    counts = counts[counts > 0]
    shares = 100 * np.cumsum(counts)[len(counts) * np.arange(1, 11) // 20 - 1] / nr
    command = f"fio-genzipf -t {name} -i {skew} -b 4096 -g 1 -o 20"
    told = subprocess.run(command.split(), capture_output=True, text=True, check=True).stdout
    theirs = [float(row) for row in re.findall(r"%\s+([0-9.]+)%\s+[0-9]+\s", told)]
    assert shares == pytest.approx(theirs[:10], abs=1.5)
