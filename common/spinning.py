"""How long to look before sleeping: a bounded, adaptive spin on one shared word.

Owns: what one waiter has learnt, from its own clock only: of how long its sleeps last, and of who
else wants its CPU. No process tells another how busy it is: a guest could lie.
Rules
1. The limit follows the sleeps, as that of KVM's halt polling does: one that was ended soon would
   have been worth spinning through, so the limit grows; one that lasted shrinks it. Too short a
   spin turns every hiccup of the peer into a sleep and a wake-up, which cost a hundred times more.
2. A wait that outlasts the waiter's patience lets others run (`sched_yield`): the peer that would
   change the word may be waiting for this very CPU. How long the CPU was gone says who took it.
   Peers, who wait for each other as we do, give it back within microseconds: then the next wait
   yields at its first look. A stranger that only computes keeps it until the scheduler's tick:
   then the waiter is patient, and sleeps instead of yielding, each time twice as often before it
   tries to yield once more. Nobody: then it is more patient from yield to yield.
3. The clock also tells when the CPU was taken without a yield (preemption, a CPU quota): the same.
   While there is a stranger about, a yielder's time slices are short (`common/time_slice.py`).
   Among peers alone they are not: whoever has much to do would be yielded to less.
4. Who is not adaptive never spins, as Linux's block drivers do not.
"""

import os
from typing import Final

import numpy as np
from numba import types

from common.atomics import load_acquire, pause
from common.clock import monotonic_ns
from common.compiled import kernel
from common.time_slice import ATTR_WORDS, SHORT_NS, exchange_slice

LIMIT_NS_MIN: Final = 50_000
LIMIT_NS_MAX: Final = 4_000_000
WORTH_NS: Final = 1_000_000  # a sleep no longer than this had better been a spin

LOOKS_A_TURN: Final = 64  # between two looks at the clock: some 2 us
YIELDS_MIN: Final = 8  # a turn of a long run queue may take longer than the limit

PATIENCE_NS_MIN: Final = 2_000
PATIENCE_NS_MAX: Final = 50_000
SLEEPS_MAX: Final = 64  # before a yield is tried again

# How long the CPU was gone tells who had it. A yield to nobody is a system call of some 200 ns; to
# a peer two context switches at least. A peer's turn is one batch; who computes is stopped by the
# tick only, of 1 to 10 ms.
PEER_NS: Final = 700
STRANGER_NS: Final = 2_000_000
PREEMPTED_NS: Final = 50_000  # between two looks at the clock without a yield

COMPANY_NS: Final = 100_000_000  # a stranger that has not been met for so long is gone

SPIN: Final = np.dtype(
    [
        ("limit_ns", "<i8"),
        ("patience_ns", "<i8"),
        ("patience_max_ns", "<i8"),
        ("company_until_ns", "<i8"),
        ("own_slice_ns", "<i8"),  # what to go back to, while `short`
        # Of the spin that goes on.
        ("started_ns", "<i8"),
        ("now_ns", "<i8"),
        ("patient_since_ns", "<i8"),
        ("timespec", "<i8", (2,)),  # scratch of the clock
        ("attr", "<u8", (ATTR_WORDS,)),  # scratch of the slice
        ("sleeps_owed", "<u4"),  # how often to sleep before the next yield
        ("sleeps_next", "<u4"),  # the same, after the next stranger
        ("adaptive", "<u4"),
        ("short", "<u4"),  # its slices are
        ("yields", "<u4"),  # of the spin that goes on
        # Of the naps (`common/napping.py`).
        ("nap_share", "<u4"),  # of what is under way, in sixteenths; 0: it never naps
        ("pace_ns", "<i8"),  # from answer to answer
        ("spun_pace_ns", "<i8"),  # the same, without naps
        ("paced_ns", "<i8"),  # so long have the answers of this window taken,
        ("paced", "<i8"),  # and so many were they
        ("windows", "<u4"),  # so far
        ("answers_ns", "<i8"),  # when it last waited; at that time,
        ("answers", "<u4"),  # how many there had been,
        ("under_way", "<u4"),  # what was still to come,
        ("napped", "<u4"),  # and whether it napped
        ("most", "<u4"),  # that was under way of late
    ]
)

_sched_yield = types.ExternalFunction("sched_yield", types.intc())


def new_spin(adaptive: bool, threads: int = 1, nap_share: int = 0) -> np.ndarray:
    """One waiter's SPIN; with `adaptive` false it never spins.

    threads: how many of the machine's may want a CPU at once, as it was built. Where that is more
    than there are CPUs nobody is patient: while it spins a peer waits for this very CPU.
    nap_share: where they are as many as there are CPUs, it naps until as much has been answered
    (`common/napping.py`).
    """
    cpus = len(os.sched_getaffinity(0))
    crowded = cpus == 1 or threads > cpus
    spin = np.zeros(1, SPIN)
    spin["limit_ns"] = LIMIT_NS_MAX
    spin["adaptive"] = adaptive
    spin["patience_max_ns"] = 0 if crowded else PATIENCE_NS_MAX
    spin["patience_ns"] = spin["patience_max_ns"]
    spin["nap_share"] = nap_share if adaptive and threads == cpus else 0
    return spin


