"""`up`, `ls`, `load`, `logs`, `down`: a machine that stays, from the command line.

Owns: their flags, and how what they find is shown. A machine itself is `toolstack/attached.py`'s.
"""

import json
import time
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from toolstack.attached import AttachedMachine, attach, kill, up
from toolstack.cli import console_for, load_stages, settings
from toolstack.door import Command, RunEnded
from toolstack.failures import MachineError
from toolstack.files import check_outputs, write_outputs
from toolstack.flags import (
    FLAGS,
    LOAD,
    MACHINE,
    OUTPUT,
    SPARE,
    WHICH,
    Flag,
    asked_for,
    machine_name,
)
from toolstack.jobs import jobs_on
from toolstack.listing import gathered, print_machine
from toolstack.loadspec import VDEVS, ConfigError, LoadSpec, shown
from toolstack.machine_part import Part
from toolstack.names import LOG, checked_name, machine_names
from toolstack.report import print_report
from toolstack.results import build_run, faults
from toolstack.stages import Stage, run_stage
from toolstack.topology import MODES

OF_A_RUN: Final = ("verify_state", "verify_only")  # one-shot
INPUT: Final = ("config",)
HOW_TO_USE: Final = {
    "ls {}": "what it is, and what it does now",
    "load {} 1:xvda": "a load on a disk, or on a guest's, or on all",
    "attach {} 1 ram:16m": "one more disk; `detach` takes it away",
    "export {} 1:xvda": "a disk as NBD, for any program",
    "logs {}": "what it has said",
    "down {}": "the end of it",
}
RESULTS: Final = (
    "json", "csv", "parquet", "job_file", "output_format", "output", "quiet"
)  # fmt: skip


def _flags(groups: tuple[str, ...], besides: tuple[str, ...] = ()) -> list[click.Parameter]:
    """The launch's, of these groups."""
    return [
        flag
        for flag in FLAGS
        if isinstance(flag, Flag)
        and (flag.group in groups or flag.name in besides)
        and flag.name not in OF_A_RUN
    ]


def _say(line: str) -> None:
    click.echo(f"grantlab: {line}", err=True)


def _up(name: str, **flags: Any) -> None:
    asked = [mode for mode in MODES if flags[asked_for(mode)]]
    if len(asked) > 1:
        raise ConfigError(f"up: a machine has one mode, and {', '.join(asked)} are named")
    flags["job_file"] = None  # which is of a load
    flags[asked_for("persistent")] = flags[asked_for("persistent")] or not (
        asked or flags["config"]
    )
    topologies, _ = settings(flags)
    try:
        up(topologies[-1], name, _say)
    except MachineError as error:
        raise RunEnded(str(error)) from None
    with attach(name) as machine:
        topology = machine.topology
        disks = len(topology.every_disk())
        click.echo(
            f"{name} is up: {topology.mode}, {topology.guests} guest{'s' * (topology.guests > 1)}"
            f" with {disks} disk{'s' * (disks > 1)}, dom0 with {topology.dom0_vcpus}"
            f" vCPU{'s' * (topology.dom0_vcpus > 1)}"
        )
        for command, what in HOW_TO_USE.items():
            click.echo(f"  {'./run.sh ' + command.format(name):<34}{what}")
        click.echo(f"  XENSTORED_PATH={machine.xenstore_path} xenstore-ls")


def _ls(name: str | None, as_json: bool) -> None:
    if name is not None:
        attach(checked_name(name)).close()  # or it says what there is in its place
    found = gathered([name] if name is not None else machine_names())
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    if not found:
        click.echo("no machine is up; `./run.sh up` starts one")
    for machine in found:
        print_machine(Console(highlight=False, soft_wrap=True), machine)


def _logs(name: str, follow: bool) -> None:
    with attach(name) as machine:
        path = Path(machine.run_dir) / LOG
        with path.open(encoding="utf-8", errors="replace") as file:
            while True:
                text = file.read()
                click.echo(text, nl=False)
                if not follow or (not text and not path.exists()):
                    return
                time.sleep(0.2)


def _down(name: str, force: bool) -> None:
    try:
        machine = attach(name)
    except MachineError:
        if not force:
            raise
        kill(name)
        return
    try:
        machine.down(force)
    except MachineError as error:
        raise RunEnded(f"{name} is down, but not in order: {error}") from None


