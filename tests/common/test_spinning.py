"""How long a waiter looks before it sleeps: bounded, adaptive, and never at others' expense."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from common.spinning import (
    COMPANY_NS,
    LIMIT_NS_MAX,
    LIMIT_NS_MIN,
    PATIENCE_NS_MAX,
    PATIENCE_NS_MIN,
    PEER_NS,
    SLEEPS_MAX,
    SPIN,
    STRANGER_NS,
    WORTH_NS,
    must_sleep,
    new_spin,
    slept,
    spin_until_changed,
    spins,
    wants_short_slices,
    was_away,
)

FOREVER_NS = 10**15

# How long a yield took, by who had the CPU meanwhile; the bounds of each.
NOBODY = (0, PEER_NS - 1)
PEERS = (PEER_NS, STRANGER_NS - 1)
STRANGER = (STRANGER_NS, 10**12)

NOW_NS = 10**12  # when all of it happens


def words_of(value: int) -> np.ndarray:
    return np.array([0, value, 0], np.uint32)


def spinner(limit_ns: int = LIMIT_NS_MAX, patience_ns: int = PATIENCE_NS_MAX) -> np.ndarray:
    """A waiter with CPUs enough, whatever this machine has."""
    spin = new_spin(adaptive=True)
    spin["limit_ns"], spin["patience_ns"] = limit_ns, patience_ns
    spin["patience_max_ns"] = PATIENCE_NS_MAX
    return spin


def after(*yields_ns: int, **fields: int) -> np.ndarray:
    """A waiter that has been away so long, one time after the other."""
    spin = spinner()
    for name, value in fields.items():
        spin[name] = value
    for away_ns in yields_ns:
        was_away(spin, away_ns, NOW_NS)
    return spin


def sleeps_before_a_yield(spin: np.ndarray) -> int:
    """How often the waiter, its patience at an end, sleeps before it yields."""
    sleeps = 0
    while must_sleep(spin):
        sleeps += 1
    return sleeps


# --- the spin -----------------------------------------------------------------------------------


def test_a_new_waiter_may_wait_long_and_owes_no_sleep() -> None:
    spin = new_spin(adaptive=True)
    assert (spin.dtype, spin.shape) == (SPIN, (1,))
    assert spin["limit_ns"][0] == LIMIT_NS_MAX
    assert spins(spin)
    assert sleeps_before_a_yield(spin) == 0


@pytest.mark.parametrize("patience_ns", [0, PATIENCE_NS_MAX])
def test_a_word_that_has_changed_is_seen_at_once(patience_ns: int) -> None:
    spin = spinner(0, patience_ns)
    spin["sleeps_owed"] = 1
    before = spin.copy()
    assert spin_until_changed(words_of(5), 1, 4, spin)
    for clock in ("timespec", "started_ns", "now_ns", "patient_since_ns"):
        before[clock] = spin[clock]
    assert spin == before  # no yield, no sleep


def ends_by_itself(spin: np.ndarray) -> bool:
    """Does a spin on a word that does not change end within a minute? Ends it, if not."""
    words, found = words_of(5), []
    waiter = threading.Thread(
        target=lambda: found.append(spin_until_changed(words, 1, 5, spin)), daemon=True
    )
    waiter.start()
    waiter.join(60)
    words[1] = 6
    waiter.join(60)
    return found == [False]


@pytest.mark.parametrize("patience_ns", [0, PATIENCE_NS_MAX, FOREVER_NS])
@pytest.mark.parametrize("limit_ns", [0, LIMIT_NS_MIN, LIMIT_NS_MAX])
def test_a_word_that_does_not_change_is_not_waited_for_for_ever(
    limit_ns: int, patience_ns: int
) -> None:
    spin = spinner(limit_ns, patience_ns)
    spin["patience_max_ns"] = patience_ns  # of FOREVER_NS: nothing but the limit ends this spin
    assert ends_by_itself(spin)
    assert spin["limit_ns"][0] == limit_ns


@pytest.mark.parametrize("patience_ns", [0, PATIENCE_NS_MAX])
def test_who_owes_a_sleep_sleeps_when_its_patience_ends(patience_ns: int) -> None:
    spin = spinner(FOREVER_NS, patience_ns)  # the limit is far
    spin["sleeps_owed"] = 1
    assert ends_by_itself(spin)
    assert spin["sleeps_owed"][0] == 0


@pytest.mark.parametrize("patience_ns", [0, PATIENCE_NS_MAX])
def test_a_spin_ends_when_another_thread_changes_the_word(patience_ns: int) -> None:
    words, found = words_of(5), []

    def look() -> None:
        found.append(spin_until_changed(words, 1, 5, spinner(FOREVER_NS, patience_ns)))

    waiter = threading.Thread(target=look, daemon=True)
    waiter.start()
    words[1] = 6
    waiter.join(60)
    assert found == [True]


@pytest.mark.parametrize("value", [5, 6])
def test_a_waiter_that_is_not_adaptive_never_looks(value: int) -> None:
    spin = new_spin(adaptive=False)
    before = spin.copy()
    assert not spins(spin)
    assert not spin_until_changed(words_of(value), 1, 5, spin)
    assert spin == before


def test_sleeps_that_end_soon_make_the_next_spin_longer_and_long_ones_shorter() -> None:
    spin, limits = spinner(LIMIT_NS_MIN), []
    for slept_ns in (*[WORTH_NS] * 8, *[WORTH_NS + 1] * 8):
        slept(spin, slept_ns)
        limits.append(int(spin["limit_ns"][0]))
    growing = [min(LIMIT_NS_MIN * 2**n, LIMIT_NS_MAX) for n in range(1, 9)]
    shrinking = [max(LIMIT_NS_MAX // 2**n, LIMIT_NS_MIN) for n in range(1, 9)]
    assert limits == growing + shrinking


# --- who else wants the CPU ---------------------------------------------------------------------


@pytest.mark.parametrize("away_ns", PEERS)
def test_among_peers_the_next_wait_yields_at_its_first_look(away_ns: int) -> None:
    spin = after(away_ns)
    assert spin["patience_ns"][0] == 0
    assert sleeps_before_a_yield(spin) == 0


@pytest.mark.parametrize("away_ns", NOBODY)
def test_when_nobody_else_wants_the_cpu_the_next_yield_comes_later_and_later(away_ns: int) -> None:
    spin, waits = after(PEERS[0]), []
    for _ in range(8):
        was_away(spin, away_ns, NOW_NS)
        waits.append(int(spin["patience_ns"][0]))
    assert waits == [min(PATIENCE_NS_MIN * 2**n, PATIENCE_NS_MAX) for n in range(8)]
    assert sleeps_before_a_yield(spin) == 0


@pytest.mark.parametrize("away_ns", STRANGER)
def test_beside_a_stranger_it_sleeps_twice_as_often_from_yield_to_yield(away_ns: int) -> None:
    spin, sleeps = spinner(), []
    for _ in range(10):
        was_away(spin, away_ns, NOW_NS)
        assert spin["patience_ns"][0] == PATIENCE_NS_MAX
        sleeps.append(sleeps_before_a_yield(spin))
    assert sleeps == [0, 1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert SLEEPS_MAX == 64


def test_a_sleep_that_is_owed_is_owed_once() -> None:
    assert sleeps_before_a_yield(after(*[STRANGER[0]] * 4)) == 4
    spin = after(*[STRANGER[0]] * 4)
    spin["sleeps_owed"] = 0
    assert sleeps_before_a_yield(spin) == 0


@pytest.mark.parametrize("peers_ns", PEERS)
def test_peers_beside_a_stranger_are_worth_yielding_to(peers_ns: int) -> None:
    """A stranger's turn after a peer's is one lost slice, and no reason to sleep yet."""
    long_beside_a_stranger = [STRANGER[0]] * 10
    spin = after(*long_beside_a_stranger, peers_ns)
    assert (spin["patience_ns"][0], sleeps_before_a_yield(spin)) == (0, 0)
    was_away(spin, STRANGER[0], NOW_NS)
    assert sleeps_before_a_yield(spin) == 0
    was_away(spin, STRANGER[0], NOW_NS)
    assert sleeps_before_a_yield(spin) == 1


def test_each_yield_to_nobody_takes_one_sleep_off() -> None:
    stranger = STRANGER[0]
    sleeps = [sleeps_before_a_yield(after(*[stranger] * 4, *[0] * n, stranger)) for n in range(10)]
    assert sleeps == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]


SPINNER = f"""
import sys, threading, time
import numpy as np
from common.spinning import new_spin, spin_until_changed
words, spin = np.zeros(1, np.uint32), new_spin(True)
spin["limit_ns"] = spin["patience_ns"] = spin["patience_max_ns"] = {FOREVER_NS}
spin_until_changed(words, 0, 1, spin)
thread = threading.Thread(target=spin_until_changed, args=(words, 0, 0, spin))
thread.start()
print("spinning", flush=True)
sys.stdin.readline()
deadline = time.monotonic() + 60
while spin["company_until_ns"][0] == 0 and time.monotonic() < deadline:
    time.sleep(0.001)
