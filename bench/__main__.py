"""`./run.sh bench`: how fast it is; against what is a command each.

Owns: the flags. What a command does is in the file of its name. What brings Numba or matplotlib is
imported when a command runs, so that a refused flag is answered at once.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import click
from rich.console import Console

from bench.flags import GUESTS, MODE, SECONDS, Several, out_to
from toolstack.__main__ import orderly_end
from toolstack.door import Command, Group, RunEnded, output_directory

DEFAULT: Final = "contest"


class Bench(Group):
    """grantlab's door to its measurements: the contest's name may be left out."""

    program = "./run.sh bench"
    elsewhere: ClassVar[Mapping[str, str]] = {}

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What begins with a flag, or is nothing at all, is for the contest."""
        return super().parse_args(ctx, args if args and args[0][:1] != "-" else [DEFAULT, *args])


class Contest(Command):
    """The default, whose help is also that of the group."""

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show that its name may be left out."""
        formatter.write_usage("./run.sh bench", f"[{DEFAULT}] [FLAGS]")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands there are."""
        with formatter.section("Commands"):
            formatter.write_dl([(n, c.get_short_help_str(60)) for n, c in cli.commands.items()])


@contextmanager
def _said(console: Console, what: str) -> Iterator[None]:
    """`what` is being done: on a terminal as long as it is, else one line."""
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        console.print(what)
        yield


@click.command(DEFAULT, cls=Contest, short_help="Against the memory's limit and fio (the default).")
@click.option("--rounds", type=click.IntRange(1, 99), default=5, show_default=True)
@click.option("--seconds", type=click.FloatRange(0.1, 60), default=0.6, show_default=True)
@click.option("--quick", is_flag=True, help="4 KiB random 70:30 at depth 32, 1, 8 and 32 guests.")
@out_to("results/bench")
def contest(rounds: int, seconds: float, quick: bool, out: Path) -> None:
    """grantlab against the memory's own limit and against what people use instead. Measures in
    interleaved rounds; medians of ratios. Writes bench.json and bench.png to OUT."""
    from bench.contest import Sample, case_of, medians, plan, run_round  # noqa: PLC0415
    from bench.peers import missing  # noqa: PLC0415
    from bench.pictures import draw  # noqa: PLC0415
    from bench.verdict import print_verdict  # noqa: PLC0415

    everything, done = plan(quick, seconds), list[list[Sample]]()
    output_directory(out)
    console = Console(highlight=False)
    if absent := missing():
        console.print(f"not installed, so not measured: {', '.join(absent)}")
    with console.status("") as status:
        for number in range(1, rounds + 1):
            for sample in run_round(everything, done):
                status.update(f"round {number} of {rounds}: {case_of(sample)}")
            document = {"schema": 1, "rounds": done, "medians": medians(done)}
            (out / "bench.json").write_text(json.dumps(document, indent=2) + "\n")
    results = medians(done)
    print_verdict(console, results)
    draw(out / "bench.png", results)
    console.print(f"wrote {out / 'bench.json'} and {out / 'bench.png'}")


