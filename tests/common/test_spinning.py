"""How long a waiter looks before it sleeps: bounded, adaptive, and never at others' expense."""

import os
import threading

import numpy as np
import pytest

from common.spinning import (
    SCHED,
    SPIN,
    TRIES_MAX,
    TRIES_MIN,
    YIELDS_MAX,
    new_spin,
    spin_until_changed,
    starts_to_run,
    stops_running,
)

FOREVER = 2**32 - 1


def words_of(value: int) -> np.ndarray:
    return np.array([0, value, 0], np.uint32)


def running(threads: int) -> np.ndarray:
    return np.array([threads], np.uint32)


def spinner(tries: int, nr_cpus: int = 2) -> np.ndarray:
    spin = new_spin(adaptive=True)
    spin["tries"], spin["nr_cpus"] = tries, nr_cpus
    return spin


def test_a_new_waiter_knows_its_cpus_and_stays_within_the_bounds() -> None:
    spin = new_spin(adaptive=True)
    assert (spin.dtype, spin.shape) == (SPIN, (1,))
    assert spin[0].item() == (16_000, 400_000, YIELDS_MAX, len(os.sched_getaffinity(0)))
    assert TRIES_MIN <= spin["tries"][0] <= TRIES_MAX


def test_the_machines_count_is_one_u32() -> None:
    assert SCHED.itemsize == 4
    assert SCHED["runnable"] == np.dtype("<u4")


def test_a_word_that_has_changed_is_seen_at_once() -> None:
    assert spin_until_changed(words_of(5), 1, 4, spinner(TRIES_MIN), running(1))


def test_a_spin_that_pays_doubles_the_limit_up_to_the_largest() -> None:
    spin, limits = spinner(150_000), []
    for _ in range(3):
        assert spin_until_changed(words_of(5), 1, 4, spin, running(1))
        limits.append(int(spin["tries"][0]))
    assert limits == [300_000, 400_000, 400_000]


def test_a_spin_that_does_not_halves_it_down_to_the_smallest() -> None:
    spin, limits = spinner(9_000), []
    for _ in range(4):
        assert not spin_until_changed(words_of(5), 1, 5, spin, running(1))
        limits.append(int(spin["tries"][0]))
    assert limits == [4_500, 2_250, 2_000, 2_000]


@pytest.mark.parametrize("runnable", [3, 4, 2**32 - 1])
def test_with_more_threads_than_cpus_a_waiter_yields_instead_and_not_for_long(
    runnable: int,
) -> None:
    spin, limits = spinner(FOREVER), []
    for _ in range(8):
        assert not spin_until_changed(words_of(5), 1, 5, spin, running(runnable))
        limits.append(int(spin["yields"][0]))
    assert limits == [128, 64, 32, 16, 8, 4, 4, 4]
    assert spin["tries"][0] == FOREVER


def test_yields_that_pay_are_allowed_to_be_more() -> None:
    spin, words, found = spinner(FOREVER), words_of(5), []
    spin["yields"] = FOREVER

    def look() -> None:
        found.append(spin_until_changed(words, 1, 5, spin, running(3)))

    waiter = threading.Thread(target=look, daemon=True)
    waiter.start()
    while not found:
        words[1] += 1  # whichever side sees it first: the waiter ends
        waiter.join(0.01)
    assert found == [True]
    assert spin["yields"][0] in (YIELDS_MAX, FOREVER)  # FOREVER: it never came to a yield


@pytest.mark.parametrize("runnable", [0, 1, 2])
def test_as_many_as_there_are_cpus_may_spin(runnable: int) -> None:
    spin = spinner(8_000)
    assert not spin_until_changed(words_of(5), 1, 5, spin, running(runnable))
    assert spin["tries"][0] == 4_000


def test_a_spin_ends_when_one_more_wants_to_run() -> None:
    spin, runnable, found = spinner(FOREVER), running(2), []

    def look() -> None:
        found.append(spin_until_changed(words_of(5), 1, 5, spin, runnable))

    waiter = threading.Thread(target=look, daemon=True)
    waiter.start()
    starts_to_run(runnable)
    waiter.join(60)
    assert found == [False]
    assert (spin["tries"][0], spin["yields"][0]) == (FOREVER, YIELDS_MAX // 2)


def test_a_spin_ends_when_another_thread_changes_the_word() -> None:
    words, found = words_of(5), []

    def look() -> None:
        found.append(spin_until_changed(words, 1, 5, spinner(FOREVER), running(2)))

    waiter = threading.Thread(target=look, daemon=True)
    waiter.start()
    words[1] = 6
    waiter.join(60)
    assert found == [True]


@pytest.mark.parametrize("value", [5, 6])
def test_a_waiter_that_is_not_adaptive_never_looks(value: int) -> None:
    spin = new_spin(adaptive=False)
    before = spin.copy()
    assert not spin_until_changed(words_of(value), 1, 5, spin, running(0))
    assert spin == before
    assert spin["tries_max"][0] == 0


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
