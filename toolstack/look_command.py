"""`./run.sh look`: show what lies in a machine's memory, of one that is up or is started for it.

Owns: the command's own flags, and how much of a load is run where nothing is said.
"""

from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from toolstack.attached import attach
from toolstack.cli import DEFAULT_MODES, Start, settings
from toolstack.disks import Disk
from toolstack.door import Command, RunEnded
from toolstack.failures import MachineError
from toolstack.flags import FLAGS, OUTPUT, STATE, Flag
from toolstack.loadspec import ConfigError, LoadSpec, shown
from toolstack.names import checked_name
from toolstack.topology import Topology

PARTS: Final = ("ring", "grants", "maptrack", "tree", "events")
OWN: Final = ("at", "show", "busy", "picture")
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
    name = click.Argument(["name"], required=False, metavar="[NAME]", callback=_name)
    return [name, *own, *(flag for flag in FLAGS if flag.name not in (*FILES, *STATE))]


def _name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return None if value is None else checked_name(value)


def _look(name: str | None, **flags: Any) -> None:
    at, show, busy, picture = (flags.pop(name) for name in OWN)
    parts = _parts(show)
    if name is not None:
        _require_only_own(name)
        _look_at(name, at, parts, picture)
        return
    topologies, (spec, *_) = settings(flags)
    asked = [one for one in topologies if one.mode in DEFAULT_MODES or len(topologies) == 1]
    topology, spec = _small(asked[-1], spec)
    disk = _disk(topology, at)
    topology.check_host()
    try:
        view = _view(Topology.start, topology, spec, disk, busy)
    except MachineError as error:
        raise RunEnded(f"{topology.mode}: {error}") from None
    when = "while the load runs" if busy else "at rest"
    _show(view, f"{topology.mode}, {disk}, {when}", disk, parts, picture)


def _require_only_own(name: str) -> None:
    """Raises ConfigError if there is a flag of a machine that would be started."""
    ctx = click.get_current_context()
    for param in ctx.command.params:
        given = ctx.get_parameter_source(param.name or "") == ParameterSource.COMMANDLINE
        if given and param.name not in ("name", "at", "show", "picture"):
            raise ConfigError(
                f"look: {param.opts[0]} is for a machine that `look` starts, and {name!r} is up"
            )


def _look_at(name: str, at: str | None, parts: tuple[str, ...], picture: str | None) -> None:
    """At a machine that is up, or what is preserved of one."""
    try:
        with attach(name) as machine:
            disk = _disk(machine.topology, at)
            view = machine.look(disk.domid, disk.vdev)
            head = f"{name}, {machine.topology.mode}, {disk}, {machine.described['state']}"
    except MachineError as error:
        raise RunEnded(f"{name}: {error}") from None
    _show(view, head, disk, parts, picture)


def _show(view: Any, head: str, disk: Disk, parts: tuple[str, ...], picture: str | None) -> None:
    click.echo(f"{head}\n")
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
    help="Show what lies in the memory of a machine that is up, for one disk: the ring's page with"
    " its slots, the guest's grant table, what dom0 has mapped of it, the red-black tree of"
    " persistent grants, the event words. Without a NAME a machine is started for it, and runs a"
    " load first.",
    short_help="What lies in memory: ring, grants, maptrack, tree, events.",
)
