"""That no wake-up is lost needs a full barrier on each side; here they are shown to be there.

Each pair of functions that publish and then look runs on two CPUs. As it is, both never miss; with
one barrier taken out of the same code, both do, so the litmus could have seen it.
"""

import os
from typing import Any

import numpy as np
import pytest
from numba import njit

from common import hypercall_gate
from common.abi import HYPERVISOR_GRANT_TABLE_OP
from common.atomics import fence, load_acquire, store_release
from common.event_channel import become_pending, clear_mask, clear_pending, set_pending
from common.hypercall_gate import ASLEEP, IDLE, STATE, TAKEN, header_of
from common.ring import REQ, arm, check_notify, publish, unconsumed
from common.u32 import u32_add
from hypervisor.gate_server import NOBODY, find_posted
from tests.common.litmus import World, both_missed, no_fence, nothing, without

AS_IT_IS_S = 1.5
UNTIL_SEEN_S = 60.0
PORT = 5
BIT = np.uint64(1 << PORT)


def compiled(function: Any) -> Any:
    return njit(nogil=True, _nrt=False)(function)


# --- the ring: PUBLISH, CHECK_NOTIFY against ARM, look --------------------------------------


def producer(checks: Any = check_notify) -> Any:
    def act(world: World, number: int) -> bool:
        world.half[0].prod_pvt = u32_add(number, 1)
        publish(world.words, world.half, REQ)
        return not checks(world.words, world.half, REQ)

    return compiled(act)


def consumer(arms: Any = arm) -> Any:
    def act(world: World, number: int) -> bool:
        world.half[0].cons = u32_add(number, 0)
        arms(world.words, world.half, REQ)
        return unconsumed(world.words, world.half, REQ, 32) == 0

    return compiled(act)


# --- the event: PUBLISH, set_pending against clear_pending, look ------------------------------


@compiled
def pending_and_masked(world: World) -> None:
    store_release(world.pending, 0, BIT)
    store_release(world.mask, 0, 0)


def sender(sets: Any = set_pending) -> Any:
    def act(world: World, number: int) -> bool:
        world.half[0].prod_pvt = u32_add(number, 1)
        publish(world.words, world.half, REQ)
        return not sets(world.pending, world.mask, PORT)

    return compiled(act)


def waiter(clears: Any = clear_pending) -> Any:
    def act(world: World, number: int) -> bool:
        world.half[0].cons = u32_add(number, 0)
        clears(world.pending, PORT)
        return unconsumed(world.words, world.half, REQ, 32) == 0

    return compiled(act)


@compiled
def masked(world: World) -> None:
    store_release(world.pending, 0, 0)
    store_release(world.mask, 0, BIT)


def marker(sets: Any = set_pending) -> Any:
    def act(world: World, _number: int) -> bool:
        return not sets(world.pending, world.mask, PORT)

    return compiled(act)


def unmasker(clears: Any = clear_mask) -> Any:
    def act(world: World, _number: int) -> bool:
        clears(world.mask, PORT)
        return load_acquire(world.pending, 0) & BIT == 0

    return compiled(act)


@compiled
def load_then_or(words: np.ndarray, index: int, value: int) -> int:
    """What fetch_or would be without `lock`."""
    before = load_acquire(words, index)
    store_release(words, index, before | value)
    return before


@compiled
def load_then_and(words: np.ndarray, index: int, value: int) -> int:
    before = load_acquire(words, index)
    store_release(words, index, before & value)
    return before


@compiled
def load_then_add(words: np.ndarray, index: int, value: int) -> int:
    before = load_acquire(words, index)
    store_release(words, index, before + value)
    return before


# --- the gate: post, is it asleep? against "asleep", is there a post? -------------------------


@compiled
def awake_and_idle(world: World) -> None:
    header = header_of(0)
    store_release(world.gate.words, header + STATE, IDLE)
    store_release(world.gate.words, header + TAKEN, 0)
    store_release(world.gate.words, ASLEEP, 0)


@compiled
def spins(_words: np.ndarray, _index: int, _seen: int, spin: np.ndarray) -> bool:
    """Remembers that the caller took the hypervisor for awake."""
    spin[0].limit_ns = 1
    return False


def poster(**others: Any) -> Any:
    calls = without(hypercall_gate.call, spin_until_changed=spins, **others)

    def act(world: World, _number: int) -> bool:
        world.spin[0].limit_ns = 0
        args = world.words.ctypes.data
        calls(world.gate, HYPERVISOR_GRANT_TABLE_OP, 0, args, 8, world.spin)
        return world.spin[0].limit_ns == 1

    return compiled(act)


def hypervisor(barrier: Any = fence) -> Any:
    """`GateServer.fall_asleep`, which is not compiled, step by step."""

    def act(world: World, _number: int) -> bool:
        store_release(world.gate.words, ASLEEP, 1)
        barrier()
        return find_posted(world.gate.words, 1, 0) == NOBODY

    return compiled(act)


PAIRS = {
    "ring": (producer, consumer, nothing),
    "event": (sender, waiter, pending_and_masked),
    "mask": (marker, unmasker, masked),
    "gate": (poster, hypervisor, awake_and_idle),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_never_do_both_miss(pair: str) -> None:
    one, other, prepare = PAIRS[pair]
    both, rounds = both_missed(one(), other(), prepare, seconds=AS_IT_IS_S)
    assert rounds > 0
    assert both == 0


def in_two_steps() -> Any:
    """set_pending without `lock`."""
    return without(set_pending, become_pending=without(become_pending, fetch_or=load_then_or))


# What takes the barrier out of one side, made when it is needed: each is compiled anew.
BROKEN = {
    "check_notify without its fence": lambda: (
        producer(without(check_notify, fence=no_fence)), consumer(), nothing
    ),
    "arm without its fence": lambda: (
        producer(), consumer(without(arm, fence=no_fence)), nothing
    ),
    "set_pending in two steps": lambda: (
        sender(in_two_steps()), waiter(), pending_and_masked
    ),
    "clear_pending in two steps": lambda: (
        sender(), waiter(without(clear_pending, fetch_and=load_then_and)), pending_and_masked
    ),
    "set_pending in two steps, masked": lambda: (
        marker(in_two_steps()), unmasker(), masked
    ),
    "clear_mask in two steps": lambda: (
        marker(), unmasker(without(clear_mask, fetch_and=load_then_and)), masked
    ),
    # The doorbell's fetch_add is a full barrier on x86, and would hide that the fence is gone.
    "a post without its fence": lambda: (
        poster(fence=no_fence, fetch_add=load_then_add), hypervisor(), awake_and_idle
    ),
    "a hypervisor that sleeps without its fence": lambda: (
        poster(), hypervisor(no_fence), awake_and_idle
    ),
}  # fmt: skip


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU sees its own stores in order")
@pytest.mark.parametrize("broken", BROKEN)
def test_without_a_barrier_both_do(broken: str) -> None:
    one, other, prepare = BROKEN[broken]()
    both, rounds = both_missed(one, other, prepare, seconds=UNTIL_SEEN_S, until_seen=True)
    assert both > 0, f"not seen in {rounds} rounds"
