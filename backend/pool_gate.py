"""Where the threads of a file pool and the loop they serve meet: a lock, a bell, and a descriptor.

Owns: the words of it, and the calls to the C library, all from compiled code. The lock and the
bell are `pthread_mutex_t` and `pthread_cond_t`, both zeros at first; the descriptor is an eventfd
that is ready while the completion ring has something.
Rule: EVENT_SET changes only under the lock, and is set before the ring's index: so who finds an
answer there finds the descriptor ready, and makes it quiet with the last one.
"""

from typing import Final

import numpy as np
from numba import types

from common.atomics import load_acquire, store_release
from common.compiled import kernel

# Places of u64 words.
LOCK: Final = 0  # 40 bytes of x86-64, 48 of aarch64
BELL: Final = 8  # 48 bytes
EVENT_FD: Final = 16
EVENT_SET: Final = 17
CLOSING: Final = 18
ONE: Final = 19  # what is written to the eventfd
SCRATCH: Final = 20
GATE_WORDS: Final = 24

_mutex_lock = types.ExternalFunction("pthread_mutex_lock", types.intc(types.uintp))
_mutex_unlock = types.ExternalFunction("pthread_mutex_unlock", types.intc(types.uintp))
_cond_wait = types.ExternalFunction("pthread_cond_wait", types.intc(types.uintp, types.uintp))
_cond_broadcast = types.ExternalFunction("pthread_cond_broadcast", types.intc(types.uintp))
_read = types.ExternalFunction("read", types.intp(types.intc, types.uintp, types.uintp))
_write = types.ExternalFunction("write", types.intp(types.intc, types.uintp, types.uintp))


@kernel
def _at(gate: np.ndarray, word: int) -> np.uint64:
    """The address of a word of the gate."""
    return np.uint64(gate.ctypes.data + 8 * word)


@kernel
def lock(gate: np.ndarray) -> None:
    """Held for a few words' time only."""
    _mutex_lock(_at(gate, LOCK))


@kernel
def unlock(gate: np.ndarray) -> None:
    """And what was written is seen by who locks next."""
    _mutex_unlock(_at(gate, LOCK))


@kernel
def wait_for_bell(gate: np.ndarray) -> None:
    """Locked before and after; it may return for nothing."""
    _cond_wait(_at(gate, BELL), _at(gate, LOCK))


@kernel
def wake_pool(gate: np.ndarray) -> None:
    """There is something in the submission ring, or CLOSING is set."""
    lock(gate)
    _cond_broadcast(_at(gate, BELL))
    unlock(gate)


@kernel
def signal_answer(gate: np.ndarray) -> None:
    """Locked, before an answer's index is stored: make the descriptor ready."""
    if gate[EVENT_SET] == 0:
        gate[EVENT_SET] = np.uint64(1)
        _write(np.int32(gate[EVENT_FD]), _at(gate, ONE), np.uint64(8))


@kernel
def quiet(gate: np.ndarray, cq: np.ndarray, cq_head: int, cq_tail: int) -> None:
    """The last answer is taken: the descriptor is not ready, unless one has come meanwhile.

    cq: u32 words of the completion ring; cq_head, cq_tail: where its indices are.
    """
    lock(gate)
    if load_acquire(cq, cq_head) == load_acquire(cq, cq_tail) and gate[EVENT_SET] != 0:
        gate[EVENT_SET] = np.uint64(0)
        make_quiet(gate[EVENT_FD], gate)
    unlock(gate)


@kernel
def make_quiet(event_fd: int, gate: np.ndarray) -> None:
    """An eventfd, which has something or does not block, has nothing."""
    _read(np.int32(event_fd), _at(gate, SCRATCH), np.uint64(8))


@kernel
def close_gate(gate: np.ndarray) -> None:
    """Whoever waits, or comes to wait, finds CLOSING set."""
    store_release(gate, CLOSING, 1)
    wake_pool(gate)
