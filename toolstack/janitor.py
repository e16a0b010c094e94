"""Removes a machine's run directory when its supervisor is gone, however it went.

Runs as a process of its own, in a session of its own, with nothing but the standard library; its
standard input is a pipe whose other end only the supervisor holds. The machine's processes and its
memory need no janitor: the kernel ends the ones with their parent and the other with the last of
them. What an export's socket needs one for is its file, which may lie anywhere: a note of it, a
link of the socket's own number, is in the directory.
"""

import contextlib
import os
import shutil
import signal
import stat
import sys

NOTE = "socket."


def note_of(run_dir: str, path: str) -> str:
    """Note that the socket `path` goes with the directory; the note's own path. Raises OSError."""
    found = os.lstat(path)
    note = os.path.join(run_dir, f"{NOTE}{found.st_dev}-{found.st_ino}")
    with contextlib.suppress(FileExistsError):
        os.symlink(path, note)
    return note


def remove_noted(note: str) -> None:
    """Remove a socket by the note of it, and the note; not what has taken the socket's name."""
    with contextlib.suppress(OSError):
        path = os.readlink(note)
        os.unlink(note)
        found = os.lstat(path)
        named = f"{NOTE}{found.st_dev}-{found.st_ino}"
        if stat.S_ISSOCK(found.st_mode) and os.path.basename(note) == named:
            os.unlink(path)


def remove(run_dir: str) -> None:
    """Remove a run directory, and the sockets that are noted there; not what has taken a name."""
    with contextlib.suppress(OSError):
        for name in os.listdir(run_dir):
            if name.startswith(NOTE):
                remove_noted(os.path.join(run_dir, name))
    shutil.rmtree(run_dir, ignore_errors=True)


def main(run_dir: str, held: str) -> None:
    """Wait for the supervisor's end of the pipe to close, then remove what it has left: the
    directory of the descriptor `held`, and not one of its name that has taken its place."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin.buffer.read()
    with contextlib.suppress(OSError):
        if os.path.samestat(os.lstat(run_dir), os.fstat(int(held))):
            remove(run_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
