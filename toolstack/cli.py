"""The command line: flags to settings, settings to runs, runs to tables.

Owns: how flags and a file become settings, the help, the order of a run. The flags themselves are
`toolstack/flags.py`'s; how an error is put into one line is `toolstack/door.py`'s.
Rules: what the user got wrong is said before anything starts. A flag overrides the config file.
"""

import os
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final, NamedTuple

import click
from rich.console import Console

from toolstack.door import OF_RUN_SH, Command, Group, RunEnded
from toolstack.failures import GuestFailed, MachineError
from toolstack.files import check_outputs, write_outputs
from toolstack.flags import FLAGS, OUTPUT, Flag, asked_for
from toolstack.jobs import jobs_on
from toolstack.loadspec import LoadSpec
from toolstack.progress import Progress
from toolstack.report import print_report
from toolstack.results import Run, build_run, faults, grants_left
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


def settings(flags: dict[str, Any]) -> tuple[list[Topology], LoadSpec]:
    """One topology for each mode to run, and the load. Raises ConfigError."""
    machine: dict[str, Any] = {}
    load: dict[str, Any] = {}
    modes = [mode for mode in MODES if flags[asked_for(mode)]]
    if flags["config"] is not None:
        topology, spec = Topology.from_toml(flags["config"])
        machine, load = topology.given(), spec.given()
        if not modes and {"persistent", "backend_persistent", "grant_copy"} & set(machine):
            modes = [topology.mode]
    for model, given in ((Topology, machine), (LoadSpec, load)):
        named = {k: v for k, v in flags.items() if k in model.model_fields and v not in (None, ())}
        for one, other in (("disks", "disk_mib"), ("disk_mib", "disks")):
            if one in named and other not in named:
                given.pop(other, None)  # the file's
        for table in (given, *given.get("job", ())):
            table.update({k: v for k, v in named.items() if table is given or k != "vdev"})
    spec = LoadSpec(**load)
    topology = Topology(**machine).with_buffers_for(spec)
    jobs_on(spec, topology.every_disk())  # can it run there?
    return [topology.with_mode(mode) for mode in modes or DEFAULT_MODES], spec


class Measured(NamedTuple):
    """One mode's run. grants_left: still mapped at the end; failures: of guests, for people;
    ended: why it ended early, if it did."""

    run: Run
    grants_left: int
    failures: list[str]
    ended: RunEnded | None


def run_mode(
    topology: Topology, spec: LoadSpec, start: Start, console: Console, quiet: bool
) -> Measured:
    """Run the load on one machine, start to close. Ctrl-C ends the load, not the measuring."""
    ended = None
    with start(topology) as machine:
        if not quiet:
            pids = ", ".join(f"{name} {pid}" for name, pid in machine.pids.items())
            look = f"XENSTORED_PATH={machine.xenstore_path} xenstore-ls"
            click.echo(f"{topology.mode}: {pids}; {look}")
        before = finished = machine.snapshot()
        shown = Console(quiet=True) if quiet else console
        jobs = jobs_on(spec, topology.every_disk())
        progress = Progress(shown, topology.mode, jobs, before)
        try:
            # However this is left, the loads are stopped before the machine is closed.
            with closing(machine.load(spec)) as load, progress:
                for finished in load:
                    progress.update(finished)
        except GuestFailed:
            finished = machine.snapshot()  # the machine remembers who, and how
        except RunEnded as signal:
            ended, finished = signal, machine.snapshot()
    assert machine.booted is not None
    if machine.closed is None:
        raise ended or RunEnded(
            f"{topology.mode}: closing the machine failed: {machine.close_failure}"
        )
    run = build_run(
        topology,
        spec,
        booted=machine.booted,
        started=before,
        finished=finished,
        closed=machine.closed,
    )
    return Measured(run, grants_left(machine.closed), list(machine.failures.values()), ended)


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


@click.pass_context
def _run(ctx: click.Context, /, **flags: Any) -> None:
    verify_only = flags.pop("verify_only")
    topologies, spec = settings(flags)
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
    console, measured = Console(highlight=False), list[Measured]()
    ended: RunEnded | None = None
    for topology in topologies:
        try:
            measured.append(run_mode(topology, spec, start, console, flags["quiet"]))
            ended = measured[-1].ended
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


def _report(console: Console, measured: list[Measured], flags: dict[str, Any]) -> str:
    """Show, and write to files, what was measured, whatever ended it; what is unsound of it."""
    runs, left = [each.run for each in measured], [each.grants_left for each in measured]
    print_report(console, runs, left)
    try:
        write_outputs(flags, runs)
    except ConfigError as error:  # they could be written before the run: no fault of the input
        raise RunEnded(str(error)) from None
    return faults(runs, left, [each.failures for each in measured])


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
