"""How everything that runs per request is compiled: one decorator for all of it.

Owns: the flags, and why.
- `nogil`: dom0's threads run at the same time.
- `cache`: only the very first start compiles (`run.sh` keys the cache by all sources).
- `_nrt=False`: no reference counts. Numba would count each array of a `Blkfront` up and down, with
  a locked instruction, at nearly every line: two thirds of a request's time. So a kernel cannot
  allocate, and returns numbers only; its arrays are its caller's, who holds them.
- `no_cfunc_wrapper`: nobody calls these through a C pointer; it is a module more for each.
- `forceinline`: a `Blkfront` is passed as a hundred words, and is not passed at all when inlined.

Rule: a kernel's callees are kernels. `.py_func` is the plain function.
"""

from collections.abc import Callable
from typing import Any, Final

from numba import njit, typeof
from numba.core.registry import CPUDispatcher

OPTIONS: Final = {"nogil": True, "_nrt": False, "no_cfunc_wrapper": True}

kernel = njit(cache=True, forceinline=True, **OPTIONS)

# The same for a loop over phases, which is one of its own: its caller would be compiled with it.
whole = njit(cache=True, **OPTIONS)


class _Part(CPUDispatcher):  # type: ignore[misc]
    """A kernel that Python cannot call."""

    def __call__(self, *_: object) -> None:
        raise TypeError(f"{self.py_func.__name__} is a part of kernels, and called by them alone")


def part(function: Callable[..., Any]) -> Any:
    """The same for what kernels alone call: without what lets Python call it, which for a function
    that is given a ring's end takes longer to compile than the function.
    """
    options = {"nopython": True, "forceinline": True, "no_cpython_wrapper": True, **OPTIONS}
    dispatcher = _Part(function, targetoptions=options)
    dispatcher.enable_caching()
    return dispatcher


def direct(function: Any, *example: object) -> Callable[..., Any]:
    """A kernel for arguments of the types of `example`, compiled or loaded now.

    Numba looks at the type of each argument of each call, which takes longer than many a kernel;
    this does not look: arguments of other types would be taken for what they are not.
    """
    types = tuple(typeof(argument) for argument in example)
    function.compile(types)
    entry: Callable[..., Any] = function.overloads[types].entry_point
    return entry
