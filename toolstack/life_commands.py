"""`pause`, `unpause`, `suspend`, `resume`, `resize`: guests of a machine that stays, from the
command line.

Owns: their arguments, and what is said when one is done.
"""

from collections.abc import Callable
from typing import Any, Final

import click

from toolstack.attached import attach
from toolstack.config import bytes_of, size_text
from toolstack.door import Command, RunEnded
from toolstack.failures import MachineError
from toolstack.flags import machine_name
from toolstack.hold import PAUSED, SUSPENDED
from toolstack.loadspec import VDEVS, ConfigError, shown

WHAT: Final = {
    "pause": (
        f"is {PAUSED}",
        "Stop a guest of a machine that is up: its process does not run until `unpause`. What is"
        " asked of it meanwhile is refused; its loads stand still, and go on then.",
        "Stop a guest.",
    ),
    "unpause": ("goes on", "Let a guest that is paused go on.", "Let a paused guest go on."),
    "suspend": (
        f"is {SUSPENDED}",
        "Close the disks of a guest, as before a migration: nothing of it stays granted or bound."
        " What is on its rings is kept, and its loads go on after `resume`.",
        "Close a guest's disks, as before a migration.",
    ),
    "resume": (
        "goes on",
        "Connect the disks of a guest that is suspended again, and do what was kept.",
        "Connect a suspended guest again.",
    ),
}


def domid_of(written: str) -> int:
    """A guest's number. Raises ConfigError."""
    if not written.isascii() or not written.isdecimal() or len(written) > 5:
        raise ConfigError(f"guest: {shown(written)} is not a guest's number, as 1")
    return int(written)


def _order(word: str) -> Callable[..., Any]:
    def order(name: str, guest: str) -> None:
        domid = domid_of(guest)
        try:
            with attach(name) as machine:
                machine.order(word, domid)
        except MachineError as error:
            raise RunEnded(f"{name}: {error}") from None
        click.echo(f"guest {domid} {WHAT[word][0]}")

    return order


def _resize(name: str, disk: str, size: str) -> None:
    written, _, vdev = disk.partition(":")
    if vdev not in VDEVS:
        raise ConfigError(f"disk: {shown(disk)} is not GUEST:VDEV, as 1:xvda")
    domid, nbytes = domid_of(written), bytes_of(size)
    try:
        with attach(name) as machine:
            machine.resize(domid, vdev, nbytes)
    except MachineError as error:
        raise RunEnded(f"{name}: {error}") from None
    click.echo(f"guest {domid}'s {vdev} has {size_text(nbytes)} bytes")


COMMANDS: Final = [
    Command(
        word,
        callback=_order(word),
        params=[machine_name(required=True), click.Argument(["guest"])],
        help=help_,
        short_help=short_help,
    )
    for word, (_, help_, short_help) in WHAT.items()
] + [
    Command(
        "resize",
        callback=_resize,
        params=[
            machine_name(required=True),
            click.Argument(["disk"], metavar="GUEST:VDEV"),
            click.Argument(["size"]),
        ],
        help="Give a disk of a machine that is up another size, larger or smaller: its store's"
        " changes, its backend announces it, its guest takes it, with what runs on it going on. A"
        " ram disk may grow to 16 times what it was born with; a block device has the size that it"
        " has, which is announced.",
        short_help="Give a disk another size.",
    )
]
