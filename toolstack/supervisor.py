"""Starts the processes of one machine, watches them, and leaves nothing behind.

Owns: the fork server, the run directory, the processes and the control pipe of each.
Rules
1. Every process is forked from one warm server that has all compiled code in place.
2. A process that dies before it is told to is a MachineError that names it and how it died,
   whatever the caller was waiting for.
3. Whatever dies, `kill -9` included: processes end with their parent (PR_SET_PDEATHSIG), memory has
   no names, and the run directory goes with the supervisor or, failing that, its janitor.
"""

import contextlib
import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any, Final

from toolstack.janitor import CLOSED

PRELOADED: Final = "toolstack.preload"
EXIT_TIMEOUT_S: Final = 10.0
SOCKET_PATH_MAX: Final = 107  # sun_path, less its final zero
SOCKET_NAME_MAX: Final = len("/hypercall-32752-255")


class MachineError(Exception):
    """The machine could not start or go on; one line that says what failed."""


@dataclass
class Child:
    """One process: its name, the process, and our end of its control pipe."""

    name: str
    process: Any
    control: Connection

    def how_it_died(self) -> str:
        """For people: which process, and what ended it."""
        self.process.join(1)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"{self.name} was killed by {signal.Signals(-code).name}"
        return f"{self.name} ended unexpectedly (exit status {code})"


class Supervisor:
    """The processes of one machine, by name: "hypervisor", "dom0", "guest-1", ..."""

    def __init__(self) -> None:
        self.topology_id = secrets.token_hex(4)
        self.run_dir = self._make_run_dir()
        janitor = Path(__file__).with_name("janitor.py")
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(janitor), self.run_dir, get_temp_dir()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.children: dict[str, Child] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([PRELOADED])
        # Ctrl-C is for us alone, from the server's first instruction on; its children inherit that.
        resource_tracker.ensure_running()  # before: it unblocks what is blocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _make_run_dir(self) -> str:
        base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        path = os.path.join(base, f"grantlab-{self.topology_id}")
        if len(path) + SOCKET_NAME_MAX > SOCKET_PATH_MAX:
            path = os.path.join("/tmp", f"grantlab-{self.topology_id}")
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise MachineError(f"cannot make the run directory {path}: {error.strerror}") from error
        return path

    def start(self, name: str, main: Callable[[Any, Connection], None], config: Any) -> None:
        """Fork the process `name`; it answers on its control pipe once it is up (`expect`)."""
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=main, args=(config, theirs), name=name, daemon=True)
        try:
            process.start()
        except (OSError, EOFError) as error:
            raise MachineError(f"the fork server cannot start {name}: {error}") from error
        theirs.close()
        self.children[name] = Child(name, process, ours)

    def send(self, name: str, *message: Any) -> None:
        """Send a command to `name`."""
        try:
            self.children[name].control.send(message)
        except OSError as error:
            raise MachineError(self.children[name].how_it_died()) from error

    def expect(self, name: str, timeout_s: float) -> Any:
        """The answer of `name`. Raises MachineError if it fails, or anything dies meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not self.answers([name], deadline - time.monotonic()):
            if time.monotonic() > deadline:
                raise MachineError(f"{name} did not answer within {timeout_s:g} s")
        return self.take(name)

    def answers(self, names: list[str], timeout_s: float) -> list[str]:
        """Which of `names` have answered, once one has or the time is up. Watches all processes."""
        pipes = {self.children[name].control: name for name in names}
        sentinels = {child.process.sentinel: child for child in self.children.values()}
        ready = wait([*pipes, *sentinels], max(0.0, timeout_s))
        answered = [pipes[item] for item in ready if item in pipes]
        for item in ready:
            if item in sentinels:
                self._raise_death(sentinels[item])
        return answered

    def _raise_death(self, child: Child) -> None:
        """A process that ends by itself says why on its pipe first."""
        try:
            while child.control.poll():
                kind, text = child.control.recv()
                if kind == "error":
                    raise MachineError(text)
        except (EOFError, OSError):
            pass  # it said no more
        raise MachineError(child.how_it_died())

    def take(self, name: str) -> Any:
        """Receive the answer of `name` that has come."""
        try:
            kind, result = self.children[name].control.recv()
        except (EOFError, OSError) as error:
            raise MachineError(self.children[name].how_it_died()) from error
        if kind == "error":
            raise MachineError(result)
        return result

    def pids(self) -> dict[str, int]:
        """The process ids, by name."""
        return {name: child.process.pid for name, child in self.children.items()}

    def forget(self, name: str) -> None:
        """`name` has been told to exit: wait for it, and watch it no longer."""
        child = self.children.pop(name)
        child.process.join(EXIT_TIMEOUT_S)
        self._reap(child)

    def close(self) -> None:
        """End whatever still runs, and remove the run directory. Idempotent."""
        for child in self.children.values():
            child.process.kill()
        for child in self.children.values():
            self._reap(child)
        self.children.clear()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        if self._janitor.stdin is not None and not self._janitor.stdin.closed:
            with contextlib.suppress(OSError):  # somebody has killed the janitor
                self._janitor.stdin.write(CLOSED)
                self._janitor.stdin.close()
        self._janitor.wait()

    @staticmethod
    def _reap(child: Child) -> None:
        if child.process.is_alive():
            child.process.kill()
        child.process.join()
        child.control.close()
        child.process.close()