def be_impatient(spin: np.ndarray) -> dict[str, int]:
    """More threads want CPUs than the machine's, and wait for this one: it yields at once, and does
    not nap. How it was before."""
    before = {name: int(spin[name][0]) for name in ("patience_max_ns", "patience_ns", "nap_share")}
    for name in before:
        spin[name] = 0
    return before


@kernel
def spins(spin: np.ndarray) -> bool:
    """Does this waiter ever spin?"""
    return spin[0].adaptive != 0


@kernel
def was_away(spin: np.ndarray, away_ns: int, now_ns: int) -> None:
    """Learn from the CPU having been gone for `away_ns`, until `now_ns`, who else wants it."""
    state = spin[0]
    if away_ns >= STRANGER_NS:
        state.patience_ns = state.patience_max_ns
        state.company_until_ns = now_ns + COMPANY_NS
        state.sleeps_owed = state.sleeps_next
        state.sleeps_next = np.uint32(min(max(2 * state.sleeps_next, 1), SLEEPS_MAX))
    elif away_ns >= PEER_NS:
        state.patience_ns = 0
        state.sleeps_owed = np.uint32(0)
        state.sleeps_next = np.uint32(0)
    else:
        longer_ns = max(2 * state.patience_ns, PATIENCE_NS_MIN)
        state.patience_ns = min(longer_ns, state.patience_max_ns)
        if state.sleeps_next > 0:
            state.sleeps_next -= np.uint32(1)


@kernel
def must_sleep(spin: np.ndarray) -> bool:
    """Patience is at an end: True to sleep, one of those that are owed, False to yield."""
    state = spin[0]
    if state.sleeps_owed == 0:
        return False
    state.sleeps_owed -= np.uint32(1)
    return True


@kernel
def wants_short_slices(spin: np.ndarray, now_ns: int) -> bool:
    """Is there a stranger about, beside whom each yield costs a slice?"""
    return now_ns < spin[0].company_until_ns


@kernel
def _fit_slice(spin: np.ndarray, now_ns: int) -> None:
    state = spin[0]
    short = wants_short_slices(spin, now_ns)
    if short == (state.short != 0):
        return
    if short:
        state.own_slice_ns = exchange_slice(state.attr, SHORT_NS)
    else:
        exchange_slice(state.attr, state.own_slice_ns)
    state.short = np.uint32(short)


@kernel
def _changes(words: np.ndarray, index: int, seen: int, looks: int) -> bool:
    """Is `words[index]` not `seen` at one of `looks` looks?"""
    for _ in range(looks):
        if load_acquire(words, index) != seen:
            return True
        pause()
    return False


@kernel
def begin_spin(spin: np.ndarray) -> None:
    """A spin begins."""
    state = spin[0]
    state.now_ns = monotonic_ns(state.timespec)
    state.started_ns = state.patient_since_ns = state.now_ns
    state.yields = np.uint32(0)


@kernel
def looks_a_turn(spin: np.ndarray) -> int:
    """How often to look before `goes_on` is asked."""
    return LOOKS_A_TURN if spin[0].patience_ns > 0 else 1


@kernel
def goes_on(spin: np.ndarray) -> bool:
    """After looks that saw nothing: learn, let others run if it is time for that; False if it is
    time to sleep.
    """
    state = spin[0]
    before_ns, now_ns = state.now_ns, monotonic_ns(state.timespec)
    if now_ns - before_ns >= PREEMPTED_NS:
        was_away(spin, now_ns - before_ns, now_ns)
    if now_ns - state.patient_since_ns >= state.patience_ns:
        if must_sleep(spin):
            return False
        _sched_yield()
        before_ns, now_ns = now_ns, monotonic_ns(state.timespec)
        was_away(spin, now_ns - before_ns, now_ns)
        _fit_slice(spin, now_ns)
        state.patient_since_ns = now_ns
        state.yields += np.uint32(1)
    state.now_ns = now_ns
    spent = now_ns - state.started_ns >= state.limit_ns
    return not (spent and (state.yields >= YIELDS_MIN or state.patience_ns > 0))


@kernel
def spun_ns(spin: np.ndarray) -> np.int64:
    """How long the last spin has taken, as far as it has looked at the clock."""
    return spin[0].now_ns - spin[0].started_ns


@kernel
def spin_until_changed(words: np.ndarray, index: int, seen: int, spin: np.ndarray) -> bool:
    """Look at `words[index]` until it is not `seen`; False if it is time to sleep.

    words: u32 in shared memory.
    """
    if not spins(spin):
        return False
    begin_spin(spin)
    while not _changes(words, index, seen, looks_a_turn(spin)):
        if not goes_on(spin):
            return _changes(words, index, seen, 1)
    return True


def slept(spin: np.ndarray, slept_ns: int) -> None:
    """Learn from a sleep of `slept_ns` that followed a spin."""
    factor = 2.0 if slept_ns <= WORTH_NS else 0.5
    limit_ns = int(spin["limit_ns"][0] * factor)
    spin["limit_ns"] = min(max(limit_ns, LIMIT_NS_MIN), LIMIT_NS_MAX)
