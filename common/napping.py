"""Naps: how a waiter with much under way waits where no CPU is to spare.

Owns: when a waiter sleeps by the clock instead of looking (`common/spinning.py`), and how long.
A device answers every 10 us or so. Who spins until the next answer takes the CPU from those who
bring it (the kernel's own work, a server, the host of a virtual machine); who sleeps for each pays
an event and a wake-up for each. A nap is as long as a share of what is under way takes: that many
are then there at once, as with a network card that moderates its interrupts.
Rules
1. Only where the machine's threads are as many as the CPUs (`new_spin`). Where they are fewer there
   is a CPU for the others; where they are more nobody spins for long, but yields to its peers.
2. Only with much under way: who waits for one answer is not made to wait longer. And only for a
   thread's one ring: in company another ring may have something meanwhile.
3. How long is learnt from the pace of the answers. It is taken without naps first, and from time to
   time again: a nap that is too long slows the pace that it is taken from.
4. Where the answers come faster than a nap can tell apart, a spin is better.
5. A wait's naps end with its spin's limit: then it sleeps until there is an event.
The two ends' shares differ. The guest waits for most of what it has asked for: that wakes its CPU
least often. The backend for little: the store is to have something to do at all times.
"""

from typing import Final

import numpy as np

from common.clock import monotonic_ns, nanosleep
from common.compiled import kernel
from common.spinning import spun_ns
from common.u32 import u32_sub

# Of what is under way, in sixteenths.
FRONT_SHARE: Final = 12
BACK_SHARE: Final = 4

UNDER_WAY_MIN: Final = 8
PACE_NS_MIN: Final = 5_000  # from answer to answer
NAP_NS_MIN: Final = 30_000
NAP_NS_MAX: Final = 1_000_000

WINDOW: Final = 256  # answers, of which the pace is taken
SPUN_EVERY: Final = 32  # windows
GAP_NS_MAX: Final = 400_000  # what is longer was no pace: somebody was not running


@kernel
def nap(spin: np.ndarray, under_way: int, answers: int) -> bool:
    """Between `begin_spin` and the spin: learn, and sleep if that is better; False if it is not.

    As `nap_ns`, by the clock alone.
    """
    ns = nap_ns(spin, under_way, answers)
    if ns == 0:
        return False
    state = spin[0]
    state.timespec[0], state.timespec[1] = 0, ns
    nanosleep(state.timespec.ctypes.data)
    end_nap(spin)
    return True


@kernel
def nap_ns(spin: np.ndarray, under_way: int, answers: int) -> np.int64:
    """Between `begin_spin` and the spin: learn, and say for how long to sleep (`end_nap`) at most;
    0 if a spin is better.

    under_way: what has been asked for, and not been answered; answers: how many there were, a u32
    that wraps.
    """
    state = spin[0]
    if state.nap_share == 0:
        return np.int64(0)
    _learn(spin, answers)
    again = state.napped != 0 and state.answers == np.uint32(answers)
    state.answers, state.answers_ns = np.uint32(answers), state.now_ns
    state.under_way = np.uint32(under_way)
    # The backend's go up and down with the guest's naps.
    state.most = max(state.under_way, state.most - np.uint32(state.most > 0))
    state.napped = np.uint32(_pays(spin) and spun_ns(spin) < state.limit_ns)
    if state.napped == 0:
        return np.int64(0)
    return _nap_ns(spin) >> (2 if again else 0)


@kernel
def end_nap(spin: np.ndarray) -> None:
    """It has slept."""
    state = spin[0]
    state.now_ns = monotonic_ns(state.timespec)
    state.patient_since_ns = state.now_ns


@kernel
def share_of(spin: np.ndarray, under_way: int) -> np.int64:
    """How many answers a nap is to bring."""
    return max(np.int64(under_way) * np.int64(spin[0].nap_share) >> 4, np.int64(1))


@kernel
def _pays(spin: np.ndarray) -> bool:
    state = spin[0]
    if state.windows % SPUN_EVERY == 0 or state.most < UNDER_WAY_MIN:
        return False
    return state.pace_ns >= PACE_NS_MIN and _nap_ns(spin) >= NAP_NS_MIN


@kernel
def _nap_ns(spin: np.ndarray) -> np.int64:
    state = spin[0]
    return min(state.pace_ns * share_of(spin, state.most), NAP_NS_MAX)


@kernel
def _learn(spin: np.ndarray, answers: int) -> None:
    """From what has come since the last wait."""
    state = spin[0]
    if state.under_way < UNDER_WAY_MIN:
        return
    state.paced += np.int64(u32_sub(answers, state.answers))
    state.paced_ns += min(state.now_ns - state.answers_ns, GAP_NS_MAX)
    if state.paced < WINDOW:
        return
    pace_ns = state.paced_ns // state.paced
    if state.windows % SPUN_EVERY == 0:
        state.spun_pace_ns = pace_ns
    state.pace_ns = min(pace_ns, state.spun_pace_ns)
    state.windows += np.uint32(1)
    state.paced, state.paced_ns = 0, 0
