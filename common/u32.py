"""Free-running 32-bit arithmetic (`RING_IDX` is `unsigned int`).

The one room where indices are added and subtracted: Numba widens u32 to 64 bits and Python's ints
never wrap, and a ring compared in either is wrong after 2^32 entries. Works compiled and plain.
"""

import numpy as np

from common.compiled import kernel

U32_MASK = 0xFFFFFFFF


@kernel
def u32_add(a: int, b: int) -> np.uint32:
    """`a + b` modulo 2^32."""
    return np.uint32((np.int64(a) + np.int64(b)) & U32_MASK)


@kernel
def u32_sub(a: int, b: int) -> np.uint32:
    """`a - b` modulo 2^32: how far `b` is behind `a` on a free-running index."""
    return np.uint32((np.int64(a) - np.int64(b)) & U32_MASK)
