"""A machine's directory for its sockets, which goes with its supervisor, however that goes.

Owns: where it is, and the janitor that removes it if the supervisor cannot.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from toolstack.failures import MachineError

SOCKET_PATH_MAX: Final = 107  # sun_path, less its final zero
SOCKET_NAME_MAX: Final = len("/events-32752/4095")


class RunDir:
    """Made with the object: `path`. Raises MachineError."""

    def __init__(self, topology_id: str) -> None:
        base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        self.path = os.path.join(base, f"grantlab-{topology_id}")
        if len(self.path) + SOCKET_NAME_MAX > SOCKET_PATH_MAX:
            self.path = os.path.join("/tmp", f"grantlab-{topology_id}")
        try:
            os.mkdir(self.path, 0o700)
        except OSError as error:
            why = f"cannot make the run directory {self.path}: {error.strerror}"
            raise MachineError(why) from error
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("janitor.py")), self.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def remove(self) -> None:
        """Remove it, and end the janitor. Idempotent."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._janitor.stdin is not None and not self._janitor.stdin.closed:
            self._janitor.stdin.close()
        self._janitor.wait()
