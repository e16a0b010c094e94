"""`./run.sh bench pairs`: is this version slower than that one?

Owns: the cells, and their pairs. In each cell the old version is measured against itself first, as
many pairs: that spread is what a difference is to be seen through. Who is first alternates. Every
pair is printed and written as it comes; what decides is `bench/intervals.py`.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from bench.figure import Figure
from bench.intervals import BAR, NEW, OLD, interval, is_missed, order
from bench.sampling import Cell
from bench.versions import Version

Measure = Callable[[Version, Cell], Figure]

ITSELF: Final = "itself"
AGAINST: Final = "pairs"


class Pair(NamedTuple):
    """One measurement of each side, and which side was first."""

    first: str
    old: Figure
    new: Figure

    @property
    def ratio(self) -> float:
        """IOPS, new by old."""
        return self.new.iops / self.old.iops


class Result:
    """A cell: the old version's pairs with itself, and the new one's with the old."""

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.pairs: dict[str, list[Pair]] = {ITSELF: [], AGAINST: []}

    def ratios(self, kind: str) -> list[float]:
        """New by old, pair by pair."""
        return [pair.ratio for pair in self.pairs[kind]]

    @property
    def missed(self) -> bool:
        """Whether the new version is slower here, beyond doubt."""
        return is_missed(interval(self.ratios(AGAINST)))

    def as_json(self) -> dict[str, Any]:
        """All pairs, and what they come to; of a kind without any pairs yet, nothing."""
        document: dict[str, Any] = {**self.cell._asdict()}
        for kind, pairs in self.pairs.items():
            document[kind] = [
                {"first": p.first, OLD: p.old._asdict(), NEW: p.new._asdict(), "ratio": p.ratio}
                for p in pairs
            ]
            if pairs:
                document[f"{kind}_ratio"] = median(self.ratios(kind))
                document[f"{kind}_interval"] = interval(self.ratios(kind))
        if self.pairs[AGAINST]:
            document["missed"] = self.missed
        return document


def measure_pairs(
    old: Version, new: Version, cell: Cell, count: int, measure: Measure
) -> Iterator[Pair]:
    """So many pairs of `cell`, as they come."""
    sides = {OLD: old, NEW: new}
    for number in range(count):
        figures = {side: measure(sides[side], cell) for side in order(number)}
        yield Pair(order(number)[0], figures[OLD], figures[NEW])


def measure_cells(
    old: Version,
    new: Version,
    cells: list[Cell],
    count: int,
    measure: Measure,
    *,
    itself_once: bool,
    console: Console,
    path: Path,
) -> list[Result]:
    """Every cell, old against itself and then new against old. Prints each pair; writes `path`.

    itself_once: the old version is held against itself in the first cell only.
    """
    results = list[Result]()
    for cell in cells:
        result = Result(cell)
        results.append(result)
        others = {ITSELF: old, AGAINST: new}
        if itself_once and len(results) > 1:
            del others[ITSELF]
        for kind, other in others.items():
            console.print(f"{cell}: {other.name} against {old.name}")
            console.print(HEADER)
            for pair in measure_pairs(old, other, cell, count, measure):
                result.pairs[kind].append(pair)
                console.print(_pair_line(len(result.pairs[kind]), pair))
                _write(path, old, new, results)
    return results


HEADER: Final = f"{'pair':>6}{'first':>7}{'old IOPS':>12}{'new IOPS':>12}{'new / old':>11}"


def _pair_line(number: int, pair: Pair) -> str:
    return (
        f"{number:>6}{pair.first:>7}{pair.old.iops:>12,.0f}{pair.new.iops:>12,.0f}"
        f"{pair.ratio:>11.3f}"
    )


def _write(path: Path, old: Version, new: Version, results: list[Result]) -> None:
    document = {
        "schema": 1,
        **{
            side: {"name": version.name, "root": str(version.root)}
            for side, version in ((OLD, old), (NEW, new))
        },
        "bar": BAR,
        "cells": [result.as_json() for result in results],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def print_pairs(console: Console, results: list[Result]) -> None:
    """A row for each cell: the ratio and its interval, beside that of the old version's own."""
    table = Table(
        title="IOPS, new / old: the pairs' median and its 90 % interval",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("mode", overflow="fold")
    for name in ("guests", "old IOPS", "ratio", "interval", "old / old", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        ratios = result.ratios(AGAINST)
        table.add_row(
            result.cell.mode,
            str(result.cell.guests),
            f"{median(pair.old.iops for pair in result.pairs[AGAINST]):,.0f}",
            f"{median(ratios):.3f}",
            _interval_text(ratios),
            _interval_text(result.ratios(ITSELF)),
            "MISSED" if result.missed else "held",
        )
    console.print(table)


def _interval_text(ratios: list[float]) -> str:
    if not ratios:
        return ""
    low, high = interval(ratios)
    return f"{low:.3f}..{high:.3f}"
