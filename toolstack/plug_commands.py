"""`attach`, `detach`: disks of a machine that stays come and go, from the command line.

Owns: their arguments. What they do is `toolstack/plugged_machine.py`'s.
"""

import re
from typing import Final

import click

from toolstack.attached import attach
from toolstack.disks import FORM, DiskSpec
from toolstack.door import Command, RunEnded
from toolstack.failures import MachineError
from toolstack.flags import MACHINE, Flag, machine_name
from toolstack.loadspec import ConfigError, shown


def _guest(ctx: click.Context, param: click.Parameter, value: str) -> int:
    if not value.isdecimal():
        raise ConfigError(f"guest: {shown(value)} is not a guest's number, as 1")
    return int(value)


def _attach(name: str, guest: int, disk: str) -> None:
    spec = DiskSpec.of(re.sub(",(r[ow])$", r",access=\1", disk))
    with attach(name) as machine:
        try:
            arrived = machine.attach_disk(guest, spec)
        except MachineError as error:
            raise RunEnded(f"{name}: {error}") from None
    click.echo(f"guest {guest} has {arrived.vdev}: {spec.params}, {arrived.size} bytes")


def _detach(name: str, guest: int, vdev: str, force: bool) -> None:
    with attach(name) as machine:
        try:
            machine.detach_disk(guest, vdev, force)
        except MachineError as error:
            raise RunEnded(f"{name}: {error}") from None
    click.echo(f"guest {guest} has no {vdev} any more")


def _arguments(*more: str) -> list[click.Parameter]:
    found: list[click.Parameter] = [
        machine_name(required=True),
        click.Argument(["guest"], callback=_guest),
    ]
    return [*found, *(click.Argument([each]) for each in more)]


COMMANDS: Final = [
    Command(
        "attach",
        callback=_attach,
        params=_arguments("disk"),
        help="Give a guest of a machine that is up one more disk, as `xl block-attach` does, and"
        f" return when it is Connected. A disk is {FORM}; `ro` at its end is short for access=ro.",
        short_help="Give a running guest one more disk.",
    ),
    Command(
        "detach",
        callback=_detach,
        params=[
            *_arguments("vdev"),
            Flag(
                MACHINE,
                "--force",
                "force",
                is_flag=True,
                help="Whether its guest lets go of it or not: a load on it fails.",
            ),
        ],
        help="Take a disk from a guest of a machine that is up, as `xl block-detach` does, and"
        " return when nothing of it is left. One that has a load stays, if it is not forced.",
        short_help="Take a disk from a running guest.",
    ),
]
