"""`./run.sh look`: start a machine, run a load, and show what lies in its memory.

Owns: the command's own flags, and how much of a load is run where nothing is said.
"""

from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

from toolstack.cli import DEFAULT_MODES, Start, settings
from toolstack.disks import Disk
from toolstack.door import Command, RunEnded
from toolstack.failures import MachineError
from toolstack.flags import FLAGS, OUTPUT, STATE, Flag
from toolstack.loadspec import ConfigError, LoadSpec, shown
from toolstack.topology import Topology

PARTS: Final = ("ring", "grants", "maptrack", "tree", "events")
IOS: Final = 100  # of the load, where nothing is said
LOOKS: Final = "What to look at"
FILES: Final = (
    "json",
    "csv",
    "parquet",
    "output",
    "output_format",
    "quiet",
)  # flags of a result: this has none


def _flags() -> list[click.Parameter]:
    """The launch's, and its own."""
    own = [
        Flag(LOOKS, "--at", "at", metavar="GUEST:VDEV", help="Which disk (default: 1:xvda)."),
        Flag(
            LOOKS,
            "--show",
            "show",
            metavar="PARTS",
            help=f"Some of {', '.join(PARTS)} (default: all).",
        ),
        Flag(
            LOOKS,
            "--busy",
            "busy",
            is_flag=True,
            help="Look while the load runs, not after it.",
        ),
        Flag(
            OUTPUT, "--picture", "picture", metavar="FILE", help="Draw the tree there: PNG and SVG."
        ),
    ]
    return [*own, *(flag for flag in FLAGS if flag.name not in (*FILES, *STATE))]


def _look(**flags: Any) -> None:
    at, show, busy, picture = (flags.pop(name) for name in ("at", "show", "busy", "picture"))
    parts = _parts(show)
    topologies, (spec, *_) = settings(flags)
    asked = [one for one in topologies if one.mode in DEFAULT_MODES or len(topologies) == 1]
    topology, spec = _small(asked[-1], spec)
    disk = _disk(topology, at)
    topology.check_host()
    try:
        view = _view(Topology.start, topology, spec, disk, busy)
    except MachineError as error:
        raise RunEnded(f"{topology.mode}: {error}") from None
    click.echo(f"{topology.mode}, {disk}, {'while the load runs' if busy else 'at rest'}\n")
    click.echo(view.text(parts))
    if picture is not None and view.tree is not None:
        from toolstack.tree_picture import draw_tree  # noqa: PLC0415

        draw_tree(view.tree, f"{disk}: what dom0 keeps mapped", Path(picture))


def _view(start: Start, topology: Topology, spec: LoadSpec, disk: Disk, busy: bool) -> Any:
    with start(topology) as machine:
        with closing(machine.load(spec, 0.1)) as load:
            for _ in load:
                if busy:
                    return machine.look(disk.domid, disk.vdev)
        return machine.look(disk.domid, disk.vdev)


def _small(topology: Topology, spec: LoadSpec) -> tuple[Topology, LoadSpec]:
    """The same, but for what nobody has asked for: one guest, a few I/Os."""
    topology = Topology(**{"guests": 1, **topology.given()})
    if spec.ios is None and "runtime_s" not in spec.given():
        spec = LoadSpec(**{**spec.given(), "ios": IOS})
    return topology, spec


def _parts(show: str | None) -> tuple[str, ...]:
    if show is None:
        return PARTS
    parts = tuple(show.split(","))
    if not all(part in PARTS for part in parts):
        raise ConfigError(f"show: {shown(show)} is not some of {', '.join(PARTS)}")
    return parts


def _disk(topology: Topology, at: str | None) -> Disk:
    """The disk that `at` names. Raises ConfigError."""
    disks = topology.every_disk()
    if at is None:
        return disks[0]
    domid, colon, vdev = at.partition(":")
    found = [d for d in disks if (str(d.domid), d.vdev) == (domid, vdev if colon else "xvda")]
    if not found:
        there = ", ".join(f"{disk.domid}:{disk.vdev}" for disk in disks[:4])
        more = " ..." if len(disks) > 4 else ""
        raise ConfigError(f"at: {shown(at)} is no disk there is; there are {there}{more}")
    return found[0]


look = Command(
    "look",
    callback=_look,
    params=_flags(),
    help="Run a load on a machine and show what then lies in its memory, for one disk: the ring's"
    " page with its slots, the guest's grant table, what dom0 has mapped of it, the red-black tree"
    " of persistent grants, the event words.",
    short_help="What lies in memory: ring, grants, maptrack, tree, events.",
)