@click.command(cls=Command, short_help="This version against another, pair by pair.")
@click.option(
    "--against", required=True, metavar="REV|DIR", help="A commit, or where another version is."
)
@click.option(
    "--modes",
    type=Several(MODE),
    default="persistent,non-persistent,grant-copy",
    show_default=True,
    metavar="NAME,...",
)
@click.option("--guests", type=GUESTS, default="1,4,8", show_default=True, metavar="N,...")
@click.option(
    "--pairs", "count", type=click.IntRange(1, 99), default=7, show_default=True, metavar="N",
    help="For each cell.",
)  # fmt: skip
@SECONDS
@click.option(
    "--itself",
    type=click.Choice(["each", "once"]),
    default="each",
    show_default=True,
    help="Hold the old version against itself in each cell, or in the first.",
)
@out_to("results/pairs")
def pairs(
    against: str,
    modes: list[Any],
    guests: list[int],
    count: int,
    seconds: float,
    itself: str,
    out: Path,
) -> None:
    """Is this version slower than another? In each cell (a mode, so many guests) the other version
    is held against itself, then this one against it, in pairs one after the other. A cell is missed
    if the 90 % bootstrap interval of the ratio lies wholly below 0.97; then the exit status is 1.
    A commit is checked out aside, and removed again. Writes pairs.json to OUT."""
    from bench.pairs import measure_cells, print_pairs  # noqa: PLC0415
    from bench.sampling import Cell, not_alone, sample, warm_up  # noqa: PLC0415
    from bench.versions import this_checkout, version_of  # noqa: PLC0415

    cells = [Cell(mode, number) for mode in modes for number in guests]
    for cell in cells:
        cell.check(seconds)
    console, new = Console(highlight=False), this_checkout()
    with version_of(against) as old:
        path = output_directory(out) / "pairs.json"
        if warning := not_alone():
            console.print(warning)
        for version in (old, new):
            with _said(console, f"warming up {version.name}"):
                warm_up(version, modes)
        results = measure_cells(
            old,
            new,
            cells,
            count,
            lambda version, cell: sample(version, cell, seconds),
            itself_once=itself == "once",
            console=console,
            path=path,
        )
    print_pairs(console, results)
    console.print(f"wrote {path}")
    if missed := [str(result.cell) for result in results if result.missed]:
        raise RunEnded(f"slower than {old.name}: {'; '.join(missed)}")


@click.command(cls=Command, short_help="Beside busy loops and alone, spinning and not.")
@click.option("--mode", type=MODE, default="persistent", show_default=True, metavar="NAME")
@click.option("--guests", type=GUESTS, default="1,4,8", show_default=True, metavar="N,...")
@click.option("--loops", type=click.IntRange(1, 64), default=2, show_default=True, metavar="K")
@click.option("--rounds", type=click.IntRange(1, 99), default=5, show_default=True, metavar="N")
@SECONDS
@click.option(
    "--cpus", type=Several(click.IntRange(0)), metavar="N,...",
    help="Only on these CPUs, machine and loops (default: all there are).",
)  # fmt: skip
@click.option(
    "--nice", type=click.IntRange(0, 19), default=0, show_default=True, metavar="N",
    help="The machine's processes give way; the loops do not.",
)  # fmt: skip
@out_to("results/company")
def company(
    mode: Any,
    guests: list[int],
    loops: int,
    rounds: int,
    seconds: float,
    cpus: list[int] | None,
    nice: int,
    out: Path,
) -> None:
    """What is left of the speed beside K processes that only burn CPU: with the default spin and
    with `--spin off`, as medians of interleaved rounds. Writes company.json to OUT."""
    from bench.company import Rounds, as_json, conditions, only_on, print_company  # noqa: PLC0415
    from bench.company import run_round as one_round  # noqa: PLC0415
    from bench.sampling import not_alone, sample, warm_up  # noqa: PLC0415
    from bench.versions import this_checkout  # noqa: PLC0415

    plan = conditions(mode, guests, loops)
    for condition in plan:
        condition.cell.check(seconds)
    console, version, done = Console(highlight=False), this_checkout(), Rounds()
    with only_on(cpus):
        path = output_directory(out) / "company.json"
        if warning := not_alone():
            console.print(warning)
        with _said(console, f"warming up {version.name}"):
            warm_up(version, [mode])
        for number in range(rounds):
            with _said(console, f"round {number + 1} of {rounds}"):
                done.append(
                    one_round(plan, number, lambda cell: sample(version, cell, seconds, nice))
                )
            path.write_text(json.dumps(as_json(done), indent=2) + "\n")
    print_company(console, done)
    console.print(f"wrote {path}")


