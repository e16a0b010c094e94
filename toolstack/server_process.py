"""The fork server as those see it who start machines: one process for all machines of a process.

Owns: the process, and which machines may be forked from it. To bring its code in takes seconds, a
fork takes none of them; so it stays, warm, for the next machine.
Rules
1. What a process inherits is its machine's starter's: where that is no longer what it was (another
   working directory, limit, CPU set, ...), another server is started, and the one before ends with
   its last machine.
2. It ends with the process that has started it, however that ends.
"""

import atexit
import contextlib
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.control import Control, ControlLost, control_pair
from toolstack.child import readable, signal_name
from toolstack.failures import MachineError
from toolstack.programs import start_program

COMPILE_TIMEOUT_S: Final = 600.0
FORK_SERVER: Final = "fork server"
# What Python, Numba and the loader look at; the rest of the environment nobody there reads.
VARIABLES: Final = (
    "PYTHON", "NUMBA_", "OMP_", "LD_", "MALLOC_", "GLIBC_", "HOME", "PATH", "XDG_CACHE_HOME",
)  # fmt: skip
LIMITS: Final = tuple(getattr(resource, name) for name in dir(resource) if name[:7] == "RLIMIT_")


class ServerProcess:
    """A running fork server. Its users are counted: `join` and `leave`."""

    def __init__(self, circumstances: tuple[object, ...]) -> None:
        self.circumstances = circumstances
        self._owner, self._users, self._ready = os.getpid(), 0, False
        self._control, theirs = control_pair()
        self._process = start_program("toolstack.fork_server", theirs.fileno())
        theirs.close()
        atexit.register(self.end)

    @property
    def pid(self) -> int:
        """The process's."""
        return self._process.pid

    def lives(self) -> bool:
        """Has it not ended?"""
        return self._process.poll() is None

    def await_ready(self, log: Callable[[str], None]) -> None:
        """Wait until it has everything compiled; `log` is told of its progress. Raises
        MachineError."""
        deadline = time.monotonic() + COMPILE_TIMEOUT_S
        while not self._ready:
            if not readable(self._control.fileno(), deadline - time.monotonic()):
                raise MachineError("compiling did not end within its time")
            try:
                message = self._control.receive(0) or ["progress", ""]
            except ControlLost:
                raise MachineError(self.death()) from None
            self._ready = message[0] == "ready"
            if not self._ready:
                log(str(message[1]))

    def join(self) -> Control:
        """One machine more; the control connection that its processes are asked for on."""
        ours, theirs = control_pair()
        self._users += 1
        with theirs, contextlib.suppress(ControlLost):  # who asks for a fork will notice
            self._control.send("machine", descriptors=[theirs.fileno()])
        return ours

    def leave(self) -> None:
        """A machine that had joined has ended."""
        self._users -= 1
        if not self._users and self is not _servers.get("current"):
            self.end()

    def death(self) -> str:
        """How it ended; called by who has seen that it did."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        code = self._process.poll()
        if code is not None and code < 0:
            return f"the {FORK_SERVER} was killed by {signal_name(-code)}"
        return f"the {FORK_SERVER} ended unexpectedly (exit status {code})"

    def end(self) -> None:
        """End it, and all that was forked from it. Idempotent."""
        if os.getpid() != self._owner:  # we are a copy of who had started it
            return
        atexit.unregister(self.end)
        self._process.kill()
        self._process.wait()
        self._control.close()


_servers: dict[str, ServerProcess] = {}
_lock = threading.Lock()


def fork_server() -> ServerProcess:
    """The one to fork a machine from now."""
    with _lock:
        circumstances = _circumstances()
        current = _servers.get("current")
        if current is None or current.circumstances != circumstances or not current.lives():
            if current is not None and not current._users:
                current.end()
            current = _servers["current"] = ServerProcess(circumstances)
        return current


def _circumstances() -> tuple[object, ...]:
    """What a process has of who starts it, as far as ours would notice."""
    return (
        os.getpid(),
        sorted(item for item in os.environ.items() if item[0].startswith(VARIABLES)),
        _or_none(os.getcwd),
        _or_none(lambda: os.fstat(2)[:3]),
        os.sched_getaffinity(0),
        os.getpriority(os.PRIO_PROCESS, 0),
        [resource.getrlimit(limit) for limit in LIMITS],
        [line for line in Path("/proc/self/status").read_text().split("\n") if line[:5] == "Umask"],
    )


def _or_none(ask: Callable[[], object]) -> object:
    """The working directory may have been removed, and the terminal closed."""
    try:
        return ask()
    except OSError:
        return None