words[0] = 1
thread.join()
print(int(spin["company_until_ns"][0]), flush=True)  # unlike what is owed, peers do not end it
"""


def test_the_clock_betrays_that_the_cpu_was_taken_without_a_yield() -> None:
    """Stopped as by a CPU quota, or preempted; it is so patient that it never yields itself."""
    process = subprocess.Popen(
        [sys.executable, "-c", SPINNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "spinning\n"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        time.sleep(2 * STRANGER_NS / 1e9)
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert int(process.stdout.readline()) > 0


# --- company ------------------------------------------------------------------------------------


@pytest.mark.parametrize("away_ns", [*NOBODY, *PEERS])
def test_among_peers_slices_are_as_long_as_ever(away_ns: int) -> None:
    assert not wants_short_slices(after(away_ns), NOW_NS)


def test_after_a_stranger_slices_are_short_for_a_while() -> None:
    spin = after(STRANGER[0], NOBODY[0])
    assert wants_short_slices(spin, NOW_NS)
    assert wants_short_slices(spin, NOW_NS + COMPANY_NS - 1)
    assert not wants_short_slices(spin, NOW_NS + COMPANY_NS)


# --- one CPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 129])
def test_nobody_is_patient_where_the_machine_has_more_threads_than_cpus(threads: int) -> None:
    cpus = len(os.sched_getaffinity(0))
    patient = cpus > 1 and threads <= cpus
    assert new_spin(True, threads)["patience_max_ns"][0] == (PATIENCE_NS_MAX if patient else 0)


def test_with_one_cpu_it_is_never_patient() -> None:
    """While it spins there nobody else runs, so each look is followed by a yield."""
    code = (
        "from common.spinning import *; s = new_spin(True);"
        "p = [int(s['patience_ns'][0])];"
        "[(was_away(s, a, 0), p.append(int(s['patience_ns'][0])))"
        f" for a in (0, {PEERS[0]}, 0, 0, {STRANGER[0]})];"
        "print(p, int(s['sleeps_owed'][0]))"
    )
    cpu = min(os.sched_getaffinity(0))
    result = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{cpu}]); {code}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (result.stdout, result.stderr) == ("[0, 0, 0, 0, 0, 0] 0\n", "")