def _load(name: str, disks: tuple[str, ...], **flags: Any) -> None:
    places = [_place(disk) for disk in disks]
    stages = [_on(spec, places) for spec in load_stages(flags, {})]
    check_outputs(flags)
    console = console_for(flags)
    shown = Console(quiet=True) if flags["quiet"] else console
    try:
        with attach(name) as machine:
            done = _run_stages(machine, stages, shown)
            failures = list(machine.failures.values())
    except MachineError as error:
        raise RunEnded(f"{name}: {error}") from None
    runs = [
        build_run(
            stage.topology,
            stage.spec,
            booted=stage.started,
            started=stage.started,
            finished=stage.finished,
            closed=stage.finished,
        )
        for stage in done
    ]
    for run in runs:
        print_report(console, [run])
    write_outputs(flags, runs)
    if (signal := done[-1].ended) is not None:
        what = str(signal).partition(";")[0]
        raise RunEnded(f"{what}; the load has ended, {name} stays", signal.status)
    if found := faults(runs, [0] * len(runs), [[]] * (len(runs) - 1) + [failures]):
        raise RunEnded(found)


def _place(written: str) -> dict[str, Any]:
    """GUEST or GUEST:VDEV, as a job's place."""
    domid, colon, vdev = written.partition(":")
    if not domid.isdecimal() or (colon and vdev not in VDEVS):
        raise ConfigError(f"disk: {shown(written)} is not GUEST or GUEST:VDEV, as 1 or 1:xvda")
    return {"domid": int(domid), **({"vdev": vdev} if colon else {})}


def _on(spec: LoadSpec, places: list[dict[str, Any]]) -> LoadSpec:
    """`spec` at these places, or where it says itself if there are none. Raises ConfigError."""
    if not places:
        return spec
    if spec.job:
        raise ConfigError("disk: jobs of a file run where the file says, or on all disks")
    return LoadSpec(**{**spec.given(), "job": places})


def _run_stages(machine: AttachedMachine, stages: list[LoadSpec], shown: Console) -> list[Stage]:
    """One after the other, each on its own disks."""
    done: list[Stage] = []
    for spec in stages:
        jobs = jobs_on(spec, machine.topology.every_disk())
        part = Part(machine, [(job.disk.domid, job.disk.number) for job in jobs])
        name = f"{machine.name}, {machine.topology.mode}"
        done.append(run_stage(part, machine.topology, spec, shown, name))
        if done[-1].ended is not None:
            break
    return done


COMMANDS: Final = [
    Command(
        "up",
        callback=_up,
        params=[machine_name(), *_flags((WHICH, MACHINE), INPUT), SPARE],
        help="Start a machine that stays, under a name, and return when every disk is Connected."
        " It has one mode: persistent, if none is named.",
        short_help="Start a machine that stays.",
    ),
    Command(
        "ls",
        callback=_ls,
        params=[
            click.Argument(["name"], required=False),
            Flag(OUTPUT, "--json", "as_json", is_flag=True, help="As JSON, for programs."),
        ],
        help="Show the machines that are up, or one: its domains and disks, their states, what dom0"
        " keeps mapped of them, and what they do now.",
        short_help="Machines that are up, their domains and disks.",
    ),
    Command(
        "load",
        callback=_load,
        params=[
            machine_name(),
            click.Argument(["disks"], nargs=-1, metavar="[GUEST[:VDEV]]..."),
            *_flags((LOAD,), RESULTS),
        ],
        help="Run a load on a machine that is up: on these disks, or on all. Any number of loads"
        " run at once, on different disks; Ctrl-C ends this one, and not the machine.",
        short_help="Run a load on a machine that is up.",
    ),
    Command(
        "logs",
        callback=_logs,
        params=[
            machine_name(),
            Flag(OUTPUT, "--follow", "follow", is_flag=True, help="Go on until it goes down."),
        ],
        help="Show what a machine that is up has said.",
        short_help="What a machine has said.",
    ),
    Command(
        "down",
        callback=_down,
        params=[
            machine_name(),
            Flag(MACHINE, "--force", "force", is_flag=True, help="Do not ask any part of it."),
        ],
        help="Close every disk of a machine that is up, and end it: nothing is left of it.",
        short_help="Put a machine down.",
    ),
]
