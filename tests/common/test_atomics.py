"""Words that two processes write: indivisible, ordered, and read again each time."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from common.atomics import (
    cmpxchg,
    fence,
    fetch_add,
    fetch_and,
    fetch_or,
    load_acquire,
    pause,
    store_release,
)
from tests.common.processes import run_together, shared

WORDS = [np.uint16, np.uint32, np.uint64, np.int16, np.int32, np.int64]
UNSIGNED = [np.uint16, np.uint32, np.uint64]
APART = 16  # words of 64 bits between two that must not share a cache line

Word = Callable[[int], np.integer]


def array_of(kind: Word, *values: int) -> np.ndarray:
    return np.array(values, np.dtype(kind))


def largest(kind: Word) -> int:
    return int(np.iinfo(np.dtype(kind)).max)


# --- one thread -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WORDS)
def test_a_load_returns_the_word_and_a_store_replaces_it_alone(kind: Word) -> None:
    words = array_of(kind, 1, 2, 3)
    store_release(words, 1, kind(77))
    assert words.tolist() == [1, 77, 3]
    assert load_acquire(words, 1) == 77


@pytest.mark.parametrize("kind", UNSIGNED)
def test_a_word_keeps_all_its_bits(kind: Word) -> None:
    top = largest(kind)
    words = array_of(kind, 0, 0, 0)
    store_release(words, 1, kind(top))
    assert load_acquire(words, 1) == top
    assert words.tolist() == [0, top, 0]
    assert cmpxchg(words, 1, kind(top), kind(top - 1)) == top
    assert words.tolist() == [0, top - 1, 0]


@pytest.mark.parametrize("kind", WORDS)
def test_cmpxchg_takes_only_where_the_expected_value_was(kind: Word) -> None:
    words = array_of(kind, 5, 5, 5)
    assert cmpxchg(words, 1, kind(4), kind(9)) == 5
    assert words.tolist() == [5, 5, 5]
    assert cmpxchg(words, 1, kind(5), kind(9)) == 5
    assert words.tolist() == [5, 9, 5]


@pytest.mark.parametrize("kind", UNSIGNED)
def test_fetch_add_wraps_within_its_word(kind: Word) -> None:
    top = largest(kind)
    words = array_of(kind, 0, top, 0)
    assert fetch_add(words, 1, kind(3)) == top
    assert words.tolist() == [0, 2, 0]
    assert fetch_add(words, 1, kind(top)) == 2
    assert words.tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", WORDS)
def test_fetch_or_and_fetch_and_return_what_was_there(kind: Word) -> None:
    words = array_of(kind, 0, 0b0110, 0)
    assert fetch_or(words, 1, kind(0b0011)) == 0b0110
    assert words.tolist() == [0, 0b0111, 0]
    assert fetch_and(words, 1, kind(0b0101)) == 0b0111
    assert words.tolist() == [0, 0b0101, 0]


def test_a_value_is_converted_to_the_words_type() -> None:
    words = array_of(np.uint16, 0, 0, 0)
    store_release(words, 1, 0x12345)
    assert words.tolist() == [0, 0x2345, 0]
    assert fetch_add(words, 1, -1) == 0x2345
    assert words.tolist() == [0, 0x2344, 0]


def test_fence_and_pause_may_be_called_from_python() -> None:
    fence()
    pause()


BAD_ARRAYS = {
    "8 bits": np.zeros(4, np.uint8),
    "bool": np.zeros(4, np.bool_),
    "float": np.zeros(4, np.float64),
    "2-d": np.zeros((2, 2), np.uint32),
    "strided": np.zeros(8, np.uint32)[::2],
    "record": np.zeros(4, [("word", "<u4")]),
    "big-endian": np.zeros(4, ">u4"),
    "list": [1, 2, 3],
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_what_is_no_array_of_words_is_refused(name: str) -> None:
    array = BAD_ARRAYS[name]
    for call in (
        lambda: load_acquire(array, 0),
        lambda: store_release(array, 0, 1),
        lambda: cmpxchg(array, 0, 0, 1),
        lambda: fetch_add(array, 0, 1),
        lambda: fetch_or(array, 0, 1),
        lambda: fetch_and(array, 0, 1),
    ):
        with pytest.raises((TypeError, TypingError)):
            call()


# --- a loop that waits for another thread -----------------------------------------------------


@njit(nogil=True)
def wait_for(words: np.ndarray) -> int:
    """Say in word 1 that we look, then look at word 0 until it is set."""
    store_release(words, 1, 1)
    while load_acquire(words, 0) == 0:
        pass
    return 1


@pytest.mark.parametrize("kind", UNSIGNED)
def test_a_load_in_a_loop_sees_what_another_thread_stores(kind: Word) -> None:
    words = array_of(kind, 1, 0)
    wait_for(words)
    words[:] = 0
    waiter = threading.Thread(target=wait_for, args=(words,), daemon=True)
    waiter.start()
    while load_acquire(words, 1) == 0:
        assert waiter.is_alive()
    store_release(words, 0, kind(1))
    waiter.join(60)
    assert not waiter.is_alive()


# --- two processes ----------------------------------------------------------------------------

# Word 0 of a gate counts who is here, word 1 who has done. A test goes on until the two have met
# often enough to show what it is about, or for MOST steps where the machine keeps them apart.
ENOUGH = 20_000
MOST = 10_000_000


@njit(nogil=True)
def meet(gate: np.ndarray) -> None:
    """Begin only when both are here."""
    fetch_add(gate, 0, 1)
    while load_acquire(gate, 0) < 2:
        pause()


@njit(nogil=True)
def add(gate: np.ndarray, words: np.ndarray, step: int, done: np.ndarray) -> None:
    meet(gate)
    met, next_own = 0, np.zeros(1, words.dtype)
    while met < ENOUGH and done[0] < MOST and load_acquire(gate, 1) == 0:
        old = fetch_add(words, 1, step)
        met += old != next_own[0]
        next_own[0] = old + step
        done[0] += 1
    fetch_add(gate, 1, 1)


@njit(nogil=True)
def add_by_cmpxchg(gate: np.ndarray, words: np.ndarray, done: np.ndarray) -> None:
    meet(gate)
    met = 0
    while met < ENOUGH and done[0] < MOST and load_acquire(gate, 1) == 0:
        while True:
            old = load_acquire(words, 1)
            if cmpxchg(words, 1, old, old + 1) == old:
                break
            met += 1
        done[0] += 1
    fetch_add(gate, 1, 1)


@njit(nogil=True)
def toggle(gate: np.ndarray, words: np.ndarray, bit: int, lost: np.ndarray) -> None:
    """Set and clear a bit of our own in a word that the other end changes too."""
    meet(gate)
    met, steps, others = 0, 0, np.zeros(1, words.dtype)
    while met < ENOUGH and steps < MOST and load_acquire(gate, 1) == 0:
        before = fetch_or(words, 1, bit)
        after = fetch_and(words, 1, ~bit)
        lost[0] += (before & bit) != 0
        lost[0] += (after & bit) == 0
        met += (before & ~bit) != others[0]
        others[0] = after & ~bit
        steps += 1
    fetch_add(gate, 1, 1)


def gate_passed() -> np.ndarray:
    """A gate for one alone: it need not wait, and finds the other done."""
    return np.array([1, 1], np.uint32)


@pytest.mark.parametrize("kind", UNSIGNED)
def test_no_addition_of_two_processes_is_lost(kind: Word) -> None:
    gate, words, done = shared(2, np.uint32), shared(3, kind), shared(2 * APART, np.uint64)
    add(gate_passed(), array_of(kind, 0, 0, 0), 1, np.zeros(1, np.uint64))
    run_together((add, (gate, words, 1, done[:1])), (add, (gate, words, 3, done[APART:])))
    total = int(done[0]) + 3 * int(done[APART])
    assert words.tolist() == [0, total & largest(kind), 0]


@pytest.mark.parametrize("kind", UNSIGNED)
def test_no_increment_by_cmpxchg_of_two_processes_is_lost(kind: Word) -> None:
    gate, words, done = shared(2, np.uint32), shared(3, kind), shared(2 * APART, np.uint64)
    add_by_cmpxchg(gate_passed(), array_of(kind, 0, 0, 0), np.zeros(1, np.uint64))
    run_together(
        (add_by_cmpxchg, (gate, words, done[:1])), (add_by_cmpxchg, (gate, words, done[APART:]))
    )
    assert words.tolist() == [0, int(done.sum()) & largest(kind), 0]


@pytest.mark.parametrize("kind", UNSIGNED)
def test_two_processes_change_their_own_bits_of_one_word(kind: Word) -> None:
    gate, words, lost = shared(2, np.uint32), shared(3, kind), shared(2 * APART, np.uint64)
    toggle(gate_passed(), array_of(kind, 0, 0, 0), kind(1), np.zeros(1, np.uint64))
    run_together(
        (toggle, (gate, words, kind(1 << 3), lost[:1])),
        (toggle, (gate, words, kind(1 << 4), lost[APART:])),
    )
    assert words.tolist() == [0, 0, 0]
    assert lost.sum() == 0


WINDOW = 1024


@njit(nogil=True)
def send(words: np.ndarray, data: np.ndarray, messages: int) -> None:
    """Write message i, then say so in word 0; reuse its place once word 1 says it was read."""
    for index in range(messages):
        while index - np.int64(load_acquire(words, 1)) >= WINDOW:
            pause()
        data[index % WINDOW] = index + 1
        store_release(words, 0, index + 1)


@njit(nogil=True)
def receive(words: np.ndarray, data: np.ndarray, messages: int, wrong: np.ndarray) -> None:
    seen = 0
    while seen < messages:
        now = np.int64(load_acquire(words, 0))
        for index in range(seen, now):
            wrong[0] += data[index % WINDOW] != index + 1
        if now != seen:
            store_release(words, 1, now)
        seen = now


@pytest.mark.parametrize("kind", UNSIGNED)
def test_who_sees_a_released_word_sees_what_was_written_before_it(kind: Word) -> None:
    messages = 60_000
    words, data, wrong = shared(2, kind), shared(WINDOW, np.uint64), shared(1, np.uint64)
    send(words, data, 0)
    receive(words, data, 0, wrong)
    run_together((send, (words, data, messages)), (receive, (words, data, messages, wrong)))
    assert words.tolist() == [messages, messages]
    assert wrong[0] == 0


@njit(nogil=True)
def store_then_load(
    gate: np.ndarray, words: np.ndarray, own: int, other: int, seen: np.ndarray
) -> None:
    """Step i: say that we are at i, then see where the other is. seen[0]: how many steps."""
    meet(gate)
    met, step = 0, 0
    while met < ENOUGH and step + 1 < len(seen) and load_acquire(gate, 1) == 0:
        step += 1
        store_release(words, own, step)
        fence()
        seen[step] = load_acquire(words, other)
        met += seen[step] != seen[step - 1]
    seen[0] = step
    fetch_add(gate, 1, 1)


def test_of_two_that_store_fence_and_load_one_at_least_sees_the_others_store() -> None:
    """Dekker's: if I at step i saw you before your step j, then you at j see me at i or later."""
    gate, words = shared(2, np.uint32), shared(2 * APART, np.uint64)
    seen_by_a, seen_by_b = shared(2_000_000, np.uint64), shared(2_000_000, np.uint64)
    store_then_load(gate_passed(), np.zeros(2, np.uint64), 0, 1, np.zeros(2, np.uint64))
    run_together(
        (store_then_load, (gate, words, 0, APART, seen_by_a)),
        (store_then_load, (gate, words, APART, 0, seen_by_b)),
    )
    steps_of_a, steps_of_b = int(seen_by_a[0]), int(seen_by_b[0])
    step_of_a = np.arange(1, steps_of_a + 1)
    next_of_b = seen_by_a[1 : steps_of_a + 1].astype(np.int64) + 1
    came = next_of_b <= steps_of_b
    blind = seen_by_b[next_of_b[came]] < step_of_a[came]
    assert blind.sum() == 0
    assert (words[0], words[APART]) == (steps_of_a, steps_of_b)
