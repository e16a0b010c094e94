"""How long to look before sleeping: a bounded, adaptive spin on one shared word.

Owns: the limit of one waiter, and the count of runnable threads of the whole machine that it reads.
Rules
1. With more runnable threads than CPUs a waiter lets the others run between looks (`sched_yield`):
   the peer that would change the word may be waiting for this very CPU.
2. The limit follows the sleeps, as that of KVM's halt polling does: one that was ended soon would
   have been worth spinning through, so the limit grows; one that lasted shrinks it. Too short a
   spin turns every hiccup of the peer into a sleep and a wake-up, which cost a hundred times more.
3. Who is not adaptive never spins, as Linux's block drivers do not.
"""

import os
from typing import Final

import numpy as np
from numba import types

from common.atomics import fetch_add, load_acquire, pause
from common.clock import monotonic_ns
from common.compiled import kernel

LIMIT_NS_MIN: Final = 50_000
LIMIT_NS_MAX: Final = 4_000_000
WORTH_NS: Final = 1_000_000  # a sleep no longer than this had better been a spin

LOOKS_A_TURN: Final = 64  # between two looks at the clock and at how many want to run
TURNS_MIN: Final = 8  # a turn of a long run queue may take longer than the limit

SPIN: Final = np.dtype(
    [
        ("limit_ns", "<i8"),
        ("timespec", "<i8", (2,)),  # scratch of the clock
        ("adaptive", "<u4"),
        ("nr_cpus", "<u4"),
    ]
)

# The machine-wide word that every process may change.
SCHED: Final = np.dtype([("runnable", "<u4")])

_sched_yield = types.ExternalFunction("sched_yield", types.intc())


def new_spin(adaptive: bool) -> np.ndarray:
    """One waiter's SPIN; with `adaptive` false it never spins."""
    spin = np.zeros(1, SPIN)
    spin["limit_ns"] = LIMIT_NS_MAX
    spin["adaptive"] = adaptive
    spin["nr_cpus"] = len(os.sched_getaffinity(0))
    return spin


@kernel
def spins(spin: np.ndarray) -> bool:
    """Does this waiter ever spin?"""
    return spin[0].adaptive != 0


@kernel
def spin_until_changed(
    words: np.ndarray, index: int, seen: int, spin: np.ndarray, runnable: np.ndarray
) -> bool:
    """Look at `words[index]` until it is not `seen`; False if the spin ran out or may not run.

    words: u32 in shared memory; runnable: u32 (1,), threads of the machine that want a CPU now.
    """
    if not spins(spin):
        return False
    started = monotonic_ns(spin[0].timespec)
    turns = 0
    while turns < TURNS_MIN or monotonic_ns(spin[0].timespec) - started < spin[0].limit_ns:
        turns += 1
        if load_acquire(runnable, 0) > spin[0].nr_cpus:
            _sched_yield()
            if load_acquire(words, index) != seen:
                return True
        else:
            for _ in range(LOOKS_A_TURN):
                if load_acquire(words, index) != seen:
                    return True
                pause()
    return False


def slept(spin: np.ndarray, slept_ns: int) -> None:
    """Learn from a sleep of `slept_ns` that followed a spin."""
    factor = 2.0 if slept_ns <= WORTH_NS else 0.5
    limit_ns = int(spin["limit_ns"][0] * factor)
    spin["limit_ns"] = min(max(limit_ns, LIMIT_NS_MIN), LIMIT_NS_MAX)


def starts_to_run(runnable: np.ndarray) -> None:
    """This thread wants a CPU from now on."""
    fetch_add(runnable, 0, np.uint32(1))


def stops_running(runnable: np.ndarray) -> None:
    """This thread is about to sleep."""
    fetch_add(runnable, 0, np.uint32(0xFFFFFFFF))
