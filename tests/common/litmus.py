"""A store-buffer litmus on real code: two threads on two CPUs, each stores and then looks.

Each round both begin together. A side's `act` publishes something and returns whether it *missed*
what the other side publishes. If both miss, whoever sleeps now sleeps for ever: the forbidden
outcome, which only a full barrier on both sides rules out (x86 keeps a store back while it loads).
"""

import os
import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from common.arena import Arena
from common.atomics import load_acquire, pause, store_release
from common.event_channel import event_words
from common.hypercall_gate import ASLEEP, Gate, gate_bytes, header_of, new_gate
from common.ring import new_half, shared_ring_init
from common.spinning import new_spin

# The two sides' words, a cache line apart, and what ends them early.
APART = 16
STOP = 2 * APART
MEETINGS = 3  # a round
DELAYS = 64


class World(NamedTuple):
    """What the two sides share; `half` (RING_HALF) and `spin` (SPIN) are one side's own."""

    words: np.ndarray
    pending: np.ndarray
    mask: np.ndarray
    gate: Gate
    half: np.ndarray
    spin: np.ndarray


def without(function: Any, **others: Any) -> Any:
    """The same code with other functions in the place of the named ones: a fence that is none."""
    plain = function.py_func
    twin = FunctionType(plain.__code__, {**plain.__globals__, **others}, plain.__name__)
    return njit(nogil=True, _nrt=False, forceinline=True)(twin)


@njit(nogil=True, _nrt=False, forceinline=True)
def no_fence() -> None:
    """Orders nothing."""


@njit(nogil=True, _nrt=False, forceinline=True)
def _meet(meeting: np.ndarray, who: int, number: int) -> bool:
    """Wait for the other side; False if there is no point any more."""
    store_release(meeting, who * APART, number)
    while load_acquire(meeting, (1 - who) * APART) < number:
        if load_acquire(meeting, STOP):
            return False
        pause()
    return True


def _side(prepare: Any, act: Any) -> Any:
    @njit(nogil=True, _nrt=False)
    def side(
        meeting: np.ndarray, missed: np.ndarray, who: int, rounds: int, world: World, stop: bool
    ) -> None:
        random, both = np.uint64(88172645463325252 + who), np.int64(0)
        for number in range(rounds):
            if not _meet(meeting, who, MEETINGS * number + 1):
                break
            if who == 0:
                both += missed[0] & missed[APART]
                missed[2 * APART], missed[3 * APART] = both, number
                if stop and both:
                    store_release(meeting, STOP, 1)
                prepare(world)
            if not _meet(meeting, who, MEETINGS * number + 2):
                break
            # Both have the lines at hand, so that a load is not slower than the other's store.
            load_acquire(world.words, 0)
            load_acquire(world.pending, 0)
            load_acquire(world.mask, 0)
            load_acquire(world.gate.words, ASLEEP)
            load_acquire(world.gate.words, header_of(0))
            if not _meet(meeting, who, MEETINGS * number + 3):
                break
            random ^= random << np.uint64(13)
            random ^= random >> np.uint64(7)
            random ^= random << np.uint64(17)
            for _ in range(random % np.uint64(DELAYS)):
                load_acquire(meeting, STOP)
            missed[who * APART] = act(world, number)

    return side


@njit(nogil=True, _nrt=False)
def nothing(_world: World) -> None:
    """No need to prepare a round."""


def both_missed(
    one: Callable[..., bool],
    other: Callable[..., bool],
    prepare: Callable[[World], None] = nothing,
    *,
    seconds: float,
    until_seen: bool = False,
) -> tuple[int, int]:
    """Run `one` against `other` for `seconds`: how often both missed, and of how many rounds.

    one, other: compiled, (World, round) -> missed; prepare: compiled, run by one side while the
    other waits. until_seen: the first time is enough.
    """
    words, segment = np.zeros(1024, np.uint32), np.zeros(gate_bytes(1), np.uint8)
    shared_ring_init(words, 0)
    pending, mask = event_words(np.zeros(4096, np.uint8))
    gate = new_gate(segment, 0)
    meeting, missed = np.zeros(3 * APART, np.int64), np.zeros(4 * APART, np.int64)
    cpus = sorted(os.sched_getaffinity(0))
    failed: list[BaseException] = []

    def run(who: int, side: Any, rounds: int, cpu: int) -> None:
        try:
            os.sched_setaffinity(0, {cpu})
            world = World(
                words, pending, mask, gate, new_half(Arena(4096), 32), new_spin(adaptive=True)
            )
            side(meeting, missed, who, rounds, world, until_seen)
        except BaseException as error:
            failed.append(error)
            meeting[STOP] = 1

    sides = [_side(prepare, one), _side(prepare, other)]
    for who, side in enumerate(sides):
        run(who, side, 0, cpus[0])  # compiled before they race; the affinity is the thread's
    os.sched_setaffinity(0, set(cpus))
    threads = [
        threading.Thread(target=run, args=(who, side, 1 << 40, cpus[who % len(cpus)]))
        for who, side in enumerate(sides)
    ]
    for thread in threads:
        thread.start()
    threads[0].join(seconds)
    meeting[STOP] = 1
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return int(missed[2 * APART]), int(missed[3 * APART])
