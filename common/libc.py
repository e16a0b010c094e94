"""What the C library says besides what its functions return, for compiled code."""

import numpy as np
from numba import types

from common.compiled import kernel

_errno_location = types.ExternalFunction("__errno_location", types.CPointer(types.int32)())


@kernel
def last_errno() -> np.int64:
    """Why this thread's last call has failed: to be asked at once after it."""
    return np.int64(_errno_location()[0])
