"""How everything that runs per request is compiled: one decorator for all of it.

Owns: the flags, and why.
- `nogil`: dom0's threads run at the same time.
- `cache`: only the very first start compiles (`run.sh` keys the cache by all sources).
- `_nrt=False`: no reference counts. Numba would count each array of a `Blkfront` up and down, with
  a locked instruction, at nearly every line: two thirds of a request's time. So a kernel cannot
  allocate, and returns numbers only; its arrays are its caller's, who holds them.
- `forceinline`: a `Blkfront` is passed as a hundred words, and is not passed at all when inlined.

Rule: a kernel's callees are kernels. `.py_func` is the plain function.
"""

from collections.abc import Callable
from typing import Any

from numba import njit, typeof

kernel = njit(nogil=True, cache=True, forceinline=True, _nrt=False)

# The same for what is part of one or two kernels: compiled as they are, and not by itself besides,
# which takes half a second for each function that is given a ring's end.
part = njit(nogil=True, cache=True, inline="always", _nrt=False)

# The same for a loop over phases, which is one of its own: its caller would be compiled with it.
whole = njit(nogil=True, cache=True, _nrt=False)


def direct(function: Any, *example: object) -> Callable[..., Any]:
    """A kernel for arguments of the types of `example`, compiled or loaded now.

    Numba looks at the type of each argument of each call, which takes longer than many a kernel;
    this does not look: arguments of other types would be taken for what they are not.
    """
    types = tuple(typeof(argument) for argument in example)
    function.compile(types)
    entry: Callable[..., Any] = function.overloads[types].entry_point
    return entry
