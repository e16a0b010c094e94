"""How long a lookup of a gref takes, by how many grants are kept.

`./run.sh python -m bench.lookups [--out DIR]` measures blkback's red-black tree, and for scale a
binary search in a sorted array and Numba's hash table, on the same grefs and the same queries.
The hash table flatters itself a little: an integer hashes to itself, and grefs are dense.
Levels are counted, not timed: they are what the least-squares line a + b log2(n) is fitted to.
A round measures every size and structure once, so that a slow moment of the machine falls on all
of them; of the rounds the median counts.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import click
import matplotlib as mpl
import numpy as np
from numba import njit, types
from numba.typed import Dict
from rich.console import Console
from rich.table import Table

from backend.persistent_grants import depth_of, find, insert, new_tree
from common.abi import BLKIF_MAX_PERSISTENT_GRANTS, GNTTAB_NR_RESERVED_ENTRIES
from common.arena import Arena
from toolstack.door import Command, Within, output_directory

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter

# 352 is the cap of 2012, 1056 that of a ring with indirect descriptors.
SIZES: Final = sorted(
    {1 << power for power in range(4, 17)} | {BLKIF_MAX_PERSISTENT_GRANTS, 1056, 100_000}
)
STRUCTURES: Final = {
    "tree": "red-black tree",
    "sorted_array": "sorted array, bisected",
    "hash": "Numba typed dict",
}
COLORS: Final = {"tree": "#1f5fa8", "sorted_array": "#c4701b", "hash": "#5b8c3a"}


class Fit(NamedTuple):
    """levels = a + b * log2(n), and how much of their variance that explains."""

    a: float
    b: float
    r_squared: float


class Row(NamedTuple):
    """One size: levels a lookup visits (mean and most), median ns of a lookup by structure."""

    n: int
    levels_mean: float
    levels_max: int
    ns: dict[str, float]


@njit(nogil=True)
def _fill(tree: np.ndarray, nodes: np.ndarray, grefs: np.ndarray) -> None:
    for index in range(len(grefs)):
        insert(tree, nodes, grefs[index], 0, 0)


@njit(nogil=True)
def _depths(tree: np.ndarray, nodes: np.ndarray, grefs: np.ndarray) -> np.ndarray:
    depths = np.empty(len(grefs), np.int64)
    for index in range(len(grefs)):
        depths[index] = depth_of(tree, nodes, grefs[index])
    return depths


# Each of these returns how many it found, so that no lookup can be optimised away.


@njit(nogil=True)
def _look_up_tree(tree: np.ndarray, nodes: np.ndarray, queries: np.ndarray) -> int:
    found = 0
    for index in range(len(queries)):
        found += find(tree, nodes, queries[index]) >= 0
    return found


@njit(nogil=True)
def _look_up_sorted(grefs: np.ndarray, queries: np.ndarray) -> int:
    found = 0
    for index in range(len(queries)):
        low, high = 0, len(grefs)
        while low < high:
            middle = (low + high) >> 1
            if grefs[middle] < queries[index]:
                low = middle + 1
            else:
                high = middle
        found += low < len(grefs) and grefs[low] == queries[index]
    return found


@njit(nogil=True)
def _fill_hash(table: Dict, grefs: np.ndarray) -> None:
    for index in range(len(grefs)):
        table[grefs[index]] = index


@njit(nogil=True)
def _look_up_hash(table: Dict, queries: np.ndarray) -> int:
    found = 0
    for index in range(len(queries)):
        found += queries[index] in table
    return found


class Case(NamedTuple):
    """One size made ready: its levels, and by structure what looks all its queries up."""

    n: int
    depths: np.ndarray
    look_up: dict[str, Callable[[], int]]


def make_case(n: int, lookups: int, seed: int) -> Case:
    """`n` grefs as a guest hands them out, put in in random order; `lookups` random queries."""
    rng = np.random.default_rng([seed, n])
    grefs = rng.permutation(np.arange(n, dtype=np.int64)) + GNTTAB_NR_RESERVED_ENTRIES
    queries = rng.choice(grefs, lookups)
    tree, nodes = new_tree(Arena(), n)
    _fill(tree, nodes, grefs)
    ordered = np.sort(grefs)
    table = Dict.empty(types.int64, types.int64)
    _fill_hash(table, grefs)
    look_up: dict[str, Callable[[], int]] = {
        "tree": lambda: _look_up_tree(tree, nodes, queries),
        "sorted_array": lambda: _look_up_sorted(ordered, queries),
        "hash": lambda: _look_up_hash(table, queries),
    }
    return Case(n, _depths(tree, nodes, grefs), look_up)


def measure(cases: list[Case], rounds: int, lookups: int) -> list[Row]:
    """A row for each case: medians over `rounds` of ns a lookup."""
    for look_up in cases[0].look_up.values():
        look_up()  # compiles
    ns = np.empty((rounds, len(cases), len(STRUCTURES)))
    for done in range(rounds):
        for at, case in enumerate(cases):
            for which, name in enumerate(STRUCTURES):
                start = time.perf_counter_ns()
                found = case.look_up[name]()
                ns[done, at, which] = (time.perf_counter_ns() - start) / lookups
                assert found == lookups, f"{name} of {case.n}: {found} of {lookups} found"
    medians = np.median(ns, axis=0)
    return [
        Row(
            case.n,
            float(case.depths.mean()),
            int(case.depths.max()),
            dict(zip(STRUCTURES, map(float, medians[at]), strict=True)),
        )
        for at, case in enumerate(cases)
    ]


def fit_levels(n: np.ndarray, levels: np.ndarray) -> Fit:
    """Least squares of `levels` on log2 of `n`; at least three different sizes."""
    x = np.log2(n)
    b, a = np.polyfit(x, levels, 1)
    residual = ((levels - (a + b * x)) ** 2).sum()
    return Fit(float(a), float(b), float(1 - residual / ((levels - levels.mean()) ** 2).sum()))


def print_table(rows: list[Row], fit: Fit, rounds: int, lookups: int) -> None:
    table = Table(
        title="Lookups of persistent grants",
        caption="levels: visited by a lookup, mean and most; bound: 2 log2(n+1)\n"
        f"fitted: levels = {fit.a:.2f} + {fit.b:.3f} log2(n), R² = {fit.r_squared:.5f}\n"
        f"medians of {rounds} interleaved rounds of {lookups:,} lookups each",
    )
    for heading in ("grants", "levels", "most", "bound", "fitted"):
        table.add_column(heading, justify="right")
    for name in ("tree, ns", "bisect, ns", "dict, ns"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row.n:,}",
            f"{row.levels_mean:.2f}",
            f"{row.levels_max}",
            f"{2 * np.log2(row.n + 1):.1f}",
            f"{fit.a + fit.b * np.log2(row.n):.2f}",
            *(f"{row.ns[name]:.1f}" for name in STRUCTURES),
        )
    Console().print(table)


def write_json(path: Path, rows: list[Row], fit: Fit, config: dict[str, int]) -> None:
    document = {
        "schema": 1,
        "config": config,
        "levels_fit": fit._asdict(),
        "rows": [row._asdict() for row in rows],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def draw(path: Path, rows: list[Row], fit: Fit) -> None:
    """Levels with their fit on the left, nanoseconds on the right, over the same log axis."""
    n = np.array([row.n for row in rows])
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    line = np.geomspace(n[0], n[-1], 100)
    left.plot(
        line,
        fit.a + fit.b * np.log2(line),
        color="0.55",
        label=f"{fit.a:.2f} + {fit.b:.3f} log$_2$ n,  R² = {fit.r_squared:.5f}",
    )
    left.plot(n, [row.levels_mean for row in rows], "o", color=COLORS["tree"], label="counted")
    left.set(title="Levels a lookup visits, mean", ylabel="levels")
    for name, label in STRUCTURES.items():
        right.plot(n, [row.ns[name] for row in rows], "o-", color=COLORS[name], label=label)
    right.set(title="Time of a lookup, median", ylabel="ns")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks([16, 64, 352, 1056, 4096, 16384, 100_000])
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set(xlabel="persistent grants", ylim=(0, None))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
    plt.close(figure)


@click.command("python -m bench.lookups", cls=Command)
@click.option("--out", default="results", metavar="DIR", help="Where to write (default: results).")
@click.option("--rounds", type=Within(int, 5, 999), default=7, metavar="N", help="Rounds (7).")
@click.option(
    "--lookups", type=Within(int, 1000, 1e9), default=200_000, metavar="N", help="Of each (200000)."
)
@click.option("--seed", type=Within(int, 0, 1e9), default=1, metavar="N", help="Of the grefs (1).")
def main(out: str, rounds: int, lookups: int, seed: int) -> None:
    """Measure lookups in blkback's tree of persistent grants; lookups.json and lookups.png."""
    directory = output_directory(out)
    cases = [make_case(n, lookups, seed) for n in SIZES]
    rows = measure(cases, rounds, lookups)
    fit = fit_levels(np.array([row.n for row in rows]), np.array([row.levels_mean for row in rows]))
    config = {"rounds": rounds, "lookups": lookups, "seed": seed}
    write_json(directory / "lookups.json", rows, fit, config)
    draw(directory / "lookups.png", rows, fit)
    print_table(rows, fit, rounds, lookups)
    click.echo(f"wrote {directory / 'lookups.json'} and {directory / 'lookups.png'}")


if __name__ == "__main__":
    main()
