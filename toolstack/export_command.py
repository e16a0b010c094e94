"""`export`: a disk of a machine that stays, served as NBD while the command runs.

Owns: its flags and its words. The export itself is `toolstack/exported.py`'s.
"""

import shlex
import sys
from typing import Final

import click

from toolstack.attached import attach
from toolstack.config import size_text
from toolstack.door import Command, RunEnded
from toolstack.failures import MachineError
from toolstack.flags import OUTPUT, Flag, machine_name
from toolstack.loadspec import VDEVS, ConfigError, shown

HOW_TO_USE: Final = {
    "nbdinfo {}": "what it is",
    "nbdcopy IMAGE {}": "an image goes in",
    "qemu-img convert -f raw -O raw {} IMAGE": "and out",
    "fio --ioengine=nbd --uri={} --name=x --rw=randrw": "a load of fio's",
}


def place_of(written: str) -> tuple[int, str]:
    """GUEST:VDEV. Raises ConfigError."""
    domid, _, vdev = written.partition(":")
    if not domid.isdecimal() or vdev not in VDEVS:
        raise ConfigError(f"disk: {shown(written)} is not GUEST:VDEV, as 1:xvda")
    return int(domid), vdev


def _export(name: str, disk: str, socket: str | None) -> None:
    domid, vdev = place_of(disk)
    if socket == "":
        raise ConfigError("socket: '' is no path")
    try:
        with attach(name) as machine, machine.export(domid, vdev, socket or "") as export:
            try:
                _tell(disk, export.uri, export.nr_bytes)
                export.wait()
            except RunEnded as signal:
                what = f"{str(signal).partition(';')[0]}; the export has ended, {name} stays"
                raise RunEnded(what, signal.status) from None
    except MachineError as error:
        raise RunEnded(f"{name}: {error}") from None
    raise RunEnded(f"{name}: the export has ended, the machine goes down")


def _tell(disk: str, uri: str, nr_bytes: int) -> None:
    click.echo(f"{disk} is served, {size_text(nr_bytes)}, until Ctrl-C: {uri}")
    for command, what in HOW_TO_USE.items():
        click.echo(f"  {command.format(shlex.quote(uri))}  # {what}")
    sys.stdout.flush()  # which may be a file, and is read while this runs


COMMAND: Final = Command(
    "export",
    callback=_export,
    params=[
        machine_name(required=True),
        click.Argument(["disk"], metavar="GUEST:VDEV"),
        Flag(
            OUTPUT,
            "--socket",
            metavar="PATH",
            help="Where to listen; by default in the machine's directory.",
        ),
    ],
    help="Serve a disk of a machine that is up as NBD on a unix socket, through its guest's"
    " blkfront, for any program. It has no other user meanwhile; Ctrl-C ends it, and not the"
    " machine.",
    short_help="Serve a guest's disk as NBD, for any program.",
)
