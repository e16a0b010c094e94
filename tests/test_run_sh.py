"""`run.sh`, in checkouts of its own: set-up that recovers, the Python it picks, old caches."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "hypervisor", "xenstored", "frontend", "backend", "machine", "simulator")
VERSION = "{}.{}".format(*sys.version_info[:2])
REAL_PYTHON = os.path.realpath(sys.executable)
HOUR_S = 3600
SET_UP_S = 120


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """run.sh, sources to hash, and a lock that asks for nothing."""
    root = tmp_path / "checkout"
    for package in PACKAGES:
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    shutil.copy(ROOT / "run.sh", root)
    (root / "requirements.lock").touch()
    return root


def set_up_by_hand(root: Path, name: str = ".venv") -> Path:
    """An environment as a set-up leaves it, with nothing installed."""
    env = root / name
    (env / "bin").mkdir(parents=True)
    (env / "bin/python").symlink_to(REAL_PYTHON)
    (env / ".grantlab-stamp").write_text(
        f"{REAL_PYTHON}\n{(root / 'requirements.lock').read_text()}"
    )
    return env


def environment(**changes: str) -> dict[str, str]:
    """This process's, without what would choose another Python or another package index."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHON" and not k.startswith("PIP_")}
    return {**kept, **changes}


def start(root: Path, *args: str, **changes: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        # As in a terminal: a shell's background job ignores it, and so would all that it starts.
        ["env", "--default-signal=INT", str(root / "run.sh"), *args],
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(root: Path, *args: str, **changes: str) -> tuple[int, str, list[str]]:
    """Exit status, standard output, and the lines of standard error."""
    process = start(root, *args, **changes)
    out, err = process.communicate(timeout=SET_UP_S)
    return process.returncode, out, err.splitlines()


HELLO = ("python", "-c", "print('hello')")
SETTING_UP = "grantlab: setting up its environment in .venv (once, about a minute)"


def test_the_first_run_sets_up_the_second_just_runs(checkout: Path) -> None:
    assert run(checkout, *HELLO) == (0, "hello\n", [SETTING_UP])
    assert run(checkout, *HELLO) == (0, "hello\n", [])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_set_up_that_was_cut_short_is_started_over(checkout: Path, how: signal.Signals) -> None:
    process = start(checkout, *HELLO)
    deadline = time.monotonic() + SET_UP_S
    while not (checkout / ".venv/bin/python").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, how)  # as Ctrl-C reaches everything in the foreground
    out, err = process.communicate(timeout=SET_UP_S)
    assert out == ""
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert err.splitlines()[1:] == ["grantlab: interrupted; the next run sets up anew"]
    assert run(checkout, *HELLO) == (0, "hello\n", [SETTING_UP])


def test_two_first_runs_at_once_build_one_environment(checkout: Path) -> None:
    both = [start(checkout, *HELLO) for _ in range(2)]
    ends = [process.communicate(timeout=SET_UP_S) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [out for out, _ in ends] == ["hello\n", "hello\n"]
    assert sum(SETTING_UP in err for _, err in ends) == 1


def test_without_a_network_one_line_says_so_and_the_next_run_tries_again(checkout: Path) -> None:
    lock = checkout / "requirements.lock"
    lock.write_text(f"annotated-types==0.8.0 --hash=sha256:{'0' * 64}\n")
    nowhere = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
    }
    unreachable = (
        "grantlab: error: installing requirements.lock failed:"
        " the package index cannot be reached (the first run needs a network)"
    )
    assert run(checkout, *HELLO, **nowhere) == (1, "", [SETTING_UP, unreachable])
    lock.write_text("")
    assert run(checkout, *HELLO, **nowhere) == (0, "hello\n", [SETTING_UP])


def test_what_pip_refuses_is_said_in_its_words(checkout: Path) -> None:
    (checkout / "requirements.lock").write_text("what?\n")
    status, out, lines = run(checkout, *HELLO)
    assert (status, out, lines[0]) == (1, "", SETTING_UP)
    said = "grantlab: error: installing requirements.lock failed: Invalid requirement: 'what?'"
    assert lines[1].startswith(said)


def pretend(path: Path, pretence: str, venv: str = "") -> str:
    """A Python that says of itself what `pretence` (statements) makes it say."""
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then echo "{venv}"; exit 1; fi\n'
        f'exec {REAL_PYTHON} -I -c "import sys, sysconfig, importlib.util; {pretence};'
        ' exec(sys.argv[1])" "$3"\n'
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("pretence", "said"),
    [
        ("sys.version_info = (3, 10, 9)", "Python 3.10: 3.11 to 3.14 are supported"),
        ("sys.version_info = (3, 15, 0)", "Python 3.15: 3.11 to 3.14 are supported"),
        ("sysconfig.get_config_var = lambda _: 1", "Numba needs the usual build of CPython"),
        ("sys.implementation.name = 'pypy'", "Numba needs the usual build of CPython"),
        ("importlib.util.find_spec = lambda name: None", "its venv is missing (on Debian: python3"),
    ],
)
def test_a_python_that_cannot_do_is_named_with_what_it_lacks(
    checkout: Path, tmp_path: Path, pretence: str, said: str
) -> None:
    status, out, lines = run(checkout, *HELLO, PYTHON=pretend(tmp_path / "python", pretence))
    assert (status, out) == (1, "")
    (line,) = lines
    assert line.startswith("grantlab: error: no Python 3.11 to 3.14 found") and said in line
    assert not list(checkout.glob(".venv*"))


