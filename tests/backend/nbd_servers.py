"""Real NBD servers on a unix socket, for tests; and a ring's worth of jobs for a store."""

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from backend.nbd_store import NbdStore
from backend.store_jobs import IOVEC, JOB, Jobs

SLOTS = 8


class Server:
    """A server's process, which can be killed and started again.

    pid_path: where one that makes itself a daemon writes who it is.
    """

    def __init__(self, command: list[str], socket_path: Path, pid_path: Path | None = None) -> None:
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        self._command, self._socket, self._pid = command, socket_path, pid_path
        self.start()

    def start(self) -> None:
        self._socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + 10
        while not self._listens():
            assert time.monotonic() < give_up and not self._process.poll()
            time.sleep(0.01)

    def _listens(self) -> bool:
        if not self._socket.is_socket():
            return self._socket.exists()
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self._socket)) == 0

    def kill(self, how: int = signal.SIGKILL) -> None:
        if self._pid:
            os.kill(int(self._pid.read_text()), how)
        else:
            self._process.send_signal(how)
        self._process.wait(10)

    def signal(self, what: int) -> None:
        """SIGSTOP and SIGCONT, and not waited for."""
        self._process.send_signal(what)

    def died(self) -> int | None:
        """How it has ended, if it has: minus the signal, or its status."""
        return self._process.poll()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait(60)


@contextmanager
def served(command: list[str], socket_path: Path, pid_path: Path | None = None) -> Iterator[Server]:
    server = Server(command, socket_path, pid_path)
    try:
        yield server
    finally:
        server.kill()


def nbdkit(socket_path: Path, *arguments: str) -> list[str]:
    return ["nbdkit", "-f", "-U", str(socket_path), *arguments]


def uri_of(socket_path: Path, name: str = "") -> str:
    return f"nbd+unix:///{name}?socket={socket_path}"


class Ring:
    """Jobs of 11 pages for a store; what a vCPU's thread does with it."""

    def __init__(self, store: NbdStore) -> None:
        self.store = store
        self.jobs = Jobs(
            np.zeros(SLOTS, JOB),
            np.zeros((SLOTS, 11), IOVEC),
            np.zeros(SLOTS, np.uint32),
            np.zeros(SLOTS, np.int32),
        )
        self.pages = np.zeros((SLOTS, 11 * 4096), np.uint8)
        for slot in range(SLOTS):
            for at in range(11):
                self.jobs.iovecs[slot, at] = (self.pages[slot, at * 4096 :].ctypes.data, 4096)
        self.answers: dict[int, int] = {}
        store.attach(self.jobs)

    def start(self, slot: int, kind: int, offset: int, nr_bytes: int = 0) -> None:
        assert slot not in self.answers
        self.jobs.jobs[slot] = (offset, nr_bytes, kind, -(-nr_bytes // 4096))
        self._note(self.store.start(np.array([slot], np.uint32)))

    def poll(self, timeout_s: float = 1.0) -> None:
        """Wait once, as the thread does."""
        due_ns, wait_s = self.store.due_ns(), timeout_s
        if due_ns is not None:
            wait_s = max(0.0, min(wait_s, (due_ns - time.monotonic_ns()) / 1e9))
        poller = select.poll()
        if self.store.fileno() >= 0:
            poller.register(self.store.fileno(), self.store.events())
        poller.poll(wait_s * 1000 + 1)
        self._note(self.store.ready())

    def wait_for(self, *slots: int, within_s: float = 10.0) -> list[int]:
        """Their statuses; they may be used again."""
        give_up = time.monotonic() + within_s
        while not set(slots) <= self.answers.keys():
            assert time.monotonic() < give_up, f"{slots} are not answered"
            self.poll(0.2)
        return [self.answers.pop(slot) for slot in slots]

    def do(self, kind: int, offset: int, nr_bytes: int = 0) -> int:
        """One job in slot 0."""
        self.start(0, kind, offset, nr_bytes)
        return self.wait_for(0)[0]

    def _note(self, count: int) -> None:
        for at in range(count):
            slot = int(self.jobs.answered[at])
            assert slot not in self.answers
            self.answers[slot] = int(self.jobs.statuses[at])
