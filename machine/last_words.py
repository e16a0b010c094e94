"""What a guest's process says where it has no terminal: its log, and why it ends.

Owns: the way of both over the control connection.
"""

import contextlib
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from common.control import Control, ControlLost
from common.hypercall import HypercallError
from common.xenstore import XenStoreError


class LogToControl(logging.Handler):
    """A guest has no terminal: what it has to say goes over its control connection."""

    def __init__(self, control: Control) -> None:
        super().__init__(logging.WARNING)
        self._control = control

    def emit(self, record: logging.LogRecord) -> None:
        """Send it; a toolstack that is gone hears nothing."""
        with contextlib.suppress(ControlLost):
            self._control.send("log", record.getMessage())


@contextmanager
def last_words(control: Control, domid: int) -> Iterator[None]:
    """An error that ends the process is told on the control connection first."""
    try:
        yield
    except (XenStoreError, HypercallError, OSError) as error:
        control.send("error", f"domain {domid}: {error}")
        raise SystemExit(1) from error
    except Exception as error:  # a bug of ours
        control.send("log", traceback.format_exc())
        control.send("error", f"domain {domid}: {error!r}")
        raise SystemExit(70) from error
