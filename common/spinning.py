"""How long to look before sleeping: a bounded, adaptive spin on one shared word.

Owns: the limit of one waiter, and the count of runnable threads of the whole machine that it reads.
Rules: never spin while more threads want to run than there are CPUs, since the peer that would
change the word may be waiting for this very CPU. Otherwise a spin that pays doubles the limit and
one that does not halves it: too short a spin turns every hiccup of the peer into a sleep.
"""

import os
from typing import Final

import numpy as np
from numba import types

from common.atomics import fetch_add, load_acquire, pause
from common.compiled import kernel

TRIES_MIN: Final = 2_000
TRIES_MAX: Final = 400_000

YIELDS_MIN: Final = 4
YIELDS_MAX: Final = 256

SPIN: Final = np.dtype(
    [("tries", "<u4"), ("tries_max", "<u4"), ("yields", "<u4"), ("nr_cpus", "<u4")]
)

_sched_yield = types.ExternalFunction("sched_yield", types.intc())

# The machine-wide word that every process may change.
SCHED: Final = np.dtype([("runnable", "<u4")])


def new_spin(adaptive: bool) -> np.ndarray:
    """One waiter's SPIN; with `adaptive` false it never spins, as Linux's block drivers do not."""
    spin = np.zeros(1, SPIN)
    spin["tries"], spin["yields"] = TRIES_MIN * 8, YIELDS_MAX
    spin["tries_max"] = TRIES_MAX if adaptive else 0
    spin["nr_cpus"] = len(os.sched_getaffinity(0))
    return spin


@kernel
def spins(spin: np.ndarray) -> bool:
    """Does this waiter ever spin?"""
    return spin[0].tries_max != 0


@kernel
def spin_until_changed(
    words: np.ndarray, index: int, seen: int, spin: np.ndarray, runnable: np.ndarray
) -> bool:
    """Look at `words[index]` until it is not `seen`; False if the spin ran out or may not run.

    words: u32 in shared memory; runnable: u32 (1,), threads of the machine that want a CPU now.
    """
    if not spins(spin):
        return False
    for tried in range(spin[0].tries):
        if load_acquire(words, index) != seen:
            spin[0].tries = np.uint32(min(np.int64(spin[0].tries) * 2, np.int64(spin[0].tries_max)))
            return True
        if tried & 63 == 0 and load_acquire(runnable, 0) > spin[0].nr_cpus:
            return _yield_until_changed(words, index, seen, spin)
        pause()
    spin[0].tries = np.uint32(max(np.int64(spin[0].tries) // 2, np.int64(TRIES_MIN)))
    return False


@kernel
def _yield_until_changed(words: np.ndarray, index: int, seen: int, spin: np.ndarray) -> bool:
    """The same with more threads than CPUs: let the others run between looks.

    A turn of the run queue costs a context switch or two a thread; to sleep and be woken costs ten
    times that, and the peer's send besides.
    """
    for _ in range(spin[0].yields):
        _sched_yield()
        if load_acquire(words, index) != seen:
            spin[0].yields = np.uint32(min(np.int64(spin[0].yields) * 2, np.int64(YIELDS_MAX)))
            return True
    spin[0].yields = np.uint32(max(np.int64(spin[0].yields) // 2, np.int64(YIELDS_MIN)))
    return False


def starts_to_run(runnable: np.ndarray) -> None:
    """This thread wants a CPU from now on."""
    fetch_add(runnable, 0, np.uint32(1))


def stops_running(runnable: np.ndarray) -> None:
    """This thread is about to sleep."""
    fetch_add(runnable, 0, np.uint32(0xFFFFFFFF))
