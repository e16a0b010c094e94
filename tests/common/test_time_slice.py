"""Another slice is asked for, and nothing else about a thread's scheduling is changed."""

import os
import platform
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from common.time_slice import ATTR_WORDS, SCHED_GETATTR, SHORT_NS, exchange_slice

LINUX = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


class Seen(NamedTuple):
    """What a thread was told by asking twice, and how it was scheduled before and after."""

    first: int
    second: int
    before: tuple[int, int]
    after: tuple[int, int]


def in_a_thread(prepare: Callable[[], object]) -> Seen:
    """A thread that has done `prepare` asks for short slices, and then for what it had."""
    seen: list[Seen] = []

    def scheduled() -> tuple[int, int]:
        thread = threading.get_native_id()
        return os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, thread)

    def body() -> None:
        prepare()
        attr, before = np.zeros(ATTR_WORDS, np.uint64), scheduled()
        first = int(exchange_slice(attr, SHORT_NS))
        second = int(exchange_slice(attr, first))
        seen.append(Seen(first, second, before, scheduled()))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    return seen[0]


pytestmark = pytest.mark.skipif(SCHED_GETATTR < 0, reason="no numbers for this architecture")


def test_a_thread_gets_them_where_linux_has_them_and_learns_what_it_had() -> None:
    seen = in_a_thread(lambda: None)
    assert seen.before == seen.after
    assert seen.second == (SHORT_NS if LINUX >= (6, 12) else seen.first)


def test_who_is_nice_stays_nice() -> None:
    seen = in_a_thread(lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7))
    assert seen.before == seen.after
    assert seen.after[1] == 7


def test_the_policy_stays() -> None:
    seen = in_a_thread(lambda: os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)))
    assert seen.before == seen.after
    assert seen.after[0] == os.SCHED_BATCH


def test_who_is_not_scheduled_fairly_is_left_alone() -> None:
    seen = in_a_thread(lambda: os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0)))
    assert (seen.first, seen.second) == (0, 0)
    assert seen.before == seen.after
