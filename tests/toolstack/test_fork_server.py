"""The fork server as supervisors have it: one real one for all tests here."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from common.control import Control, control_pair
from toolstack.child import readable

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0


class Forked(NamedTuple):
    """A process that was forked: xenstored's, which needs nobody else."""

    name: str
    pid: int
    pidfd: int
    control: Control
    virq: socket.socket

    def close(self) -> None:
        os.close(self.pidfd)
        self.control.close()
        self.virq.close()


class Server:
    """The program, our end of its control connection, and that of a machine of its."""

    def __init__(self) -> None:
        self.root, theirs = control_pair()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "toolstack.fork_server", str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd="/",
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        while (message := self.root.receive(600)) != ["ready"]:
            assert message is not None and message[0] == "progress", message
        self.control = self.machine()

    def machine(self) -> Control:
        """One more."""
        ours, theirs = control_pair()
        self.root.send("machine", descriptors=[theirs.fileno()])
        theirs.close()
        return ours

    def fork(self, name: str, directory: str) -> Forked:
        """Fork a xenstored called `name`, and wait until it is up."""
        control, theirs = control_pair()
        virq, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        config = {"store_path": f"{directory}/{name}"}
        descriptors = [theirs.fileno(), its.fileno()]
        self.control.send("fork", name, "xenstored", config, descriptors=descriptors)
        theirs.close()
        its.close()
        assert readable(self.control.fileno(), PATIENCE_S)
        (word, forked, pid), (pidfd,) = self.control.receive_with_descriptors()
        assert (word, forked) == ("forked", name)
        assert control.receive(PATIENCE_S) == ["ok", None]
        return Forked(name, pid, pidfd, control, virq)

    def says(self) -> list[Any] | None:
        return self.control.receive(PATIENCE_S)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.root.close()
    assert server.process.wait(PATIENCE_S) == 0


@pytest.fixture
def directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as path:
        yield path


def test_a_fork_is_told_by_name_pid_and_pidfd(server: Server, directory: str) -> None:
    forked = server.fork("some-process", directory)
    process = psutil.Process(forked.pid)
    assert process.name() == "gl-some-process"
    assert process.ppid() == server.process.pid
    assert not readable(forked.pidfd, 0)
    signal.pidfd_send_signal(forked.pidfd, signal.SIGKILL)
    assert readable(forked.pidfd, PATIENCE_S)
    assert server.says() == ["exited", forked.pid, -signal.SIGKILL]
    forked.close()


def test_an_end_of_its_own_is_told_with_its_status(server: Server, directory: str) -> None:
    forked = server.fork("leaver", directory)
    forked.control.send("exit")
    assert forked.control.receive(PATIENCE_S) == ["ok", None]
    assert server.says() == ["exited", forked.pid, 0]
    forked.close()


def test_a_child_holds_what_it_is_born_with_and_nothing_of_the_server(
    server: Server, directory: str
) -> None:
    first, second = server.fork("first", directory), server.fork("second", directory)

    def held(pid: int) -> list[str]:
        links = Path(f"/proc/{pid}/fd").iterdir()
        return sorted(os.readlink(link).split(":")[0] for link in links)

    kinds = held(second.pid)
    assert kinds == held(first.pid)
    # Control, VIRQ, where it listens; then what xenstored makes for itself.
    assert kinds.count("socket") == 3
    assert kinds.count("/dev/null") == 2 + (os.readlink("/proc/self/fd/2") == "/dev/null")
    for forked in (first, second):
        signal.pidfd_send_signal(forked.pidfd, signal.SIGKILL)
        forked.close()
    said = [server.says(), server.says()]
    assert sorted(message[1] for message in said if message) == sorted([first.pid, second.pid])


def test_many_that_end_at_once_are_all_told(server: Server, directory: str) -> None:
    forked = [server.fork(f"many-{number}", directory) for number in range(12)]
    for each in forked:
        os.kill(each.pid, signal.SIGKILL)
    told = [server.says() for _ in forked]
    assert sorted(message[1] for message in told if message) == sorted(each.pid for each in forked)
    for each in forked:
        each.close()


def test_ctrl_c_is_not_for_it(server: Server, directory: str) -> None:
    forked = server.fork("survivor", directory)
    os.kill(server.process.pid, signal.SIGINT)
    os.kill(forked.pid, signal.SIGINT)
    forked.control.send("help")
    answered = forked.control.receive(PATIENCE_S)
    assert answered is not None and answered[0] == "error"
    os.kill(forked.pid, signal.SIGTERM)
    assert server.says() == ["exited", forked.pid, -signal.SIGTERM]
    forked.close()


def test_a_process_whose_toolstack_is_gone_ends_without_a_word(
    server: Server, directory: str
) -> None:
    forked = server.fork("orphan", directory)
    forked.control.close()
    assert server.says() == ["exited", forked.pid, 1]
    os.close(forked.pidfd)
    forked.virq.close()


def test_it_ends_with_its_supervisor_and_so_does_every_child(directory: str) -> None:
    server = Server()
    forked = [server.fork(f"child-{number}", directory) for number in range(3)]
    server.root.close()
    assert server.process.wait(PATIENCE_S) == 0
    for each in forked:
        assert readable(each.pidfd, PATIENCE_S)
        each.close()


def test_a_machine_ends_with_its_supervisor_and_alone(server: Server, directory: str) -> None:
    first, kept = server.control, server.fork("kept", directory)
    server.control = server.machine()
    ended = [server.fork(f"ended-{number}", directory) for number in range(3)]
    server.control.close()
    server.control = first
    for each in ended:
        assert readable(each.pidfd, PATIENCE_S)
        each.close()
    assert not readable(kept.pidfd, 0)
    os.kill(kept.pid, signal.SIGKILL)
    assert server.says() == ["exited", kept.pid, -signal.SIGKILL]  # and nothing of the others
    kept.close()
    children = psutil.Process(server.process.pid).children()
    assert [child.status() for child in children if child.status() == psutil.STATUS_ZOMBIE] == []


LEFT_BY_ITS_SUPERVISOR = """
import os
from common.control import Control, ControlLost, control_pair
from toolstack.fork_server import ForkServer

ours, theirs = control_pair()
server = ForkServer(Control(theirs))
ours.close()
try:
    server.serve({})
except ControlLost:
    pass
del server  # and the descriptors that it was woken by
if os.fork() == 0:
    os._exit(0)
os.wait()
"""


def test_a_child_that_ends_after_it_has_stopped_serving_is_no_error() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_BY_ITS_SUPERVISOR],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
