"""Removes a machine's run directory when its supervisor is gone, however it went.

Runs as a process of its own, in a session of its own, with nothing but the standard library; its
standard input is a pipe whose other end only the supervisor holds. The machine's processes and its
memory need no janitor: the kernel ends the ones with their parent and the other with the last of
them.
"""

import contextlib
import os
import shutil
import signal
import sys


def main(run_dir: str, held: str) -> None:
    """Wait for the supervisor's end of the pipe to close, then remove what it has left: the
    directory of the descriptor `held`, and not one of its name that has taken its place."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(run_dir), os.fstat(int(held))):
            shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