def test_a_python_that_is_not_there_is_named(checkout: Path) -> None:
    status, _, lines = run(checkout, *HELLO, PYTHON="python9.9")
    assert (status, len(lines)) == (1, 1)
    assert "looked for python9.9" in lines[0]


def test_a_newer_default_python_is_passed_over_for_one_that_is_supported(
    checkout: Path, tmp_path: Path
) -> None:
    pretend(tmp_path / "python3", "sys.version_info = (3, 15, 0)")
    pretend(tmp_path / "python3.13", "sys.version_info = (3, 13, 1)", venv="3.13 was chosen")
    _, _, lines = run(checkout, *HELLO, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert lines[1].endswith("failed: 3.13 was chosen")


@pytest.mark.parametrize("what", ["lock", "python", "gone"])
def test_another_lock_or_another_python_behind_the_same_name_sets_up_anew(
    checkout: Path, tmp_path: Path, what: str
) -> None:
    env = set_up_by_hand(checkout)
    pretend(tmp_path / "python3", "pass", venv="as it should")
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert run(checkout, *HELLO, PATH=path) == (0, "hello\n", [])
    if what == "lock":
        (checkout / "requirements.lock").write_text("# something else\n")
    else:  # as after an upgrade of the whole system
        (env / "bin/python").unlink()
        (env / "bin/python").symlink_to("/bin/true" if what == "python" else "/nowhere/python3")
    status, out, lines = run(checkout, *HELLO, PATH=path)
    assert (status, out, lines[0]) == (1, "", SETTING_UP)
    assert lines[1].endswith("failed: as it should")


CACHE = ("python", "-c", "import os; print(os.environ['NUMBA_CACHE_DIR'])")


def test_python_names_another_with_an_environment_of_its_own(checkout: Path) -> None:
    usual = set_up_by_hand(checkout)
    other = set_up_by_hand(checkout, f".venv-{VERSION}")
    for named, env in (({}, usual), ({"PYTHON": REAL_PYTHON}, other), ({}, usual)):
        status, out, lines = run(checkout, *CACHE, **named)
        assert (status, lines) == (0, [])
        assert Path(out.strip()).parent == env / "numba"


def make_cache(env: Path, name: str, age_s: float) -> Path:
    cache = env / "numba" / name
    cache.mkdir(parents=True)
    (cache / "kernel.nbc").touch()
    os.utime(cache, (time.time() - age_s,) * 2)
    return cache


@pytest.fixture
def user_of() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes to end after the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_old_caches_go_but_two_and_none_that_may_be_in_use(
    checkout: Path, user_of: "list[subprocess.Popen[bytes]]"
) -> None:
    env = set_up_by_hand(checkout)
    current = Path(run(checkout, *CACHE)[1].strip())
    os.utime(current, (0, 0))  # not used for long, until now
    ages = {"minutes": 600, "day": 24, "two": 48, "three": 72, "used": 96, "ancient": 9000}
    made = {n: make_cache(env, n, HOUR_S * (0.2 if n == "minutes" else h)) for n, h in ages.items()}
    make_cache(env, "gone.killed-while-it-went", 0)
    user = {**os.environ, "NUMBA_CACHE_DIR": str(made["used"])}
    user_of.append(subprocess.Popen(["sleep", "300"], env=user))
    assert run(checkout, *HELLO) == (0, "hello\n", [])
    left = {path.name for path in (env / "numba").iterdir()}
    assert left == {current.name, "minutes", "day", "used"}
    assert time.time() - current.stat().st_mtime < HOUR_S


def test_caches_of_the_last_hour_all_stay(checkout: Path) -> None:
    env = set_up_by_hand(checkout)
    for number in range(5):
        make_cache(env, f"recent-{number}", 60 * number)
    assert run(checkout, *HELLO) == (0, "hello\n", [])
    assert len(list((env / "numba").iterdir())) == 6


def test_many_runs_at_once_prune_in_peace(checkout: Path) -> None:
    env = set_up_by_hand(checkout)
    for number in range(30):
        make_cache(env, f"old-{number}", HOUR_S * (2 + number))
    runs = [start(checkout, *HELLO) for _ in range(6)]
    assert [process.communicate(timeout=60) for process in runs] == [("hello\n", "")] * 6
    left = {path.name for path in (env / "numba").iterdir()}
    assert {"old-0", "old-1"} < left and len(left) == 3


def test_where_no_cache_can_be_made_it_still_runs(checkout: Path) -> None:
    env = set_up_by_hand(checkout)
    (env / "numba").write_text("no directory")
    assert run(checkout, *HELLO) == (0, "hello\n", [])
