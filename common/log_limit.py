"""Log lines that guests can cause are limited, as Linux limits its own (printk_ratelimit).

Owns: the limit. A guest that breaks its ring again and again is one line each time, on the user's
terminal.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

INTERVAL_S: Final = 5.0  # Linux's DEFAULT_RATELIMIT_INTERVAL and _BURST
BURST: Final = 10


class LogLimit(logging.Filter):
    """For a handler: BURST lines in each INTERVAL_S; the first one after says how many were not
    shown."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._since, self._lines = clock(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Is this line shown?"""
        now = self._clock()
        if now - self._since >= INTERVAL_S:
            if (missing := self._lines - BURST) > 0:
                record.msg = f"({missing} lines were not shown) {record.getMessage()}"
                record.args = ()
            self._since, self._lines = now, 0
        self._lines += 1
        return self._lines <= BURST


def log_to_terminal(form: str) -> None:
    """Warnings and worse of this process on standard error, in `form`, limited."""
    handler = logging.StreamHandler()
    handler.addFilter(LogLimit())
    logging.basicConfig(level=logging.WARNING, format=form, handlers=[handler])
