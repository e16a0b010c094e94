"""A machine's name: whose it is, and that no death keeps it."""

import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolstack import names
from toolstack.failures import MachineError
from toolstack.loadspec import ConfigError
from toolstack.names import (
    FORM,
    NoSuchMachine,
    checked_name,
    connect_to,
    directory_of,
    listen,
    lives,
    machine_names,
    peer_of,
    take_name,
)
from toolstack.run_dir import RunDir

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of the test's own, which is empty at its end."""
    with tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", path)
        yield Path(path)
        assert not list(Path(path).iterdir())


@pytest.mark.parametrize("name", ["a", "0", "Web-1", "x" * 32, "a.b_c"])
def test_a_name_is_short_and_plain(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-x", "a/b", "a b", "x" * 33, "a\n", "ä", "1:xvda"]
)
def test_what_is_no_name_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_name(name)
    assert str(caught.value) == f"name: {name!r} is not {FORM}"


def test_a_name_is_had_by_one_and_free_again_when_that_has_gone() -> None:
    lock = take_name("mine")
    assert lives("mine") and machine_names() == ["mine"]
    assert os.stat(directory_of("mine")).st_mode & 0o777 == 0o700
    with pytest.raises(MachineError, match=r"^machine 'mine' is up already; `down mine` puts it"):
        take_name("mine")
    os.close(lock)  # as its keeper's death does
    assert not lives("mine") and machine_names() == []
    (Path(directory_of("mine")) / "left").write_text("of the one before")
    run_dir = RunDir(directory_of("mine"), take_name("mine"))
    assert os.listdir(run_dir.path) == []
    run_dir.remove()
    run_dir.remove()


def test_nobody_is_there() -> None:
    lock = take_name("other")
    with pytest.raises(
        NoSuchMachine, match=r"^machine 'mine' is not up; machines that are: other$"
    ):
        connect_to("mine")
    os.close(lock)
    os.rmdir(directory_of("other"))


def test_what_a_killed_keeper_left_is_said_and_removed() -> None:
    lock = take_name("mine")
    listener = listen(directory_of("mine"))
    listener.close()
    os.close(lock)
    with pytest.raises(NoSuchMachine, match=r"^machine 'mine' is gone: its keeper was killed, and"):
        connect_to("mine")
    with pytest.raises(NoSuchMachine, match=r"^machine 'mine' is not up; machines that are: none$"):
        connect_to("mine")


def test_a_machine_that_is_not_up_yet() -> None:
    lock = take_name("mine")
    with pytest.raises(MachineError, match=r"^machine 'mine' is not up yet, or going down$"):
        connect_to("mine")
    listen(directory_of("mine")).close()  # a socket that nobody listens on
    with pytest.raises(MachineError, match=r"^machine 'mine' does not answer: Connection refused$"):
        connect_to("mine")
    RunDir(directory_of("mine"), lock).remove()


def test_both_ends_know_who_the_other_is() -> None:
    run_dir = RunDir(directory_of("mine"), take_name("mine"))
    with listen(run_dir.path) as listener, connect_to("mine") as ours:
        theirs, _ = listener.accept()
        with theirs:
            assert peer_of(ours) == peer_of(theirs) == (os.getpid(), os.geteuid())
    run_dir.remove()


def test_another_users_machine_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = RunDir(directory_of("mine"), take_name("mine"))
    listener = listen(run_dir.path)
    monkeypatch.setattr(names, "own_uid", lambda: os.geteuid() + 1)
    theirs = rf"^machine 'mine' is another user's \(uid {os.geteuid()}\)$"
    for ask in (lambda: connect_to("mine"), lambda: take_name("mine"), lambda: lives("mine")):
        with pytest.raises(ConfigError, match=theirs):
            ask()
    assert machine_names() == []
    # Even where the directory is ours: who listens there is somebody else.
    monkeypatch.setattr(names, "lives", lambda _: True)
    with pytest.raises(ConfigError, match=theirs):
        connect_to("mine")
    listener.close()
    run_dir.remove()


def test_a_link_is_no_directory_of_ours(base: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    Path(directory_of("mine")).symlink_to(tmp_path)
    with pytest.raises(MachineError, match=r"^cannot make the run directory "):
        take_name("mine")
    assert (tmp_path / "kept").exists()
    Path(directory_of("mine")).unlink()


def test_the_janitor_leaves_a_new_machine_of_the_same_name_alone() -> None:
    first = RunDir(directory_of("mine"), take_name("mine"))
    os.close(first._lock or 0)
    second = RunDir(directory_of("mine"), take_name("mine"))
    assert first._janitor.stdin is not None
    first._janitor.stdin.close()
    first._janitor.wait()
    assert os.path.isdir(second.path) and lives("mine")
    second.remove()


HOLDS = """
import os, signal, sys
from toolstack.names import directory_of, take_name
take_name("mine")
print("held", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_name_is_not_kept_by_who_was_killed() -> None:
    subprocess.run([sys.executable, "-c", HOLDS], cwd=ROOT, check=False)
    assert not lives("mine")
    RunDir(directory_of("mine"), take_name("mine")).remove()


def test_a_path_that_is_too_long_for_sockets_is_in_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/x" * 40)
    assert directory_of("mine") == "/tmp/grantlab.mine"


def test_the_lock_is_on_what_has_the_name_now() -> None:
    """Who was a moment too late has locked a directory that is no more."""
    lock = take_name("mine")
    fd = os.open(directory_of("mine"), os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    assert os.path.samestat(os.fstat(lock), os.stat(directory_of("mine")))
    RunDir(directory_of("mine"), lock).remove()


def test_a_socket_path_fits(base: Path) -> None:
    longest = directory_of("x" * 32)
    assert len(longest) + names.SOCKET_NAME_MAX <= names.SOCKET_PATH_MAX
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.mkdir(longest)
    sock.bind(longest + "/events-32752/4095".replace("/4095", "-409"))
    sock.close()
    RunDir(longest, take_name("x" * 32)).remove()
