"""What a store could not do, said once, and then counted.

Owns: the words. A full or failing disk fails each request of its guest, thousands in a second: the
first of each kind is a line in the log, and what follows is one line with a number, from time to
time and at the end.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

COUNT_EVERY_S: Final = 10.0

log = logging.getLogger(__name__)


class ErrorLog:
    """Of one store; name: whose, as people know it."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock, self._next = name, clock, 0.0
        self._said = set[str]()
        self._unsaid = Counter[str]()

    def say(self, why: str, count: int = 1, where: str = "") -> None:
        """`count` requests have failed, the last of them at `where`."""
        if why not in self._said:
            self._said.add(why)
            log.warning("%s: %s%s", self._name, why, f" ({where})" if where else "")
            self._next = self._clock() + COUNT_EVERY_S
            count -= 1
        self._unsaid[why] += count
        if self._clock() >= self._next:
            self.tell_counts()

    def tell_counts(self) -> None:
        """What has not been said yet."""
        for why, count in self._unsaid.items():
            if count:
                log.warning("%s: %s: %d more requests have failed", self._name, why, count)
        self._unsaid.clear()
        self._next = self._clock() + COUNT_EVERY_S
