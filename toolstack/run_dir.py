"""A machine's directory for its sockets, which goes with its supervisor, however that goes.

Owns: its making, and the janitor that removes it if the supervisor cannot.
"""

import os
import subprocess
import sys
from pathlib import Path

from toolstack.failures import MachineError
from toolstack.janitor import remove


class RunDir:
    """`path`, which is there from now on. lock: the descriptor by which it is held, if it has a
    name (`toolstack/names.py`); this object's. Raises MachineError.
    """

    def __init__(self, path: str, lock: int | None = None) -> None:
        self.path, self._lock = path, lock
        if lock is None:
            try:
                os.mkdir(path, 0o700)
            except OSError as error:
                why = f"cannot make the run directory {path}: {error.strerror}"
                raise MachineError(why) from error
        # Held open, its number is no other directory's meanwhile.
        held = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("janitor.py"))]
        self._janitor = subprocess.Popen(
            [*program, path, str(held)],
            pass_fds=[held],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(held)

    def remove(self) -> None:
        """Remove it, and end the janitor. Idempotent."""
        remove(self.path)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        if self._janitor.stdin is not None and not self._janitor.stdin.closed:
            self._janitor.stdin.close()
        self._janitor.wait()
