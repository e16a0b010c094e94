"""A thread that yields asks for short time slices.

Owns: `sched_setattr` as far as that goes. Linux charges a yield as a whole slice (EEVDF: the
deadline, and since 6.18 the virtual time, moves on by one), so beside a stranger that never yields
a yielder's share of the CPU is its turn in a slice: microseconds in milliseconds. A slice of 0.1
ms, the least there is, makes a yield that much cheaper; the thread's share stays what it was. Since
Linux 6.12 `sched_runtime` asks for that without privilege; before it is ignored.
"""

import ctypes
import os
import platform
from typing import Final

import numpy as np

SLICE_NS: Final = 100_000

# linux/sched/types.h, SCHED_ATTR_SIZE_VER0.
SCHED_ATTR: Final = np.dtype(
    [
        ("size", "<u4"),
        ("sched_policy", "<u4"),
        ("sched_flags", "<u8"),
        ("sched_nice", "<i4"),
        ("sched_priority", "<u4"),
        ("sched_runtime", "<u8"),
        ("sched_deadline", "<u8"),
        ("sched_period", "<u8"),
    ]
)

# The C library has no wrapper before glibc 2.41: numbers of sched_setattr and sched_getattr.
SYSCALLS: Final = {"x86_64": (314, 315), "aarch64": (274, 275)}
FAIR_POLICIES: Final = (os.SCHED_OTHER, os.SCHED_BATCH)


def scheduling() -> np.ndarray | None:
    """The calling thread's SCHED_ATTR (1,), or None where the kernel does not say."""
    if platform.machine() not in SYSCALLS:
        return None
    _, getattr_number = SYSCALLS[platform.machine()]
    attr = np.zeros(1, SCHED_ATTR)
    failed = ctypes.CDLL(None).syscall(
        getattr_number, 0, ctypes.c_void_p(attr.ctypes.data), SCHED_ATTR.itemsize, 0
    )
    return None if failed else attr


def ask_for_short_slices() -> None:
    """For the calling thread, if it is scheduled fairly; where that fails all is as before."""
    attr = scheduling()
    if attr is None or int(attr["sched_policy"][0]) not in FAIR_POLICIES:
        return
    attr["size"], attr["sched_flags"], attr["sched_runtime"] = SCHED_ATTR.itemsize, 0, SLICE_NS
    setattr_number, _ = SYSCALLS[platform.machine()]
    ctypes.CDLL(None).syscall(setattr_number, 0, ctypes.c_void_p(attr.ctypes.data), 0)
