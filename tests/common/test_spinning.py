"""How long a waiter looks before it sleeps: bounded, adaptive, and never at others' expense."""

import os
import threading

import numpy as np
import pytest

from common.spinning import (
    LIMIT_NS_MAX,
    LIMIT_NS_MIN,
    SCHED,
    SPIN,
    WORTH_NS,
    new_spin,
    slept,
    spin_until_changed,
    spins,
    starts_to_run,
    stops_running,
)

FOREVER_NS = 10**15


def words_of(value: int) -> np.ndarray:
    return np.array([0, value, 0], np.uint32)


def running(threads: int) -> np.ndarray:
    return np.array([threads], np.uint32)


def spinner(limit_ns: int, nr_cpus: int = 2) -> np.ndarray:
    spin = new_spin(adaptive=True)
    spin["limit_ns"], spin["nr_cpus"] = limit_ns, nr_cpus
    return spin


def test_a_new_waiter_knows_its_cpus_and_may_wait_long() -> None:
    spin = new_spin(adaptive=True)
    assert (spin.dtype, spin.shape) == (SPIN, (1,))
    assert spin["limit_ns"][0] == LIMIT_NS_MAX
    assert spin["nr_cpus"][0] == len(os.sched_getaffinity(0))
    assert spins(spin)


def test_the_machines_count_is_one_u32() -> None:
    assert SCHED.itemsize == 4
    assert SCHED["runnable"] == np.dtype("<u4")


@pytest.mark.parametrize("runnable", [1, 1000])
def test_a_word_that_has_changed_is_seen_at_once(runnable: int) -> None:
    assert spin_until_changed(words_of(5), 1, 4, spinner(0), running(runnable))


@pytest.mark.parametrize("runnable", [0, 1, 2, 3, 1000, 2**32 - 1])
@pytest.mark.parametrize("limit_ns", [0, LIMIT_NS_MIN, LIMIT_NS_MAX])
def test_a_word_that_does_not_change_is_not_waited_for_for_ever(
    limit_ns: int, runnable: int
) -> None:
    spin = spinner(limit_ns)
    assert not spin_until_changed(words_of(5), 1, 5, spin, running(runnable))
    assert spin["limit_ns"][0] == limit_ns


def test_it_ends_though_the_crowd_came_and_went_meanwhile() -> None:
    """Whoever has yielded once or twice and then need not must not wait for more turns for ever."""
    runnable, done = running(3), threading.Event()

    def crowd() -> None:
        while not done.is_set():
            starts_to_run(runnable)
            stops_running(runnable)

    other = threading.Thread(target=crowd, daemon=True)
    other.start()
    for _ in range(20):
        runnable[0] = 3
        assert not spin_until_changed(words_of(5), 1, 5, spinner(LIMIT_NS_MIN), runnable)
    done.set()
    other.join(60)


@pytest.mark.parametrize("runnable", [2, 3])
def test_a_spin_ends_when_another_thread_changes_the_word(runnable: int) -> None:
    words, found = words_of(5), []

    def look() -> None:
        found.append(spin_until_changed(words, 1, 5, spinner(FOREVER_NS), running(runnable)))

    waiter = threading.Thread(target=look, daemon=True)
    waiter.start()
    words[1] = 6
    waiter.join(60)
    assert found == [True]


def test_sleeps_that_end_soon_make_the_next_spin_longer_and_long_ones_shorter() -> None:
    spin, limits = spinner(LIMIT_NS_MIN), []
    for slept_ns in (*[WORTH_NS] * 8, *[WORTH_NS + 1] * 8):
        slept(spin, slept_ns)
        limits.append(int(spin["limit_ns"][0]))
    growing = [min(LIMIT_NS_MIN * 2**n, LIMIT_NS_MAX) for n in range(1, 9)]
    shrinking = [max(LIMIT_NS_MAX // 2**n, LIMIT_NS_MIN) for n in range(1, 9)]
    assert limits == growing + shrinking


@pytest.mark.parametrize("value", [5, 6])
def test_a_waiter_that_is_not_adaptive_never_looks(value: int) -> None:
    spin = new_spin(adaptive=False)
    before = spin.copy()
    assert not spins(spin)
    assert not spin_until_changed(words_of(value), 1, 5, spin, running(0))
    assert spin == before


def test_who_starts_and_stops_is_counted_exactly() -> None:
    runnable = running(0)

    def work() -> None:
        for _ in range(200):
            starts_to_run(runnable)
            starts_to_run(runnable)
            stops_running(runnable)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert runnable[0] == 800
    for _ in range(800):
        stops_running(runnable)
    assert runnable[0] == 0
