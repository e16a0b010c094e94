"""What every process of a machine does first: die with its machine, leave Ctrl-C to the supervisor.

The kernel kills the process when its parent (the fork server) dies, and the fork server ends when
the supervisor does, so nothing outlives a `kill -9` of any of them.
"""

import ctypes
import os
import signal
from typing import Final

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
COMM_MAX: Final = 15  # bytes of a thread's name that Linux keeps


def name_thread(name: str) -> None:
    """Give the calling thread a name that `top -H` and `ps -L` show."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode()[:COMM_MAX], 0, 0, 0)


def begin_process(name: str) -> None:
    """Call first in a child: names it, ties its life to its parent's."""
    name_thread(name)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() == 1:  # the parent died before the tie was made
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
