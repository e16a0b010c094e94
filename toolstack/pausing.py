"""A guest's process stands still, and goes on: `xl pause`, `xl unpause`.

Owns: when a guest is paused: once no thread of its process can run. SIGSTOP says it; that each has
heard it is what the host's kernel shows. A guest can neither refuse it nor end it: it is sealed.
"""

import contextlib
import signal
import time
from pathlib import Path
from typing import Any, Final

from toolstack.child import Child
from toolstack.failures import GuestFailed, MachineError
from toolstack.hold import PAUSED, SUSPENDED, TO_RESUME

TIMEOUT_S: Final = 10.0  # of a thread that the host does not let go of
STOPPED: Final = "Tt"


class Pausing:
    """An order: to pause `child`. Raises GuestFailed, MachineError."""

    value: Any = None

    def __init__(self, child: Child) -> None:
        _require_life(child)
        child.hold.allow("pause")
        self._child, self._deadline = child, time.monotonic() + TIMEOUT_S
        child.signal(signal.SIGSTOP)
        child.hold.begin(PAUSED)

    def look(self) -> bool:
        """See Order."""
        stopped = all(state in STOPPED for state in thread_states(self._child.pid))
        _require_life(self._child)
        stopped = stopped and not self._child.has_ended()  # else these were nobody's, or another's
        if not stopped and time.monotonic() > self._deadline:
            unpause(self._child)
            raise MachineError(f"{self._child.name} does not stop within {TIMEOUT_S:g} s")
        return stopped


class Unpausing:
    """An order: to let it go on, which is done at once. Raises GuestFailed, MachineError."""

    value: Any = None

    def __init__(self, child: Child) -> None:
        _require_life(child)
        child.hold.require(PAUSED)
        unpause(child)

    def look(self) -> bool:
        """See Order."""
        return True


def unpause(child: Child) -> None:
    """Let it go on, if it is paused."""
    if PAUSED in child.hold.why:
        child.signal(signal.SIGCONT)
        child.hold.end(PAUSED)


def _require_life(child: Child) -> None:
    if child.death:
        raise GuestFailed(child.death)


def thread_states(pid: int) -> list[str]:
    """The state of each thread, the first the process's own, as proc(5) has it."""
    found = []
    with contextlib.suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda path: int(path.name)):
            with contextlib.suppress(OSError):  # it has ended
                found.append((task / "stat").read_text().rpartition(") ")[2][0])
    return found


def letters(child: Child) -> str:
    """A domain's state as `xl list` shows it: running, blocked, paused, shut down, crashed, dying;
    one that is suspended is shut down to `xl`, too."""
    dead, why = bool(child.death), child.hold.why
    runs = not (dead or why) and thread_states(child.pid)[:1] == ["R"]
    flags = {
        "r": runs,
        "b": not (dead or why or runs),
        "p": PAUSED in why and not dead,
        "s": not {SUSPENDED, TO_RESUME}.isdisjoint(why) and not dead,
        "c": dead,
        "d": False,
    }
    return "".join(letter if is_so else "-" for letter, is_so in flags.items())
