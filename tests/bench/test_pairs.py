"""Cells, pairs and what is said of them, where a measurement is only arithmetic."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.figure import Figure
from bench.pairs import AGAINST, ITSELF, Result, measure_cells, print_pairs
from bench.sampling import Cell
from bench.versions import Version

OLD, NEW = Version("5533c32", Path("/old")), Version("0123abc", Path("/new"))
CELLS = [Cell("persistent", 1), Cell("grant-copy", 8)]


class Speeds:
    """IOPS by version; remembers who was asked for."""

    def __init__(self, old: float = 100.0, new: float = 100.0) -> None:
        self.iops = {OLD: old, NEW: new}
        self.asked: list[tuple[str, Cell]] = []

    def measure(self, version: Version, cell: Cell) -> Figure:
        self.asked.append((version.name, cell))
        return Figure(self.iops[version], 1.0, 2.0, 3.0)


def run(tmp_path: Path, speeds: Speeds, **settings: Any) -> tuple[list[Result], str]:
    """The results, and what was printed on 80 columns."""
    console = Console(width=80, record=True, highlight=False)
    given = {"cells": CELLS, "count": 3, "itself_once": False, **settings}
    results = measure_cells(
        OLD, NEW, measure=speeds.measure, console=console, path=tmp_path / "pairs.json", **given
    )
    print_pairs(console, results)
    return results, console.export_text()


def test_old_is_held_against_itself_and_then_they_alternate(tmp_path: Path) -> None:
    speeds = Speeds()
    run(tmp_path, speeds, cells=CELLS[:1])
    assert [name for name, _ in speeds.asked] == [
        *["5533c32"] * 6,
        *["5533c32", "0123abc"],
        *["0123abc", "5533c32"],
        *["5533c32", "0123abc"],
    ]


def test_every_cell_has_all_its_pairs(tmp_path: Path) -> None:
    results, _ = run(tmp_path, Speeds(), count=7)
    assert [result.cell for result in results] == CELLS
    assert all(len(result.pairs[kind]) == 7 for result in results for kind in (ITSELF, AGAINST))


def test_itself_can_be_in_the_first_cell_only(tmp_path: Path) -> None:
    results, _ = run(tmp_path, Speeds(), itself_once=True)
    assert [len(result.pairs[ITSELF]) for result in results] == [3, 0]
    assert [len(result.pairs[AGAINST]) for result in results] == [3, 3]


@pytest.mark.parametrize(("new", "missed"), [(96.9, True), (97.1, False), (150.0, False)])
def test_a_ratio_is_new_by_old_whoever_was_first(tmp_path: Path, new: float, missed: bool) -> None:
    results, text = run(tmp_path, Speeds(new=new))
    for result in results:
        assert result.ratios(AGAINST) == [new / 100] * 3
        assert result.ratios(ITSELF) == [1.0] * 3
        assert result.missed is missed
    assert ("MISSED" in text) is missed


def test_every_pair_is_printed(tmp_path: Path) -> None:
    _, text = run(tmp_path, Speeds(old=1_500_000.0, new=1_200_000.0), cells=CELLS[:1], count=2)
    lines = text.splitlines()
    start = lines.index("persistent, 1 guest: 0123abc against 5533c32")
    assert [line.split() for line in lines[start + 2 : start + 4]] == [
        ["1", "old", "1,500,000", "1,200,000", "0.800"],
        ["2", "new", "1,500,000", "1,200,000", "0.800"],
    ]


def test_everything_is_legible_on_80_columns(tmp_path: Path) -> None:
    cells = [Cell("backend-without-persistent", 64), Cell("non-persistent", 8)]
    _, text = run(tmp_path, Speeds(old=12_500_000.0, new=1_250_000.0), cells=cells)
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.strip().startswith("non-persistent  "))
    assert row.split() == [
        *["non-persistent", "8", "12,500,000", "0.100", "0.100..0.100", "1.000..1.000", "MISSED"]
    ]


def test_all_of_it_is_written(tmp_path: Path) -> None:
    run(tmp_path, Speeds(new=90.0))
    document = json.loads((tmp_path / "pairs.json").read_text())
    assert document["old"] == {"name": "5533c32", "root": "/old"}
    first = document["cells"][0]
    assert (first["mode"], first["guests"], first["missed"]) == ("persistent", 1, True)
    assert [pair["first"] for pair in first["pairs"]] == ["old", "new", "old"]
    assert first["pairs"][1]["new"]["iops"] == 90
    assert first["pairs_interval"] == [0.9, 0.9]
    assert first["itself_ratio"] == 1


def test_what_was_measured_is_there_if_the_rest_fails(tmp_path: Path) -> None:
    class Dies(Speeds):
        def measure(self, version: Version, cell: Cell) -> Figure:
            if len(self.asked) == 9:
                raise KeyboardInterrupt
            return super().measure(version, cell)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Dies())
    (cell,) = json.loads((tmp_path / "pairs.json").read_text())["cells"]
    assert (len(cell["itself"]), len(cell["pairs"])) == (3, 1)
