"""How a program of ours is started: a Python of its own, on the code that runs here.

Owns: what such a program holds: one descriptor, its control connection's, which it is named; a
session of its own, as Ctrl-C is for who has started it; and no terminal to read or write.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def start_program(module: str, fd: int, **options: Any) -> "subprocess.Popen[bytes]":
    """Start `module` with descriptor `fd`; options: Popen's."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(fd)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[fd],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
        **options,
    )
