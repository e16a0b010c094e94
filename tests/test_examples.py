"""Every example of README.md, docs/ and `--help` is run, as a reader would run it.

A fenced block of a kind that no rule here knows fails, so that a new example comes with a rule.
What would take long is run with the command's own flags for less (`SHORTER`).
"""

import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.system.conftest import nothing_left_behind, run_base  # noqa: F401
from toolstack.cli import EXAMPLES

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TIMEOUT_S = 240
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:\w+=\S+ )?\./run\.sh[^`]*)`")

# What is added to a command, by how it begins: the first that fits.
SHORTER = {
    "./run.sh test": "tests/test_tidy.py",  # lint, types and tests, but not this test again
    "./run.sh figure": "--runtime 0.0005 --guests 1,5,10",
    "./run.sh whatif": "--quick",
    "./run.sh bench company": "--guests 1 --rounds 1 --seconds 0.1",
    "./run.sh bench disks": "--pairs 1 --seconds 0.1",
    "./run.sh bench": "--quick --rounds 1 --seconds 0.1",
    "./run.sh python -m bench.lookups": "--rounds 5 --lookups 1000",
    "./run.sh python -m simulator.fit": "0.001",
    "nbdkit": "",  # what it runs says its end itself
}
MACHINE_SECONDS = "--runtime 1"  # instead of 5, where a command runs a machine and names no end


class Block(NamedTuple):
    """A fenced block: where it is, of which kind, and what is in it."""

    place: str
    kind: str
    text: str


def blocks() -> list[Block]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text()
        for match in FENCE.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(f"{path.name}:{line}", *match.groups()))
    return found


def of_kind(kind: str) -> list[Block]:
    return [block for block in blocks() if block.kind == kind]


def typed(block: Block) -> list[str]:
    """The commands of a console block."""
    lines = [line for line in block.text.splitlines() if line.startswith("$ ")]
    return [line.removeprefix("$ ").split("  #")[0].strip() for line in lines]


def sessions() -> list[Block]:
    """Console blocks that bring a machine up: their commands are typed one after the other."""
    return [block for block in of_kind("console") if "./run.sh up" in block.text]


def commands() -> list[str]:
    """Every other command of a console block, of the running text, and of `--help`; each once."""
    alone = [block for block in of_kind("console") if block not in sessions()]
    found = [command for block in alone for command in typed(block)]
    for path in DOCUMENTS:
        found += INLINE.findall(FENCE.sub("", path.read_text()))
    found += [command for command, _ in EXAMPLES]
    return list(dict.fromkeys(found))


def shortened(command: str) -> str:
    for start, added in SHORTER.items():
        if command.startswith(start):
            return f"{command} {added}" if added not in command else command
    words = shlex.split(command)
    of_a_machine = len(words) == 1 or words[1].startswith("-") or words[1] == "run"
    ends = {"--ios", "--runtime", "--help", "--config"}
    return f"{command} {MACHINE_SECONDS}" if of_a_machine and not ends & set(words) else command


