"""Which fork server a machine is forked from: a warm one, while a new one would be no other."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.control import ControlLost
from toolstack import server_process
from toolstack.failures import MachineError
from toolstack.server_process import fork_server

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _the_one_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Servers of these tests' own; none of them is waited for until it is ready."""
    monkeypatch.setattr(server_process, "_servers", {})
    yield
    for server in server_process._servers.values():
        server.end()


def test_machines_are_forked_from_one_server() -> None:
    first = fork_server()
    first.join().close()
    first.leave()
    assert fork_server() is first
    assert first.lives()


def other_directory(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.chdir(directory)


def other_variable(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(directory))


def other_limit(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0 if soft else min(4096, hard), hard))


def other_errors(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    with (directory / "errors").open("w") as file:
        os.dup2(file.fileno(), 2)


@pytest.mark.parametrize("change", [other_directory, other_variable, other_limit, other_errors])
def test_another_is_started_where_it_would_inherit_something_else(
    change: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    errors, core = os.dup(2), resource.getrlimit(resource.RLIMIT_CORE)
    try:
        first = fork_server()
        control = first.join()
        change(monkeypatch, tmp_path)  # type: ignore[operator]
        second = fork_server()
        assert second is not first
        assert first.lives()  # its machine needs it still
        control.close()
        first.leave()
        assert not first.lives()
        assert second.lives()
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        resource.setrlimit(resource.RLIMIT_CORE, core)


def test_one_that_nobody_uses_goes_at_once_where_another_is_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = fork_server()
    monkeypatch.chdir(tmp_path)
    fork_server()
    assert not first.lives()


def test_one_that_was_killed_is_replaced() -> None:
    first = fork_server()
    os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(MachineError, match=r"^the fork server was killed by SIGKILL$"):
        first.await_ready(lambda _: None)
    second = fork_server()
    assert second is not first
    assert second.lives()


def test_who_joins_one_that_is_dead_is_told_when_it_asks_for_something() -> None:
    server = fork_server()
    server.end()
    control = server.join()
    with pytest.raises(ControlLost):
        control.receive(10)


def test_a_copy_of_the_process_that_started_it_has_one_of_its_own() -> None:
    server = fork_server()
    if (pid := os.fork()) == 0:
        other = fork_server()
        differs = other is not server and other.pid != server.pid
        server.end()  # which is not its to end
        other.end()
        os._exit(0 if differs else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert server.lives()


LEAVES = """
import sys
from toolstack.server_process import fork_server
server = fork_server()
print(server.pid, flush=True)
if sys.argv[1] == "killed":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["well", "killed"])
def test_it_ends_with_who_has_started_it(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVES, how], cwd=ROOT, capture_output=True, text=True, check=False
    )
    pid = int(done.stdout)
    gone = psutil.wait_procs([psutil.Process(pid)] if psutil.pid_exists(pid) else [], 60)[1] == []
    assert gone
    assert (done.returncode, done.stderr) == ((0, "") if how == "well" else (-9, ""))
