"""Why a guest does not go on: it is paused, or suspended. And its clock, which then stands still.

Owns: what may be said to a guest meanwhile, and the time it has. Rule: whoever gives a guest until
some time to do something gives it by its own clock.
"""

import time
from typing import Final

from toolstack.failures import MachineError

PAUSED: Final = "paused"
SUSPENDED: Final = "suspended"
TO_SUSPEND: Final = "being suspended"
TO_RESUME: Final = "being resumed"

LAST: Final = ("stop", "disconnect", "exit", "nbd")  # a client of an export may come, and waits
MAY_BE_TOLD: Final = {  # who is paused reads nothing: what is told then waits in its connection
    PAUSED: ("stop",),
    TO_SUSPEND: LAST,
    SUSPENDED: (*LAST, "resume"),
    TO_RESUME: LAST,
}


class Hold:
    """Of one process, called `name`. why: what holds it, in the order in which that began."""

    def __init__(self, name: str) -> None:
        self._called = name.replace("-", " ")  # guest 1
        self.why: list[str] = []
        self._since_s = self._held_s = 0.0

    def begin(self, why: str) -> None:
        """From now on this holds it."""
        if not self.why:
            self._since_s = time.monotonic()
        self.why.append(why)

    def end(self, why: str) -> None:
        """This does no more, if it did."""
        if why in self.why:
            self.why.remove(why)
            if not self.why:
                self._held_s += time.monotonic() - self._since_s

    def clock_s(self) -> float:
        """Its clock: seconds, but for those in which something held it."""
        return (self._since_s if self.why else time.monotonic()) - self._held_s

    def allow(self, word: str) -> None:
        """May it be told this? Raises MachineError."""
        for why in reversed(self.why):
            if word not in MAY_BE_TOLD[why]:
                raise MachineError(self.told(why))

    def require(self, why: str) -> None:
        """Raises MachineError if this does not hold it."""
        if why not in self.why:
            raise MachineError(f"{self._called} is not {why}")

    def told(self, why: str = "") -> str:
        """What is said of it."""
        return f"{self._called} is {why or self.why[-1]}"