# A file, a machine, another Python: see below; another version: tests/system/test_bench.py.
NEEDS_MORE = ("yourscript.py", "...", "PYTHON=", "REV_OR_DIR")
COMMANDS = {
    shortened(command): command
    for command in reversed(commands())
    if not any(word in command for word in NEEDS_MORE)
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a reader stands, with run.sh; what a command writes there is not in the checkout."""
    door = tmp_path / "run.sh"
    door.write_text(f'#!/bin/sh\nexec {shlex.quote(str(ROOT / "run.sh"))} "$@"\n')
    door.chmod(0o755)
    return tmp_path


def run(command: str, directory: Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env={**os.environ, "PYTEST_DEBUG_TEMPROOT": str(directory)},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_every_block_is_of_a_kind_that_is_run_or_a_drawing() -> None:
    drawings = {"text", "mermaid"}
    for block in blocks():
        assert block.kind in {"console", "python", "toml", "ini"} | drawings, (
            f"{block.place}: no rule here runs a block of kind '{block.kind}'"
        )
        if block.kind == "console":
            assert all(line.startswith("$ ") for line in block.text.splitlines()), block.place
        if block.kind in drawings:
            assert not re.search(r"^\s*(\$ |\./run\.sh|import |from \w+ import)", block.text, re.M)


def test_no_block_goes_unseen() -> None:
    for path in DOCUMENTS:
        text = path.read_text()
        assert text.count("```") == 2 * len(FENCE.findall(text)), path.name
    assert {"console", "python", "toml"} <= {block.kind for block in blocks()}
    assert {"./run.sh", "./run.sh test", "./run.sh bench"} <= set(COMMANDS.values())


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_does_what_it_should(command: str, directory: Path) -> None:
    done = run(command, directory)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert done.stdout.strip()
    for file in re.findall(r"--json (\S+)", command):
        assert (directory / file).stat().st_size > 0


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("block", sessions(), ids=lambda block: block.place)
def test_a_session_goes_from_up_to_down(block: Block, directory: Path) -> None:
    base = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    typed_in = ["set -e", f"export XDG_RUNTIME_DIR={base}", *typed(block)]
    done = run("\n".join(typed_in), directory)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert complaints(done.stderr) == []
    os.rmdir(base)  # in which nothing is left


def test_another_python_has_an_environment_of_its_own(directory: Path) -> None:
    (command,) = (c for c in commands() if "PYTHON=" in c)
    named = re.sub(r"PYTHON=\S+", "PYTHON=nowhere/python3.13", command)
    done = run(named, directory)
    assert done.returncode == 1 and "looked for nowhere/python3.13" in done.stderr
    if (ROOT / ".venv-3.13/.grantlab-stamp").exists():
        assert run(f"{command} --version", directory).returncode == 0


@pytest.mark.parametrize("block", of_kind("toml"), ids=lambda block: block.place)
def test_a_config_file_is_taken(block: Block, directory: Path) -> None:
    (directory / "lab.toml").write_text(block.text)
    done = run(f"./run.sh --config lab.toml {MACHINE_SECONDS}", directory)
    assert done.returncode == 0, done.stderr
    guests = tomllib.loads(block.text)["topology"]["guests"]
    assert f"guest-{guests} " in done.stdout and f"{guests} guests," in done.stdout


@pytest.mark.parametrize("block", of_kind("ini"), ids=lambda block: block.place)
def test_a_job_file_is_run(block: Block, directory: Path) -> None:
    (directory / "jobs.fio").write_text(block.text)
    done = run("./run.sh --job jobs.fio --guests 1 --persistent", directory)
    assert done.returncode == 0, done.stderr
    for name in re.findall(r"^\[(\w+)\]$", block.text, re.M):
        assert name == "global" or re.search(rf"\b{name}: ", done.stdout)


def test_the_store_of_a_running_machine_can_be_listed(directory: Path) -> None:
    (command,) = (c for c in commands() if "xenstore-ls" in c)
    where = re.search(r"XENSTORED_PATH=(\S+)", command)
    assert where is not None
    machine = subprocess.Popen(
        ["./run.sh", "--guests", "1", "--persistent", "--runtime", "60"],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert machine.stdout is not None
        said = re.search(r"XENSTORED_PATH=(\S+)", machine.stdout.readline())
        assert said is not None
        pattern = re.escape(where[1]).replace("/tmp/", "/tmp/(.+/)?").replace(r"\.\.\.", ".+")
        assert re.fullmatch(pattern, said[1])
        if subprocess.run(["which", "xenstore-ls"], capture_output=True, check=False).returncode:
            pytest.skip("needs Debian's xenstore-utils")
        done = run(command.replace(where[1], said[1]), directory)
        assert done.returncode == 0, done.stderr
        assert re.search(r'^/local/domain/0/backend/vbd/1/\d+/state = "4"', done.stdout, re.M)
    finally:
        machine.terminate()
        machine.communicate(timeout=60)


PYTHON_BLOCKS = pytest.mark.parametrize("block", of_kind("python"), ids=lambda block: block.place)


def has_run(block: Block, output: str) -> None:
    """It has printed what was written, then all counters; or a ring's page."""
    if "machine.look" in block.text:
        assert "req_prod 1  req_event" in output
    else:
        assert "b'persistent'" in output
        assert "'grants_issued'" in output and "'ipis_by_cpu'" in output
    assert "Traceback" not in output


def complaints(stderr: str) -> list[str]:
    """All it says but that it compiles, which the first to run does."""
    return [line for line in stderr.splitlines() if ": compiling, once" not in line]


@PYTHON_BLOCKS
def test_an_example_runs_from_a_file(block: Block, directory: Path) -> None:
    (directory / "yourscript.py").write_text(block.text)
    (command,) = (c for c in commands() if "yourscript.py" in c)
    done = run(command, directory)
    assert done.returncode == 0, done.stderr[-2000:]
    has_run(block, done.stdout)
    assert complaints(done.stderr) == []


@PYTHON_BLOCKS
@pytest.mark.parametrize("arguments", ["", "-"])
def test_an_example_runs_from_standard_input(block: Block, arguments: str, directory: Path) -> None:
    done = run(f"./run.sh python {arguments}", directory, stdin=block.text)
    assert done.returncode == 0, done.stderr[-2000:]
    has_run(block, done.stdout)
    assert complaints(done.stderr) == []


@PYTHON_BLOCKS
def test_an_example_runs_from_the_command_line(block: Block, directory: Path) -> None:
    done = run(f"./run.sh python -c {shlex.quote(block.text)}", directory)
    assert done.returncode == 0, done.stderr[-2000:]
    has_run(block, done.stdout)


@PYTHON_BLOCKS
def test_an_example_runs_in_an_interpreter_that_reads_a_pipe(block: Block, directory: Path) -> None:
    done = run("./run.sh python -i", directory, stdin=f"{block.text}\n")
    assert done.returncode == 0
    has_run(block, done.stdout)
    assert "Traceback" not in done.stderr


@PYTHON_BLOCKS
def test_an_example_runs_in_an_interpreter_at_a_terminal(block: Block, directory: Path) -> None:
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        ["./run.sh", "python"],
        cwd=directory,
        # Without the editor of 3.13 and later, which indents by itself what is typed.
        env={**os.environ, "PYTHON_BASIC_REPL": "1", "TERM": "dumb"},
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
    )
    os.close(its_end)
    os.write(terminal, f"{block.text}\nexit()\n".encode())
    shown = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    except OSError:  # EIO: the last who had the other end has gone
        pass
    os.close(terminal)
    assert process.wait(timeout=TIMEOUT_S) == 0
    has_run(block, shown.decode())


@PYTHON_BLOCKS
def test_an_example_runs_inside_a_test(block: Block, directory: Path) -> None:
    body = textwrap.indent(block.text, "    ")
    (directory / "test_mine.py").write_text(f"def test_mine() -> None:\n{body}")
    done = run("./run.sh python -m pytest -s -p no:cacheprovider test_mine.py", directory)
    assert done.returncode == 0, done.stdout[-2000:]
    has_run(block, done.stdout)


def test_this_python_is_one_that_the_readme_names() -> None:
    named = set(re.findall(r"\b3\.1\d\b", (ROOT / "README.md").read_text()))
    assert "{}.{}".format(*sys.version_info[:2]) in named
