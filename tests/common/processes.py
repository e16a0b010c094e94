"""Two real processes over one piece of shared memory, for what no single thread can show."""

import mmap
import multiprocessing
from collections.abc import Callable
from typing import Any

import numpy as np

DEADLINE_S = 60


def shared(count: int, kind: Any) -> np.ndarray:
    """Zeroed words that processes forked from now on share; the memory has no name."""
    dtype = np.dtype(kind)
    return np.frombuffer(mmap.mmap(-1, count * dtype.itemsize), dtype)


def run_together(*calls: tuple[Callable[..., object], tuple[object, ...]]) -> None:
    """Run each call in a process of its own and see it end well."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=function, args=args) for function, args in calls]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(DEADLINE_S)
        assert [child.exitcode for child in children] == [0] * len(children)
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
                child.join()
