"""`report`: its flags, and where it is written."""

from typing import Final

import click

from toolstack.attached import attach
from toolstack.door import Command, RunEnded, Within
from toolstack.failures import MachineError
from toolstack.files import check_writable, write_whole
from toolstack.names import DEFAULT, checked_name

EVERY_S: Final = 0.25


@click.command(cls=Command, short_help="One HTML file of what a machine that is up does.")
@click.argument(
    "name", default=DEFAULT, metavar="[NAME]", callback=lambda _, __, name: checked_name(name)
)
@click.option(
    "--seconds",
    default=5.0,
    metavar="SECONDS",
    type=Within(float, EVERY_S, 3600),
    help="How long to look at it (default: 5).",
)
@click.option("--out", metavar="FILE", help="Where to write (default: NAME.html).")
def report(name: str, seconds: float, out: str | None) -> None:
    """Look at a machine that is up for a while, and write what it did as one HTML file that needs
    nothing else: its domains and disks, I/Os a second, what a request cost, and which of dom0's
    CPUs were interrupted."""
    path = out or f"{name}.html"
    check_writable(path, "out")
    try:
        with attach(name) as machine:
            from toolstack.live_report import page, watch  # noqa: PLC0415 - brings matplotlib

            seen = watch(machine, seconds, EVERY_S)
    except MachineError as error:
        raise RunEnded(f"{name}: {error}") from None
    write_whole(path, "out", page(seen).encode())
    click.echo(path)