@click.command(
    cls=Command, short_help="Hostile guests: what is left to the others, and of the machine."
)
@click.option(
    "--attack", "attacks", multiple=True, metavar="NAME",
    help="Only this one, and others that are named so.",
)  # fmt: skip
@click.option("--mode", type=MODE, default="persistent", show_default=True, metavar="NAME")
@click.option("--rounds", type=click.IntRange(1, 99), default=3, show_default=True, metavar="N")
@SECONDS
@out_to("results/hostile")
def hostile(attacks: tuple[str, ...], mode: Any, rounds: int, seconds: float, out: Path) -> None:
    """Let one guest attack a machine of two honest ones, each way there is (hostile/attacks.py),
    with `--events pipe`. Held to bars: what the honest ones keep, what hypervisor, xenstored and
    dom0 grow by, how long another guest's handshake takes, what is left when it has gone. The exit
    status is 1 if one is missed. Writes hostile.json to OUT."""
    from bench.hostile import machine_of, print_rows, row_of, run_round, write_json  # noqa: PLC0415
    from bench.sampling import not_alone  # noqa: PLC0415
    from hostile.attacks import ATTACKS, REFERENCE  # noqa: PLC0415
    from toolstack import ConfigError, LoadSpec  # noqa: PLC0415
    from toolstack.failures import MachineError  # noqa: PLC0415

    known = [name for name in ATTACKS if name != REFERENCE]
    if unknown := [name for name in attacks if name not in known]:
        raise ConfigError(f"attack: '{unknown[0]}' is not one of {', '.join(known)}")
    LoadSpec.from_table({"runtime": seconds})  # refuses what is no time
    console, done = Console(highlight=False), dict[str, list[Any]]()
    path = output_directory(out) / "hostile.json"
    if warning := not_alone():
        console.print(warning)
    under_way = "the machine starts"
    try:
        with machine_of(mode) as machine:
            for number in range(rounds):
                for name, pair in run_round(machine, attacks or known, number, seconds):
                    under_way = f"round {number + 1} of {rounds}: after {name}"
                    if console.is_terminal:
                        console.print(under_way)
                    done.setdefault(name, []).append(pair)
                    write_json(path, mode, done)
    except MachineError as error:
        raise RunEnded(f"{under_way}: {error}") from None
    rows = [row_of(name, pairs) for name, pairs in done.items()]
    print_rows(console, rows)
    console.print(f"wrote {path}")
    if missed := [row.attack for row in rows if row.missed]:
        raise RunEnded(f"bars missed by {', '.join(missed)}")


@click.command(cls=Command, short_help="Files and NBD servers, against fio on the same ones.")
@click.option("--pairs", "count", type=click.IntRange(1, 99), default=5, show_default=True)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default="/var/tmp",
    show_default=True,
    help="Of a real file system, for one of the files.",
)
@SECONDS
def disks(count: int, directory: Path, seconds: float) -> None:
    """One guest, 4-KiB random reads at depth 32, in turn with fio's io_uring engine on the same
    file (iodepth_batch=1, the same O_DIRECT setting) and its nbd engine on the same nbdkit."""
    from bench.disks import cases, pairs  # noqa: PLC0415
    from bench.peers import missing  # noqa: PLC0415

    if lacking := missing():
        raise click.ClickException(f"{', '.join(lacking)}: not installed, and compared with")
    console = Console(highlight=False)
    with cases(directory) as found:
        for case in found:
            with _said(console, f"{case.name}: {count} pairs"):
                done = list(pairs(case, count, seconds))
            ratios = " ".join(f"{pair.ratio:.3f}" for pair in done)
            iops = " ".join(f"{pair.ours.iops:,.0f}/{pair.fio_iops:,.0f}" for pair in done)
            cpu = " ".join(f"{pair.ours.cpu_s_per_million:.2f}" for pair in done)
            console.print(f"{case.name}: ours/fio {ratios}; IOPS {iops}; CPU s/million {cpu}")


cli = Bench("bench")
for command in (contest, pairs, company, hostile, disks):
    cli.add_command(command)


if __name__ == "__main__":
    with orderly_end():
        cli.main()
