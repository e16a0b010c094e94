"""What every process of a machine does first: die with its machine, hold nothing it was not given.

The kernel kills the process when its parent (the fork server) dies, and the fork server ends when
its supervisor does, so nothing outlives a `kill -9` of any of them.
"""

import ctypes
import os
import resource
import signal
from collections.abc import Collection
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_TIMERSLACK: Final = 29
COMM_MAX: Final = 15  # bytes of a thread's name that Linux keeps
STANDARD: Final = (0, 1, 2)


def name_thread(name: str) -> None:
    """Give the calling thread a name that `top -H` and `ps -L` show."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:COMM_MAX], 0, 0, 0)


def sleep_to_the_point() -> None:
    """The calling thread's sleeps end when they are to, and not up to 50 us later."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


def begin_process(name: str, parent: int) -> None:
    """Call first in a child of process `parent`: names it, ties its life to its parent's."""
    name_thread(name)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the tie was made
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for each in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(each, signal.SIG_DFL)


def open_descriptors() -> list[int]:
    """The descriptors this process holds."""
    with os.scandir("/proc/self/fd") as entries:
        found = [int(entry.name) for entry in entries]
    return [fd for fd in found if _is_open(fd)]  # less the scan's own


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def keep_only(descriptors: Collection[int]) -> None:
    """Close every other descriptor but the standard three."""
    for fd in open_descriptors():
        if fd not in descriptors and fd not in STANDARD:
            os.close(fd)


def raise_descriptor_limit() -> None:
    """As many descriptors as the host allows: a shell's own limit is for programs of few."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def leave_terminal(*, errors_too: bool) -> None:
    """Put /dev/null in place of the standard streams: a terminal takes more than text."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in STANDARD if errors_too else STANDARD[:2]:
        os.dup2(null, fd)
    os.close(null)
