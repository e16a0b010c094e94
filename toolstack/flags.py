"""The flags of a launch, real or simulated, in groups, as the help shows them.

Owns: their names and help. What a setting may be, and its default, stands with the settings and is
looked up there.
"""

import tomllib
from pathlib import Path
from typing import Any, Final

import click

from toolstack.disks import DISKS_MAX, FORM
from toolstack.loadspec import Config, LoadSpec, allowed
from toolstack.names import DEFAULT, checked_name
from toolstack.topology import PRESETS, Mode, Topology


class Flag(click.Option):
    """An option that belongs to a group of the help; its value is checked by the settings."""

    def __init__(self, group: str, *names: str, **options: Any) -> None:
        super().__init__(names, **options)
        self.group = group


def machine_name(required: bool = False) -> click.Argument:
    """Which machine that stays; the default one, where it is not required."""

    def checked(ctx: click.Context, param: click.Parameter, value: str) -> str:
        return checked_name(value)

    may_lack: dict[str, Any] = {} if required else {"default": DEFAULT, "metavar": "[NAME]"}
    return click.Argument(["name"], callback=checked, **may_lack)


def _setting(
    group: str, model: type[Config], field: str, metavar: str, text: str, default: str = ""
) -> Flag:
    """A flag that sets `field` of `model`; the help says what it may be and its default."""
    info = model.model_fields[field]
    name = "--" + field.removesuffix("_s").replace("_", "-")
    limits = f": {allowed(info)}" if allowed(info) else ""
    if not default and field in PRESETS["today"]:
        today, then = (PRESETS[preset][field] for preset in ("today", "2012"))
        default = str(today) if today == then else f"{today}; {then} with preset 2012"
    help_text = f"{text}{limits} (default: {default or info.default})."
    return Flag(group, name, field, metavar=metavar, help=help_text)


def _mode_flag(name: str, mode: Mode, text: str) -> Flag:
    return Flag(WHICH, name, asked_for(mode), is_flag=True, help=text)


def asked_for(mode: Mode) -> str:
    """The name of what its flag sets."""
    return f"run_{mode.replace('-', '_')}"


def _print_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
        click.echo(f"grantlab {project['project']['version']}")
        ctx.exit()


WHICH: Final = "Modes: any of them; the first two if none is named"
MACHINE: Final = "The machine"
LOAD: Final = "The load, on every disk of every guest (fio's names)"
OUTPUT: Final = "Input and output"

STATE: Final = ("verify_state", "verify_only", "ramp_time_s", "on_crash")  # of a real run only

SPARE: Final[Flag] = _setting(  # of a machine that stays only
    MACHINE,
    Topology,
    "spare_disks",
    "N",
    "How many more disks a guest may be given by `attach`",
    "2, or what the host has room for",
)

FLAGS: Final[list[click.Parameter]] = [
    _mode_flag("--no-persistent", "non-persistent", "Grant, map and unmap for every request."),
    _mode_flag("--persistent", "persistent", "Grant and map once, and copy from then on."),
    _mode_flag(
        "--backend-without-persistent",
        "backend-without-persistent",
        "A frontend that reuses its grants, a backend that maps for every request.",
    ),
    _mode_flag(
        "--grant-copy",
        "grant-copy",
        "Map nothing: the hypervisor copies, as for QEMU's backend.",
    ),
    _setting(MACHINE, Topology, "preset", "NAME", "Defaults of an era"),
    _setting(MACHINE, Topology, "guests", "N", "Guests, a process each"),
    _setting(MACHINE, Topology, "dom0_vcpus", "N", "dom0's vCPUs, each on a simulated CPU"),
    _setting(MACHINE, Topology, "flush_policy", "NAME", "Whom a TLB flush interrupts"),
    _setting(MACHINE, Topology, "batching", "NAME", "Hypercalls for each request, or each drain"),
    _setting(MACHINE, Topology, "max_persistent_grants", "N", "Pages a ring's backend keeps"),
    _setting(MACHINE, Topology, "spin", "NAME", "Spin a while before blocking, or never"),
    _setting(MACHINE, Topology, "events", "NAME", "What carries a wake-up between processes"),
    _setting(
        MACHINE, Topology, "on_crash", "NAME", "If dom0 dies: end, start it again, or leave it"
    ),
    Flag(
        MACHINE,
        "--disk",
        "disks",
        multiple=True,
        metavar="DISK",
        help=f"A disk of every guest; may be named again, for up to {DISKS_MAX}: {FORM}"
        " (default: ram:64m).",
    ),
    _setting(MACHINE, Topology, "disk_mib", "MIB", "Short for one ram disk of so many MiB"),
    _setting(LOAD, LoadSpec, "rw", "NAME", "Pattern"),
    _setting(LOAD, LoadSpec, "rwmixread", "PERCENT", "Reads among rw and randrw"),
    _setting(LOAD, LoadSpec, "bs", "SIZE", "Block size: a multiple of 512 in 512..1m", "4k"),
    _setting(LOAD, LoadSpec, "iodepth", "N", "I/Os in flight on each disk"),
    _setting(LOAD, LoadSpec, "runtime_s", "SECONDS", "Stop after so long", "5, or none with --ios"),
    _setting(LOAD, LoadSpec, "ramp_time_s", "SECONDS", "Run so long before anything is counted"),
    _setting(LOAD, LoadSpec, "ios", "N", "Stop after so many I/Os on each disk", "none"),
    _setting(LOAD, LoadSpec, "fsync", "N", "Flush after every so many writes; 0: never"),
    _setting(LOAD, LoadSpec, "seed", "N", "Fixes every choice of the load"),
    Flag(
        LOAD,
        "--vdev",
        "vdev",
        multiple=True,
        metavar="NAME",
        help="Load this disk alone; may be named again: xvda..xvdp (default: every disk).",
    ),
    Flag(
        LOAD,
        "--verify/--no-verify",
        default=None,
        help="Compare each read with what was written (default: --verify).",
    ),
    Flag(
        LOAD,
        "--verify-state",
        "verify_state",
        metavar="DIR",
        help="Keep there what each disk has been told to keep, and go on from it (default: none).",
    ),
    Flag(
        LOAD,
        "--verify-only",
        "verify_only",
        is_flag=True,
        help="Run no load: does each disk hold what --verify-state says it must?",
    ),
    Flag(
        OUTPUT,
        "--config",
        "config",
        metavar="FILE",
        help="TOML: tables [topology] and [load]; [[topology.guest]] and [[load.job]] in them.",
    ),
    Flag(
        OUTPUT,
        "--job",
        "job_file",
        metavar="FILE",
        help="The load from a job file of fio's; flags override what all its jobs say.",
    ),
    Flag(OUTPUT, "--json", "json", metavar="FILE", help="Write all results there, too."),
    Flag(OUTPUT, "--csv", "csv", metavar="FILE", help="Write a table: a row for each disk's ring."),
    Flag(OUTPUT, "--parquet", "parquet", metavar="FILE", help="The same table as Parquet."),
    Flag(
        OUTPUT,
        "--output-format",
        "output_format",
        metavar="NAME",
        help="All results by fio's names, in place of the tables, or to --output: json, json+.",
    ),
    Flag(OUTPUT, "--output", "output", metavar="FILE", help="Where --output-format is written."),
    Flag(OUTPUT, "--quiet", "quiet", is_flag=True, help="Only the tables."),
    Flag(
        OUTPUT,
        "--version",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_print_version,
        help="Print the version and exit.",
    ),
]
