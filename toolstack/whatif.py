"""`./run.sh whatif`: where persistent grants begin to pay, beyond what was ever measured.

Owns: the grid (dom0's vCPUs against guests, by request size, under three hypervisors), and the
contour pictures of it: how many times the IOPS of mapping for every request persistent grants give.
"""

from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table

from toolstack import pictures
from toolstack.loadspec import size_text
from toolstack.sweep import Point, sweep


class Grid(NamedTuple):
    """Where to look: dom0's vCPUs, guests, bytes of a request."""

    vcpus: tuple[int, ...]
    guests: tuple[int, ...]
    sizes: tuple[int, ...]


FULL: Final = Grid(
    (1, 2, 4, 8, 16, 32, 64, 128, 256),
    (1, 2, 4, 8, 16, 32, 64),
    (4 << 10, 12 << 10, 24 << 10, 44 << 10),
)
QUICK: Final = Grid((1, 8, 64), (1, 8), (4 << 10, 44 << 10))
MODES: Final = ("persistent", "non-persistent")
# The hypervisor: an era and its flush policy; the last is one that only interrupts who must be.
SCENES: Final = {
    "2012": ("2012", "mask-2012"),
    "today": ("today", "mask"),
    "precise": ("today", "precise"),
}
TITLES: Final = {
    "2012": "as in 2012 (active CPUs are interrupted)",
    "today": "today (all of dom0's CPUs are interrupted)",
    "precise": "with precise flushes (nobody is interrupted)",
}
TIE: Final = 0.99  # where memory is full both ways, the last digits mean nothing
RUNTIME_S: Final = 0.004


def whatif_points(scene: str, grid: Grid = FULL) -> list[Point]:
    """The grid under one hypervisor, both modes."""
    era, policy = SCENES[scene]
    return [
        Point(scene, mode, policy, era, guests, vcpus, size, RUNTIME_S)
        for size in grid.sizes
        for vcpus in grid.vcpus
        for guests in grid.guests
        for mode in MODES
    ]


def make_whatif(directory: Path, scheduler: str | None, workers: int | None, grid: Grid) -> None:
    """Sweep the grid, draw whatif-2012, whatif-today and whatif-precise."""
    console = Console()
    points = [point for scene in SCENES for point in whatif_points(scene, grid)]
    frame = sweep(points, directory / "whatif.parquet", scheduler, workers, console)
    for scene in SCENES:
        panels = {size_text(size): gains(frame, scene, size) for size in grid.sizes}
        titled = {f"{name} requests": gain for name, gain in panels.items()}
        title = f"What persistent grants gain {TITLES[scene]}; bold: break-even"
        pictures.save(pictures.contours(titled, title, TIE), directory / f"whatif-{scene}")
        console.print(_table(scene, panels, grid))
    console.print(f"Pictures are in {directory}")


def gains(frame: pd.DataFrame, scene: str, size: int) -> pd.DataFrame:
    """Persistent IOPS for each non-persistent one: rows dom0's vCPUs, columns guests."""
    rows = frame[(frame.line == scene) & (frame.bs == size)]
    each = {mode: rows[rows["mode"] == mode] for mode in MODES}
    persistent, without = (
        each[mode].pivot_table(index="dom0_vcpus", columns="guests", values="iops")
        for mode in MODES
    )
    return persistent / without


def _table(scene: str, panels: dict[str, pd.DataFrame], grid: Grid) -> Table:
    table = Table("vCPUs", title=f"From how many guests on persistent grants do not lose, {scene}")
    for name in panels:
        table.add_column(name, justify="right")
    for vcpus in grid.vcpus:
        cells = []
        for gain in panels.values():
            paying = [guests for guests in grid.guests if (gain.loc[vcpus, guests:] > TIE).all()]
            cells.append(str(paying[0]) if paying else "never")
        table.add_row(str(vcpus), *cells)
    return table
