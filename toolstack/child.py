"""One process of a machine as its supervisor sees it: what it answered, logged, and how it ended.

Owns: what is believed of a child. A guest's messages are a guest's: their number, length and
characters are bounded here, and who breaks the form is killed.
"""

import contextlib
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final, cast

from common.control import Control, ControlLost, Message, one_line
from common.machine_memory import DISKS_MAX
from toolstack.hold import Hold

MESSAGES_A_LOOK: Final = 32
ANSWERS_MAX: Final = 16  # that nobody has taken: more than is ever asked at once
ENDED_MAX: Final = 64  # loads whose ends nobody has taken: more than a guest has disks
LOG_LINES_MAX: Final = 20  # shown
LOG_LINES_HEARD: Final = 1000  # each costs us time
SIZES_HEARD: Final = 10_000  # likewise

Log = Callable[[str], None]


def say_to_user(line: str) -> None:
    """What a machine has to say, where nobody else listens."""
    print(f"grantlab: {line}", file=sys.stderr)


class Child:
    """A process by its name, pid, pidfd (this object's), and our end of its control connection.

    ended_loads: by id, why each failed, or ""; orders: by number, where an answer is to go, None if
    nobody waits for it any more (`toolstack/conversation.py`); sizes: of its disks by number, as a
    guest has told them when they changed; hold: why it does not go on; death: why there is nothing
    more to expect of it, or "".
    """

    def __init__(self, name: str, pid: int, pidfd: int, control: Control, log: Log) -> None:
        self.name, self.pid, self.pidfd, self.control = name, pid, pidfd, control
        self.answers: deque[tuple[str, Any]] = deque()
        self.told: deque[Message] = deque()  # what is no answer
        self.ended_loads: dict[int, str] = {}
        self.orders: dict[int, list[Any] | None] = {}
        self.sizes: dict[int, int] = {}
        self._sizes_heard = 0
        self.hold = Hold(name)
        self.death = ""
        self.hung_up = False  # its end of the control connection is gone
        self._fault = ""
        self._log, self._log_lines = log, 0

    @property
    def essential(self) -> bool:
        """Does the machine end with it? All but guests are."""
        return not self.name.startswith("guest-")

    def listen(self) -> None:
        """Take in the messages that have come."""
        try:
            for _ in range(MESSAGES_A_LOOK):
                message = self.control.receive(0)
                if message is None:
                    return
                self._take(message)
        except ControlLost as error:
            self.hung_up = True
            self.kill("" if str(error) == "is gone" else f"{self.name} {error}")

    def _take(self, message: Message) -> None:
        kind, value = message[0], cast(Any, message[1] if len(message) > 1 else None)
        if kind in ("ok", "error"):
            if len(self.answers) >= ANSWERS_MAX:
                raise ControlLost("answers what it was not asked")
            self.answers.append((kind, one_line(value) if kind == "error" else value))
        elif kind == "log":
            self._log_lines += 1
            if self._log_lines <= LOG_LINES_MAX:
                self._log(f"{self.name}: {one_line(value)}")
            elif self._log_lines == LOG_LINES_MAX + 1:
                self._log(f"{self.name}: (its further lines are not shown)")
            elif self._log_lines > LOG_LINES_HEARD and not self.essential:
                raise ControlLost("logs without end")
        elif self.essential and kind == "done":
            if (slot := self.orders.pop(value, None)) is not None:
                slot.append(message[2:])
        elif self.essential:
            self.told.append(message)
        elif kind == "ended":
            self._take_end(*message[1:3])
        elif kind == "size":
            self._take_size(*message[1:3])
        else:
            raise ControlLost(f"sent a message of no kind it may send: {one_line(kind)}")

    def _take_end(self, load: Any = None, why: Any = None) -> None:
        """A guest says that a load of its has ended. Raises ControlLost."""
        if not isinstance(load, int) or len(self.ended_loads) >= ENDED_MAX:
            raise ControlLost("ends loads that it does not run")
        self.ended_loads[load] = "" if why is None else one_line(why) or "it failed"

    def _take_size(self, disk: Any = None, nbytes: Any = None) -> None:
        """A guest says that a disk of its has another size. Raises ControlLost."""
        if not isinstance(disk, int) or not isinstance(nbytes, int) or disk not in range(DISKS_MAX):
            raise ControlLost("tells a size that is none")
        self._sizes_heard += 1
        if self._sizes_heard > SIZES_HEARD:
            raise ControlLost("tells sizes without end")
        self.sizes[disk] = nbytes

    def kill(self, fault: str = "") -> None:
        """End it now; `fault`: what it did, if it is to blame."""
        self._fault = self._fault or fault
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send it a signal, if it still lives."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def has_ended(self) -> bool:
        """Has the process ended?"""
        return readable(self.pidfd, 0)

    def ended(self, status: int | None) -> None:
        """It has; status: as waitstatus_to_exitcode has it, None if nobody knows."""
        if not self.hung_up:
            self.listen()  # its last words
        last_words = [text for kind, text in self.answers if kind == "error"]
        if self._fault:
            self.death = self._fault
        elif last_words:
            self.death = last_words[-1]
        elif status is not None and status < 0:
            self.death = f"{self.name} was killed by {signal_name(-status)}"
        else:
            self.death = f"{self.name} ended unexpectedly (exit status {status})"

    def close(self) -> None:
        """Forget it."""
        self.control.close()
        os.close(self.pidfd)


def signal_name(number: int) -> str:
    """SIGKILL, ..., or what a signal without a name is called (a guest may die of any)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def readable(fd: int, timeout_s: float) -> bool:
    """Is `fd` readable within that time? (select(2) knows no descriptor over 1,023.)"""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(0.0, timeout_s) * 1000))
