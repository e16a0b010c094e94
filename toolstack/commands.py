"""Every command behind `./run.sh`, put together: `run`, and those of other files.

A command's file takes what it needs from `toolstack/cli.py`, which therefore cannot name them. What
brings Numba or matplotlib is imported when a command runs, so that `--help` answers at once.
"""

from typing import Final

import click
from rich.console import Console

from toolstack.cli import cli
from toolstack.door import Command, Numbers, Within, output_directory
from toolstack.export_command import COMMAND as EXPORT
from toolstack.eye_commands import COMMANDS as EYES
from toolstack.life_commands import COMMANDS as LIFE
from toolstack.loadspec import ConfigError
from toolstack.look_command import look
from toolstack.plug_commands import COMMANDS as PLUG
from toolstack.report_command import report
from toolstack.simulate import simulate
from toolstack.stay_commands import COMMANDS as STAY
from toolstack.trace_command import trace

__all__ = ["cli"]

FIGURE: Final = "results/figure"
WHATIF: Final = "results/whatif"

OUT = click.option("--out", default=FIGURE, metavar="DIR", help=f"Where to write ({FIGURE}).")
SCHEDULER = click.option(
    "--scheduler", metavar="ADDRESS", help="An existing Dask cluster (default: this machine)."
)

WORKERS = click.option(
    "--workers",
    type=Within(int, 1, 256),
    metavar="N",
    help="Processes on this machine (default: one to each CPU).",
)


@click.command(
    cls=Command, short_help="Draw 2012's experiment: 15 guests, five ways, then and today."
)
@OUT
@SCHEDULER
@WORKERS
@click.option(
    "--runtime",
    default=0.01,
    metavar="SECONDS",
    type=Within(float, 0, 10, above=True),
    help="Virtual time of each point (default: 0.01).",
)
@click.option(
    "--guests",
    default="1-15",
    metavar="N,...",
    type=Numbers(1, 64),
    help="How many guests, each point's: 1-15, or 5,10 (default: 1-15).",
)
def figure(
    out: str, scheduler: str | None, workers: int | None, runtime: float, guests: list[int]
) -> None:
    """Simulate guests 1..15 x {persistent, non-persistent, backend without the feature, grant copy,
    precise flush} as in 2012 and as today, and draw it: PNG, SVG, traces and one HTML report. A
    sweep that was stopped goes on where it was."""
    from toolstack.figure import make_figure  # noqa: PLC0415

    make_figure(output_directory(out), scheduler, workers, runtime, guests)


@click.command(
    cls=Command, short_help="The same load really and simulated: every count must agree."
)
@click.option("--guests", default="3", metavar="N", help="Guests: 1..64 (default: 3).")
@click.option("--dom0-vcpus", default="24", metavar="N", help="dom0's vCPUs: 1..256 (default: 24).")
@click.option("--flush-policy", default="mask", metavar="NAME", help="mask, accessed, precise.")
@click.option("--disk", "disks", multiple=True, metavar="DISK", help="As `run` has it.")
@click.option("--bs", default="44k", metavar="SIZE", help="Block size (default: 44k).")
@click.option("--ios", default="500", metavar="N", help="I/Os of each guest (default: 500).")
@click.option("--seed", default="1", metavar="N", help="Fixes every choice of the load.")
def compare(
    guests: str,
    dom0_vcpus: str,
    flush_policy: str,
    disks: tuple[str, ...],
    bs: str,
    ios: str,
    seed: str,
) -> None:
    """Run one seeded load on real processes and in the simulator, in a shape in which timing cannot
    matter (one I/O in flight, no CPU leaves the mask), and compare grants, maps, unmaps, flushes,
    IPIs, notifications and bytes one by one."""
    from toolstack.compare import TIMELESS_POLICIES, load, topologies  # noqa: PLC0415
    from toolstack.compare import compare as run_both  # noqa: PLC0415

    if flush_policy not in TIMELESS_POLICIES:
        raise ConfigError(
            f"flush-policy: {flush_policy!r} is not one of {', '.join(TIMELESS_POLICIES)}, under"
            " which no count depends on time"
        )
    shape = {"guests": guests, "dom0_vcpus": dom0_vcpus, "flush_policy": flush_policy}
    machines = topologies(**shape, **({"disks": disks} if disks else {}))
    run_both(machines, load(bs=bs, ios=ios, seed=seed), Console(highlight=False))


@click.command(
    cls=Command, short_help="Where persistent grants begin to pay: 1..256 vCPUs, 1..64 guests."
)
@click.option("--out", default=WHATIF, metavar="DIR", help=f"Where to write ({WHATIF}).")
@SCHEDULER
@WORKERS
@click.option("--quick", is_flag=True, help="A coarse grid: up to 64 vCPUs and 16 guests.")
def whatif(out: str, scheduler: str | None, workers: int | None, quick: bool) -> None:
    """Simulate dom0 with 1..256 vCPUs under 1..64 guests with requests of 4..44 KiB, with and
    without persistent grants, under the hypervisors of 2012, of today, and one with precise
    flushes, and draw where they pay. A sweep that was stopped goes on where it was."""
    from toolstack.whatif import FULL, QUICK, make_whatif  # noqa: PLC0415

    make_whatif(output_directory(out), scheduler, workers, QUICK if quick else FULL)


EYE: Final = (*EYES, trace, report)
ALONE: Final = (simulate, look, figure, compare, whatif)
for command in (*STAY, *PLUG, EXPORT, *LIFE, *EYE, *ALONE):
    cli.add_command(command)
