"""The command line: flags to settings, settings to runs, runs to tables.

Owns: how flags and a file become settings, the help, the order of a run. The flags themselves are
`toolstack/flags.py`'s; how an error is put into one line is `toolstack/door.py`'s.
Rules: what the user got wrong is said before anything starts. A flag overrides the config file.
"""

import os
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, Final, NamedTuple

import click
from rich.console import Console

from toolstack.door import OF_RUN_SH, Command, Group, RunEnded
from toolstack.failures import MachineError
from toolstack.files import check_outputs, write_outputs
from toolstack.fio_job import read_job_file
from toolstack.flags import FLAGS, OUTPUT, Flag, asked_for
from toolstack.jobs import jobs_on
from toolstack.loadspec import Config, LoadSpec
from toolstack.report import print_report
from toolstack.results import Run, build_run, faults, grants_left
from toolstack.stages import Stage, run_stage
from toolstack.topology import MODES, ConfigError, Mode, RunningMachine, Topology
from toolstack.verify_state import is_fresh, kept_of, state_path

DEFAULT_MODES: Final[tuple[Mode, ...]] = ("non-persistent", "persistent")

Start = Callable[[Topology], RunningMachine]


ABOUT: Final = """\
Start a machine of real processes - a hypervisor, dom0 with its block backend, and guests with a
virtual disk each - run a load on every disk, and say what a request cost: grants, maps, unmaps, TLB
flushes, interrupts, copies, time. It does so once with persistent grants and once without, and lays
the two side by side. Every byte read is checked.
"""

EXAMPLES: Final = [
    ("./run.sh", "4 guests, both modes, 5 seconds each"),
    ("./run.sh --guests 8 --rw randread --bs 44k", "full requests: 11 segments each"),
    ("./run.sh --disk ram:64m --disk null:1g", "two disks each, one of which moves nothing"),
    ("./run.sh --preset 2012 --no-persistent --ios 10000 --json out.json", "2012's flushes"),
]

MORE: Final = """\
README.md: a tour. docs/: the design, the protocol, what is counted and how. While a machine runs,
Debian's xenstore-ls shows its store; the line printed at its start says how.
"""


class RunCommand(Command):
    """`run`, whose help is grouped, with examples."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show that `run` may be left out."""
        formatter.write_usage("./run.sh", "[run] [FLAGS]")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A section for each group of flags, then the commands, examples and what to read."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                group = param.group if isinstance(param, Flag) else OUTPUT
                groups.setdefault(group, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=24)
        assert ctx.parent is not None and isinstance(ctx.parent.command, click.Group)
        commands = ctx.parent.command.commands
        with formatter.section("Commands"):
            ours = [(n, c.get_short_help_str(60)) for n, c in commands.items()]
            formatter.write_dl([*ours, *OF_RUN_SH.items()])
        with formatter.section("Examples"):
            for command, text in EXAMPLES:
                formatter.write(f"  {command}\n      {text}\n")
        with formatter.section("More"):
            formatter.write_text(MORE)


class Grantlab(Group):
    """The door: a command's name may be left out for `run`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What begins with a flag, or is nothing at all, is for `run`."""
        return super().parse_args(ctx, args if args and args[0][:1] != "-" else ["run", *args])


def settings(flags: dict[str, Any]) -> tuple[list[Topology], list[LoadSpec]]:
    """One topology for each mode to run, and the loads, one after the other. Raises ConfigError."""
    machine: dict[str, Any] = {}
    load: dict[str, Any] = {}
    modes = [mode for mode in MODES if flags[asked_for(mode)]]
    if flags["config"] is not None:
        topology, spec = Topology.from_toml(flags["config"])
        machine, load = topology.given(), spec.given()
        if not modes and {"persistent", "backend_persistent", "grant_copy"} & set(machine):
            modes = [topology.mode]
    _take_flags(Topology, flags, machine)
    stages = load_stages(flags, load)
    topology = Topology(**machine)
    if flags["job_file"] is not None:
        topology = topology.with_disks_for(stages)
    for spec in stages:
        topology = topology.with_buffers_for(spec)
        jobs_on(spec, topology.every_disk())  # can it run there?
    return [topology.with_mode(mode) for mode in modes or DEFAULT_MODES], stages


def load_stages(flags: dict[str, Any], load: dict[str, Any]) -> list[LoadSpec]:
    """The loads, one after the other, that a job file or a file's table `load` describes, and the
    flags. Raises ConfigError."""
    loads = [load]
    if flags["job_file"] is not None:
        if load:
            raise ConfigError(
                "job: a job file, and a [load] besides; only one of the two is allowed"
            )
        job_file = read_job_file(flags["job_file"], LoadSpec)
        if job_file.no_effect:
            click.echo(f"grantlab: of no effect here: {', '.join(job_file.no_effect)}", err=True)
        loads = [stage.given() for stage in job_file.stages]
    for given in loads:
        _take_flags(LoadSpec, flags, given)
    return [LoadSpec(**given) for given in loads]


def _take_flags(model: type[Config], flags: dict[str, Any], given: dict[str, Any]) -> None:
    """A flag overrides what a file gave."""
    named = {k: v for k, v in flags.items() if k in model.model_fields and v not in (None, ())}
    for one, other in (("disks", "disk_mib"), ("disk_mib", "disks")):
        if one in named and other not in named:
            given.pop(other, None)  # the file's
    for table in (given, *given.get("job", ())):
        table.update({k: v for k, v in named.items() if table is given or k != "vdev"})
        if "bs" in named:
            table.pop("bssplit", None)


