"""`./run.sh figure`: the experiment of 2012 and its predictions, drawn from the simulator.

Owns: which points the figure has, the detailed runs behind its pictures of CPUs, and the files it
writes: sweep.parquet, PNG and SVG of each picture, trace files, report.html.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from simulator import experiment
from simulator.config import Config
from simulator.cpus import KINDS
from simulator.machine import Machine
from simulator.trace import Trace
from toolstack import pictures
from toolstack.figure_report import write_report
from toolstack.sweep import Point, sweep

GUESTS: Final = range(1, 16)
# The five lines: what each is called, its mode, and its flush policy where the era's is not meant.
LINES: Final[dict[str, tuple[str, str | None]]] = {
    "persistent": ("persistent", None),
    "non-persistent": ("non-persistent", None),
    "backend without persistent": ("backend-without-persistent", None),
    "grant copy": ("grant-copy", None),
    "precise flush": ("non-persistent", "precise"),
}
POLICIES: Final = {"2012": "mask-2012", "today": "mask"}
DETAIL_GUESTS: Final = 10
TRACE_NS: Final = (2_000_000, 2_060_000)


@dataclass(frozen=True)
class Detail:
    """What one run says of each CPU. shares: by dom0 CPU and kind; matrix: IPIs a request, by
    sender and target."""

    title: str
    shares: np.ndarray
    matrix: np.ndarray


def figure_points(
    runtime_s: float = experiment.RUNTIME_S, guests: Sequence[int] = GUESTS
) -> list[Point]:
    """So many guests, five lines, two eras."""
    return [
        Point(line, mode, policy or POLICIES[era], era, count, runtime_s=runtime_s)
        for era in POLICIES
        for line, (mode, policy) in LINES.items()
        for count in guests
    ]


def make_figure(
    directory: Path,
    scheduler: str | None,
    workers: int | None,
    runtime_s: float,
    guests: Sequence[int],
) -> pd.DataFrame:
    """Sweep, draw, write everything into `directory`; the sweep's table. guests: how many, each
    point's, in order."""
    console = Console()
    points = figure_points(runtime_s, guests)
    frame = sweep(points, directory / "sweep.parquet", scheduler, workers, console)
    details = [
        _detail("2012", "non-persistent"),
        _detail("2012", "persistent"),
        _detail("today", "non-persistent"),
    ]
    traces = {mode: _trace(directory, mode) for mode in ("non-persistent", "persistent")}
    drawn = {
        "iops": pictures.throughput(frame, LINES, experiment.PUBLISHED),
        "ipis": pictures.interrupts(frame, LINES),
        "cpus": pictures.cpu_time(details, KINDS),
        "heatmap": pictures.heat_map([details[0], details[2]]),
    }
    for name, picture in drawn.items():
        pictures.save(picture, directory / name)
    rows = predictions(frame)
    write_report(directory, rows, frame, traces)
    _print(console, rows, directory)
    return frame


def predictions(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """What was published, what the model says, and by how much it is off."""
    era = frame[frame.era == "2012"]
    counts = sorted(era.guests.unique().tolist())
    lines = {line: era[era.line == line].set_index("guests") for line in LINES}
    without, kept = lines["non-persistent"].iops, lines["persistent"].iops
    rows = [
        {
            "what": f"{guests} guests, non-persistent: IOPS",
            "published": f"{published:,}",
            "simulated": f"{without[guests]:,.0f}",
            "off": f"{without[guests] / published - 1:+.1%}",
            "kind": "fitted" if guests == experiment.PEAK_GUESTS else "prediction",
        }
        for guests, published in experiment.PUBLISHED.items()
        if guests in counts
    ]
    peak = int(without.idxmax())
    rows.append(_row("peak, non-persistent: guests", experiment.PEAK_GUESTS, peak, "fitted"))
    falls = [more for fewer, more in pairwise(counts) if kept[more] < 0.99 * kept[fewer]]
    rows.append(_row("persistent: falls at (guests)", "nowhere", falls or "nowhere"))
    below = [guests for guests in counts if guests > 1 and kept[guests] <= without[guests]]
    rows.append(_row("persistent not above non-persistent, from 2 guests on", "never",
                     below or "never"))  # fmt: skip
    last, most = lines["persistent"].loc[counts[-1]], f"{counts[-1]} guests"
    rows.append(_row(f"persistent, {most}: saturated", "-", last.saturated or "nothing"))
    rows.append(_row(f"persistent, {most}: IOPS", "-", f"{last.iops:,.0f}"))
    return rows


def _row(what: str, published: Any, simulated: Any, kind: str = "prediction") -> dict[str, Any]:
    return {
        "what": what,
        "published": str(published),
        "simulated": str(simulated),
        "off": "",
        "kind": kind,
    }


def _config(era: str, mode: str, guests: int) -> Config:
    return Config(experiment.plan(), mode, guests, flush_policy=POLICIES[era], era=era)


def _detail(era: str, mode: str) -> Detail:
    machine = Machine(_config(era, mode, DETAIL_GUESTS)).run()
    nr = machine.config.dom0_vcpus
    elapsed = machine.finished.now_ns - machine.started.now_ns
    spent = np.array([cpu.spent for cpu in machine.cpus[:nr]]) / elapsed
    requests = sum(int(block["requests"][0]) for block in machine.finished.frontend.values())
    title = f"{era}, {mode}, {DETAIL_GUESTS} guests"
    return Detail(title, spent, machine.worker_cpus.matrix / requests)


def _trace(directory: Path, mode: str) -> str:
    trace = Trace(*TRACE_NS)
    config = _config("2012", mode, 3)
    plan = replace(config.plan, runtime_s=TRACE_NS[1] / 1e9)
    Machine(replace(config, plan=plan), trace=trace).run()
    name = f"trace-{mode}.json"
    (directory / name).write_text(json.dumps(trace.chrome()))
    return name


def _print(console: Console, rows: list[dict[str, Any]], directory: Path) -> None:
    table = Table("", "published", "simulated", "off", "", title="The model against what is known")
    for row in rows:
        table.add_row(*(row[name] for name in ("what", "published", "simulated", "off", "kind")))
    console.print(table)
    console.print(f"Pictures, traces and report.html are in {directory}")
