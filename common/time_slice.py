"""A thread's time slice: how much of the CPU's time a yield gives up.

Owns: `sched_setattr` as far as that goes, compiled. Linux charges a yield as a whole slice: EEVDF
moves the yielder's deadline on by one. Beside a stranger that never yields, a yielder's share of
the CPU is then its turn in a slice, microseconds in milliseconds. A slice of 0.1 ms, the least that
there is, makes a yield that much cheaper; the share that the thread has a right to stays what it
was. `sched_runtime` asks for that without privilege since Linux 6.12; before, it is ignored.
"""

import os
import platform
from typing import Final

import numpy as np
from numba import types

from common.compiled import kernel

SHORT_NS: Final = 100_000

# The C library has no wrapper before glibc 2.41.
_NUMBERS: Final = {"x86_64": (314, 315), "aarch64": (274, 275)}
SCHED_SETATTR, SCHED_GETATTR = _NUMBERS.get(platform.machine(), (-1, -1))

# struct sched_attr of linux/sched/types.h (SCHED_ATTR_SIZE_VER0), in words of 64 bits.
ATTR_WORDS: Final = 6
SIZE_AND_POLICY: Final = 0
RUNTIME: Final = 3

FAIR_POLICIES: Final = (os.SCHED_OTHER, os.SCHED_BATCH)

_syscall = types.ExternalFunction(
    "syscall", types.int64(types.int64, types.int64, types.uintp, types.int64, types.int64)
)


@kernel
def exchange_slice(attr: np.ndarray, slice_ns: int) -> np.int64:
    """Ask for slices of `slice_ns` for the calling thread; returns what it had (0: not known).

    attr: scratch, u64 (ATTR_WORDS,). Nothing happens where there are no such slices, nor to a
    thread that is not scheduled fairly.
    """
    nr_bytes = 8 * ATTR_WORDS
    if SCHED_GETATTR < 0 or _syscall(SCHED_GETATTR, 0, attr.ctypes.data, nr_bytes, 0) != 0:
        return np.int64(0)
    policy = np.int64(attr[SIZE_AND_POLICY] >> np.uint64(32))
    if policy not in FAIR_POLICIES:
        return np.int64(0)
    had_ns = np.int64(attr[RUNTIME])
    attr[SIZE_AND_POLICY] = np.uint64(nr_bytes) | np.uint64(policy) << np.uint64(32)
    attr[RUNTIME] = np.uint64(slice_ns)
    _syscall(SCHED_SETATTR, 0, attr.ctypes.data, 0, 0)
    return had_ns
