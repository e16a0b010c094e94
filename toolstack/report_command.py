"""`report`: its flags, and where it is written."""

from typing import Final

import click

from toolstack.attached import attach
from toolstack.door import Command, Within
from toolstack.files import check_writable, write_whole
from toolstack.flags import OUTPUT, Flag, machine_name

EVERY_S: Final = 0.25


def _report(name: str, seconds: float, out: str | None) -> None:
    path = out or f"{name}.html"
    check_writable(path, "out")
    with attach(name) as machine:
        from toolstack.live_report import page, watch  # noqa: PLC0415 - brings matplotlib

        seen = watch(machine, seconds, EVERY_S)
    write_whole(path, "out", page(seen).encode())
    click.echo(path)


report: Final = Command(
    "report",
    callback=_report,
    params=[
        machine_name(),
        Flag(
            OUTPUT,
            "--seconds",
            type=Within(float, EVERY_S, 3600),
            default=5.0,
            metavar="SECONDS",
            help="How long to look at it (default: 5).",
        ),
        Flag(OUTPUT, "--out", metavar="FILE", help="Where to write (default: NAME.html)."),
    ],
    help="Look at a machine that is up for a while, and write what it did as one HTML file that"
    " needs nothing else: its domains and disks, I/Os a second, what a request cost, and which of"
    " dom0's CPUs were interrupted.",
    short_help="One HTML file of what a machine that is up does.",
)
