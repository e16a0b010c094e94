"""Latencies in buckets that any process may read: 64 to each power of two, so 1.6 % wide at most.

Owns: the bucket of a value in nanoseconds, in a compiled call per I/O; what stands for a bucket;
percentiles, of which a machine of a thousand disks has thousands.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from common.compiled import kernel

SUB_BUCKET_BITS: Final = 6
SUB_BUCKETS: Final = 1 << SUB_BUCKET_BITS
BUCKETS: Final = 36 * SUB_BUCKETS  # up to 2^41 ns: half an hour
VALUE_MAX: Final = (1 << 41) - 1


@intrinsic
def _leading_zeros(typing: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


@kernel
def bucket_of(nanoseconds: int) -> np.int64:
    """The bucket of a latency; what is out of range goes to the first or the last one."""
    value = np.int64(min(max(nanoseconds, 0), VALUE_MAX))
    if value < SUB_BUCKETS:
        return value
    octave = np.int64(63 - _leading_zeros(np.uint64(value))) - SUB_BUCKET_BITS
    return octave * SUB_BUCKETS + (value >> octave)


def middle_of(bucket: int) -> int:
    """The latency in nanoseconds that stands for a bucket: its middle."""
    if bucket < 2 * SUB_BUCKETS:
        return bucket
    octave = bucket // SUB_BUCKETS - 1
    return ((bucket - octave * SUB_BUCKETS) << octave) + (1 << octave >> 1)


def value_at(counts: np.ndarray, percentile: float) -> int:
    """The latency in nanoseconds that `percentile` (0 to 100) of `counts` (u64, shape (BUCKETS,))
    do not exceed, as HdrHistogram has it; `counts` are not all zero.
    """
    up_to = np.cumsum(counts)
    wanted = max(1, int(percentile * int(up_to[-1]) / 100 + 0.5))
    return middle_of(int(np.searchsorted(up_to, wanted)))
