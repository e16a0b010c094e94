"""Waiting in tests for what comes soon, and whose hour nobody promises."""

import time
from collections.abc import Callable
from typing import Final

PATIENCE_S: Final = 60.0  # nothing here is about time: only who hangs comes near it


def eventually(holds: Callable[[], object], what: str = "what was waited for") -> None:
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.001)
