"""What a wrong command line is answered with: one line, status 2, what was wrong, what would do."""

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench.__main__ import cli as bench
from toolstack.commands import cli
from toolstack.door import OF_RUN_SH, Command, Numbers
from toolstack.failures import MachineError

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "run, up, ls, load, logs, down, attach, detach, export, pause, unpause, suspend, resume,"
    " resize, metrics, top, trace, report, simulate, look, figure, compare, whatif, bench, test,"
    " python"
)
FLAGS_OF_FIGURE = "--out, --scheduler, --workers, --runtime, --guests, --help"
FLAGS_OF_BENCH = "--rounds, --seconds, --quick, --out, --help"


def refused(program: click.Command, *args: str) -> str:
    """The one line that `args` are answered with."""
    result = CliRunner().invoke(program, args)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("grantlab: error: ")
    return line.removeprefix("grantlab: error: ")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        # A flag of another command is not "nearly" one of this.
        ("figure --bs 4k", f"figure: no such flag --bs; its flags are {FLAGS_OF_FIGURE}"),
        ("figure --bs=4k", f"figure: no such flag --bs; its flags are {FLAGS_OF_FIGURE}"),
        ("figure --guests 9-5", "figure: guests: '9-5' is not numbers in 1..64, as 5,10 or 1-15"),
        ("figure --guests 0", "figure: guests: '0' is not numbers in 1..64, as 5,10 or 1-15"),
        ("figure --guests 1-65", "figure: guests: '1-65' is not numbers in 1..64, as 5,10 or 1-15"),
        ("figure --guests 1,", "figure: guests: '1,' is not numbers in 1..64, as 5,10 or 1-15"),
        ("figure -g", f"figure: no such flag -g; its flags are {FLAGS_OF_FIGURE}"),
        ("figure --worker 2", "figure: no such flag --worker; did you mean --workers?"),
        ("figure --Out x", "figure: no such flag --Out; did you mean --out?"),
        ("run --vcpus 2", "run: no such flag --vcpus; did you mean --dom0-vcpus?"),
        ("simulate --gests 2", "simulate: no such flag --gests; did you mean --guests?"),
        ("figure 20", f"figure: unexpected argument '20'; it takes only flags: {FLAGS_OF_FIGURE}"),
        (
            "figure -- --out",
            f"figure: unexpected argument '--out'; it takes only flags: {FLAGS_OF_FIGURE}",
        ),
        ("compare --guests", "compare: --guests needs a value, N: Guests: 1..64 (default: 3)"),
        ("compare --guests x", "guests: 'x' is not in 1..64"),
        ("compare --ios 0", "ios: 0 is not in 1..1000000000000"),
        ("figure --workers x", "figure: workers: 'x' is not in 1..256"),
        ("figure --workers 0", "figure: workers: '0' is not in 1..256"),
        ("figure --workers 1.5", "figure: workers: '1.5' is not in 1..256"),
        ("figure --runtime 0", "figure: runtime: '0' is not above 0, at most 10"),
        ("figure --runtime nan", "figure: runtime: 'nan' is not above 0, at most 10"),
        ("whatif --out /proc/x", "out: '/proc/x' cannot be written: No such file or directory"),
        ("simulate --physical-cpus x", "simulate: physical-cpus: 'x' is not in 0..1024"),
        ("fgure", "no such command 'fgure'; did you mean figure?"),
        ("RUN", "no such command 'RUN'; did you mean run?"),
        ("benhc", "no such command 'benhc'; did you mean bench?"),
        ("frobnicate --guests 2", f"no such command 'frobnicate'; the commands are {COMMANDS}"),
    ],
)
def test_one_line_names_what_was_wrong_and_what_would_do(args: str, line: str) -> None:
    assert refused(cli, *args.split()) == line


def test_numbers_are_each_once_and_in_order() -> None:
    assert Numbers(1, 64).convert("8,1-3, 2", None, None) == [1, 2, 3, 8]


def test_an_empty_word_is_no_command_either() -> None:
    assert refused(cli, "") == f"no such command ''; the commands are {COMMANDS}"


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("--gests 3", f"bench contest: no such flag --gests; its flags are {FLAGS_OF_BENCH}"),
        ("--round 3", "bench contest: no such flag --round; did you mean --rounds?"),
        ("--rounds 0", "bench contest: rounds: 0 is not in the range 1<=x<=99"),
        ("--seconds 1h", "bench contest: seconds: '1h' is not a valid float range"),
        ("--quick=1", "bench contest: --quick takes no value"),
        (
            "quick",
            "no such command 'quick'; the commands are contest, pairs, company, hostile, disks",
        ),
        ("--out /proc/x", "out: '/proc/x' cannot be written: No such file or directory"),
    ],
)
def test_bench_speaks_likewise(args: str, line: str) -> None:
    assert refused(bench, *args.split()) == line


def test_the_commands_named_as_run_sh_s_are_those_it_has() -> None:
    script = (ROOT / "run.sh").read_text()
    in_case = re.findall(r"^(\w+)\)$", script, re.MULTILINE)
    assert sorted(in_case) == sorted(OF_RUN_SH)


def test_a_machine_s_failure_is_one_line_too() -> None:
    @click.command(cls=Command)
    def fails() -> None:
        raise MachineError("machine 'm': its keeper does not answer")

    result = CliRunner().invoke(fails)
    assert result.exit_code == 1
    assert result.stderr == "grantlab: error: machine 'm': its keeper does not answer\n"
