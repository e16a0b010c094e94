"""`./run.sh bench` from the outside: its default command, and one clear line for bad input."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.__main__ import cli
from tests.bench.fake_version import fake_version


def bench(*args: str) -> Result:
    return CliRunner().invoke(cli, args, env={"COLUMNS": "80"})


def test_without_a_command_it_is_the_contest() -> None:
    text = bench("--help").stdout
    assert text.startswith("Usage: ./run.sh bench [contest] [FLAGS]")
    assert "--quick" in text
    assert [line.split()[0] for line in text.split("Commands:\n")[1].splitlines()] == [
        "contest",
        "pairs",
        "company",
        "hostile",
        "disks",
    ]


@pytest.mark.parametrize("command", ["pairs", "company", "hostile", "disks"])
def test_a_command_says_how_it_is_called(command: str) -> None:
    assert bench(command, "--help").stdout.startswith(f"Usage: ./run.sh bench {command} ")


@pytest.mark.parametrize(
    ("args", "why"),
    [
        ("pairs", "bench pairs: --against is needed"),
        ("pairs --against nonsense", "against: 'nonsense' is neither a directory nor a commit"),
        ("pairs --against {tmp}", "against: '{tmp}' cannot be measured: it has no run.sh"),
        (
            "pairs --against HEAD --modes persistent,fast",
            "bench pairs: modes: 'fast' is not one of 'non-persistent', 'grant-copy',"
            " 'backend-without-persistent', 'persistent'",
        ),
        (
            "pairs --against HEAD --guests 1,65",
            "bench pairs: guests: 65 is not in the range 1<=x<=64",
        ),
        (
            "pairs --against HEAD --guests 1,",
            "bench pairs: guests: '' is not a valid integer range",
        ),
        (
            "pairs --against HEAD --pairs 0",
            "bench pairs: pairs: 0 is not in the range 1<=x<=99",
        ),
        ("pairs --against HEAD --seconds nan", "runtime: nan is not above 0, at most 1000000"),
        ("company --seconds nan", "runtime: nan is not above 0, at most 1000000"),
        ("--seconds nan", "runtime: nan is not above 0, at most 1000000"),
        ("company --cpus 4095", "cpus: 4095 is not one of {cpus}"),
        ("company --nice 20", "bench company: nice: 20 is not in the range 0<=x<=19"),
        ("company --loop 3", "bench company: no such flag --loop; did you mean --loops?"),
        ("company --out /proc/x", "out: '/proc/x' cannot be written: No such file or directory"),
        ("--out /proc/x", "out: '/proc/x' cannot be written: No such file or directory"),
        (
            "race",
            "no such command 'race'; the commands are contest, pairs, company, hostile, disks",
        ),
    ],
)
def test_bad_input_is_one_line(args: str, why: str, tmp_path: Path) -> None:
    import os

    cpus = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
    result = bench(*args.format(tmp=tmp_path).split())
    assert result.exit_code == 2
    assert result.stdout == ""
    expected = why.replace("{tmp}", str(tmp_path)).replace("{cpus}", cpus)
    assert result.stderr == f"grantlab: error: {expected}\n"


@pytest.mark.parametrize(("iops", "status"), [(99.0, 0), (90.0, 1)])
def test_a_version_that_is_slower_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iops: float, status: int
) -> None:
    old = fake_version(tmp_path / "old")
    new = fake_version(tmp_path / "new", f"return Figure({iops})")
    monkeypatch.setattr("bench.versions.this_checkout", lambda: new)
    flags = ["--modes", "grant-copy", "--guests", "1,4", "--pairs", "1", "--itself", "once"]
    result = bench("pairs", "--against", str(old.root), *flags, "--out", str(tmp_path / "out"))
    assert result.exit_code == status
    slower = "grantlab: error: slower than old: grant-copy, 1 guest; grant-copy, 4 guests\n"
    assert result.stderr == (slower if status else "")
    cells = json.loads((tmp_path / "out/pairs.json").read_text())["cells"]
    assert [cell["pairs_ratio"] for cell in cells] == [iops / 100] * 2
    assert "warming up old" in result.stdout


def test_company_is_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.versions.this_checkout", lambda: fake_version(tmp_path / "new"))
    result = bench(*["company", "--guests", "4", "--rounds", "2", "--out"], str(tmp_path / "out"))
    assert result.exit_code == 0
    assert "4 guests: the default does 1.00 (aimed at 0.9) of the better" in result.stdout
    document = json.loads((tmp_path / "out/company.json").read_text())
    assert [len(samples) for samples in document["rounds"]] == [4, 4]