class Measured(NamedTuple):
    """One mode's run. grants_left: still mapped at the end; failures: of guests, for people;
    ended: why it ended early, if it did."""

    run: Run
    grants_left: int
    failures: list[str]
    ended: RunEnded | None


def run_mode(
    topology: Topology, stages: Sequence[LoadSpec], start: Start, console: Console, quiet: bool
) -> list[Measured]:
    """Run loads one after the other on one machine. Ctrl-C ends the load, not the measuring."""
    done: list[Stage] = []
    with start(topology) as machine:
        if not quiet:
            pids = ", ".join(f"{name} {pid}" for name, pid in machine.pids.items())
            look = f"XENSTORED_PATH={machine.xenstore_path} xenstore-ls"
            click.echo(f"{topology.mode}: {pids}; {look}")
        shown = Console(quiet=True) if quiet else console
        for spec in stages:
            done.append(run_stage(machine, topology, spec, shown))
            if done[-1].ended is not None:
                break
    assert machine.booted is not None
    if machine.closed is None:
        raise done[-1].ended or RunEnded(
            f"{topology.mode}: closing the machine failed: {machine.close_failure}"
        )
    begins = [machine.booted, *(stage.finished for stage in done)]
    ends = [*(stage.finished for stage in done[:-1]), machine.closed]
    left, failures = grants_left(machine.closed), list(machine.failures.values())
    return [
        Measured(
            build_run(
                topology,
                stage.spec,
                booted=booted,
                started=stage.started,
                finished=stage.finished,
                closed=closed,
            ),
            left if stage is done[-1] else 0,
            failures if stage is done[-1] else [],
            stage.ended,
        )
        for stage, booted, closed in zip(done, begins, ends, strict=False)
    ]


def verify(topology: Topology, start: Start) -> str:
    """Judge every disk by its state file, and say what was found; what is wrong, "" if nothing."""
    if not topology.verify_state:
        raise ConfigError("verify-only: needs --verify-state, which says what disks must hold")
    if all(map(is_fresh, kept_of(topology.every_disk()))):
        raise ConfigError("verify-only: no disk here is older than its machine: none can be judged")
    for disk in kept_of(topology.every_disk()):
        path = state_path(topology.verify_state, disk)
        if not (is_fresh(disk) or os.path.exists(path)):
            raise ConfigError(f"verify-only: there is no '{path}': nothing is known of {disk}")
    with start(topology) as machine:
        verdicts = machine.judge()
    for verdict in verdicts:
        for line in verdict.lines():
            click.echo(line)
    outside = sum(verdict.outside for verdict in verdicts)
    return f"{outside} sectors are outside of their bounds" if outside else ""


def console_for(flags: dict[str, Any]) -> Console:
    """Where tables are shown: not where fio's output goes, which is all that is shown there."""
    only_fio = flags["output_format"] is not None and flags["output"] is None
    flags["quiet"] = flags["quiet"] or only_fio
    return Console(highlight=False, stderr=only_fio)


@click.pass_context
def _run(ctx: click.Context, /, **flags: Any) -> None:
    verify_only = flags.pop("verify_only")
    topologies, stages = settings(flags)
    if verify_only:
        topologies[0].check_host()
        if wrong := verify(topologies[0], ctx.obj or Topology.start):
            raise RunEnded(wrong)
        return
    check_outputs(flags)
    for topology in topologies:
        topology.check_host()
    topologies[0].check_disks()  # every mode's are the same
    start: Start = ctx.obj or Topology.start
    measured = list[list[Measured]]()
    console = console_for(flags)
    ended: RunEnded | None = None
    for topology in topologies:
        try:
            measured.append(run_mode(topology, stages, start, console, flags["quiet"]))
            ended = measured[-1][-1].ended
        except MachineError as error:
            ended = RunEnded(f"{topology.mode}: {error}")
        except RunEnded as error:
            ended = error
        if ended is not None:
            break
    found = _report(console, measured, flags) if measured else ""
    if ended is not None:
        raise ended
    if found:
        raise RunEnded(found)


def _report(console: Console, measured: list[list[Measured]], flags: dict[str, Any]) -> str:
    """Show and write to files what was measured, of each mode and stage, whatever ended it; what is
    unsound of it."""
    for stage in zip_longest(*measured):
        there = [each for each in stage if each is not None]
        print_report(console, [each.run for each in there], [each.grants_left for each in there])
    every = [each for of_mode in measured for each in of_mode]
    runs = [each.run for each in every]
    try:
        write_outputs(flags, runs)
    except ConfigError as error:  # they could be written before the run: no fault of the input
        raise RunEnded(str(error)) from None
    return faults(runs, [each.grants_left for each in every], [each.failures for each in every])


cli = Grantlab("grantlab", help=ABOUT)
"""The command line; `obj` may be another way to start a machine than Topology.start."""

cli.add_command(
    RunCommand(
        "run",
        callback=_run,
        params=FLAGS,
        help=ABOUT,
        short_help="Run a load in each mode and compare (the default).",
    )
)
