"""The wall clock, for compiled drivers. Never for a core: cores have no time.

`clock_gettime` is called straight from compiled code, through the C library that is in the process
anyway; the kernel's vDSO answers in some 25 ns.
"""

import time
from typing import Final

import numpy as np
from numba import types

from common.compiled import kernel

_clock_gettime = types.ExternalFunction("clock_gettime", types.intc(types.intc, types.uintp))
_clock_nanosleep = types.ExternalFunction(
    "clock_nanosleep", types.intc(types.intc, types.intc, types.uintp, types.uintp)
)

CLOCK_MONOTONIC: Final = int(time.CLOCK_MONOTONIC)


@kernel
def monotonic_ns(timespec: np.ndarray) -> int:
    """CLOCK_MONOTONIC in nanoseconds; `timespec` is scratch, i64, shape (2,)."""
    _clock_gettime(np.int32(CLOCK_MONOTONIC), timespec.ctypes.data)
    return timespec[0] * 1_000_000_000 + timespec[1]


@kernel
def nanosleep(timespec: int) -> None:
    """Sleep as long as the `struct timespec` at that address says."""
    _clock_nanosleep(np.int32(CLOCK_MONOTONIC), np.int32(0), np.uint64(timespec), np.uint64(0))
