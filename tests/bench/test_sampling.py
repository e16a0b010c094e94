"""A sample is of the version that was meant, says why if it fails, and leaves nothing."""

import os
import time
from pathlib import Path

import psutil
import pytest

from bench.figure import Figure
from bench.sampling import Cell, not_alone, sample, warm_up
from bench.versions import Version
from tests.bench.fake_version import fake_version
from toolstack import ConfigError
from toolstack.door import RunEnded

CELL = Cell("persistent", 4)

# What a fork server has loaded before it forks anything, as a machine's has.
ROOT_OF_WHAT_IS_FORKED = """\
import multiprocessing
from toolstack.preload import say_where
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["toolstack.preload"])
ours, theirs = context.Pipe()
context.Process(target=say_where, args=(theirs,)).start()
return Figure(float(len(ours.recv())))
"""

SLEEP = """\
import subprocess
from pathlib import Path
child = subprocess.Popen(["sleep", "600"])
Path("pid").write_text(str(child.pid))
child.wait()
"""


def figure_of(version: Version) -> Figure:
    return sample(version, CELL, 0.1)


def test_the_figures_are_the_versions_own(tmp_path: Path) -> None:
    version = fake_version(tmp_path / "old", "return Figure(spec.runtime_s or 0, 5.0, 6.0, 7.0)")
    assert sample(version, CELL, 0.25) == Figure(0.25, 5.0, 6.0, 7.0)


def test_a_package_that_only_we_have_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under `./run.sh bench`, which has put this checkout on the path."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    found = "import importlib.util\nreturn Figure(float(bool(importlib.util.find_spec('common'))))"
    assert figure_of(fake_version(tmp_path / "old", found)).iops == 0


def test_what_it_forks_is_that_version_too_wherever_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork server is started with `-c`, which looks in the working directory first."""
    version = fake_version(tmp_path / "a-rather-long-name", ROOT_OF_WHAT_IS_FORKED)
    monkeypatch.chdir(fake_version(tmp_path / "here").root)
    assert figure_of(version).iops == len(str(version.root))


def test_another_version_than_was_meant_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, other = fake_version(tmp_path / "old"), fake_version(tmp_path / "other")
    monkeypatch.setenv("LEADS_TO", str(other.root))
    with pytest.raises(RunEnded, match=f"^old was not what ran: {other.root} was$"):
        figure_of(version)


def test_a_sample_that_fails_says_whose_it_was_and_why(tmp_path: Path) -> None:
    version = fake_version(tmp_path / "old", "raise ValueError('guest-1 was killed')")
    with pytest.raises(RunEnded) as raised:
        figure_of(version)
    said = "old, persistent, 4 guests: failed (1): ValueError: guest-1 was killed"
    assert str(raised.value) == said


def test_a_sample_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    version = fake_version(tmp_path / "old", SLEEP)
    with pytest.raises(RunEnded, match=r"^old, persistent, 4 guests: took more than 3\.1 s$"):
        sample(version, CELL, 0.1, timeout_s=3.0)
    pid = int((version.root / "pid").read_text())
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(pid)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_nice_sample_gives_way(tmp_path: Path) -> None:
    version = fake_version(tmp_path / "old", "import os\nreturn Figure(float(os.nice(0)))")
    assert sample(version, CELL, 0.1, nice=3).iops == os.nice(0) + 3
    assert figure_of(version).iops == os.nice(0)


def test_every_mode_is_warmed_up(tmp_path: Path) -> None:
    version = fake_version(
        tmp_path / "old", "import sys\nopen('asked', 'a').write(sys.argv[1])\nreturn Figure(1.0)"
    )
    warm_up(version, ["persistent", "grant-copy"])
    asked = (version.root / "asked").read_text()
    assert '"mode": "persistent"' in asked
    assert '"mode": "grant-copy"' in asked


@pytest.mark.parametrize(
    ("cell", "seconds", "why"),
    [
        (Cell("persistent", 65), 1.0, "guests: 65 is not in 1..64"),
        (Cell("persistent", 1), float("nan"), "runtime: nan is not above 0, at most 1000000"),
        (Cell("persistent", 1, "fast"), 1.0, "spin: 'fast' is not one of adaptive, off"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_before_anything_starts(
    cell: Cell, seconds: float, why: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        cell.check(seconds)
    assert str(raised.value) == why


@pytest.mark.parametrize(("percent", "said"), [(3.0, False), (88.4, True)])
def test_busy_strangers_are_mentioned(
    monkeypatch: pytest.MonkeyPatch, percent: float, said: bool
) -> None:
    monkeypatch.setattr("psutil.cpu_percent", lambda over_s: percent)
    assert not_alone().startswith("others use 88 % of the CPUs") is said
