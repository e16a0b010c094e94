"""Every command behind `./run.sh`, put together: `run`, and those that belong to the simulator.

A command's file takes what it needs from `toolstack/cli.py`, which therefore cannot name them. What
brings Numba or matplotlib is imported when a command runs, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Final

import click

from toolstack.cli import RunEnded, cli
from toolstack.simulate import simulate

__all__ = ["RunEnded", "cli"]

FIGURE: Final = "results/figure"

OUT = click.option("--out", default=FIGURE, metavar="DIR", help=f"Where to write ({FIGURE}).")
SCHEDULER = click.option(
    "--scheduler", metavar="ADDRESS", help="An existing Dask cluster (default: this machine)."
)


@click.command(short_help="Draw 2012's experiment: 15 guests, five ways, then and today.")
@OUT
@SCHEDULER
@click.option(
    "--runtime",
    default=0.01,
    metavar="SECONDS",
    type=click.FloatRange(0, 10, min_open=True),
    help="Virtual time of each point (default: 0.01).",
)
def figure(out: str, scheduler: str | None, runtime: float) -> None:
    """Simulate guests 1..15 x {persistent, non-persistent, backend without the feature, grant copy,
    precise flush} as in 2012 and as today, and draw it: PNG, SVG, traces and one HTML report. A
    sweep that was stopped goes on where it was."""
    from toolstack.figure import make_figure  # noqa: PLC0415

    make_figure(Path(out), scheduler, runtime)


for command in (simulate, figure):
    cli.add_command(command)
