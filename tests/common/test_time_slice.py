"""Short slices are asked for, and nothing else about a thread's scheduling is changed."""

import os
import platform
import threading
from collections.abc import Callable

import numpy as np
import pytest

from common.time_slice import SCHED_ATTR, SLICE_NS, ask_for_short_slices, scheduling

LINUX = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


def in_a_thread(first: Callable[[], object]) -> tuple[np.ndarray, np.ndarray]:
    """What a thread that has done `first` is scheduled by, before and after it asks."""
    seen: list[np.ndarray | None] = []

    def body() -> None:
        first()
        seen.append(scheduling())
        ask_for_short_slices()
        seen.append(scheduling())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    before, now = seen
    assert before is not None and now is not None
    return before, now


def nothing_else(before: np.ndarray, now: np.ndarray) -> None:
    for name in SCHED_ATTR.names or ():
        if name != "sched_runtime":
            assert now[name][0] == before[name][0], name


def test_the_layout_is_that_of_version_0() -> None:
    assert SCHED_ATTR.itemsize == 48


def test_a_thread_gets_them_where_linux_has_them() -> None:
    before, now = in_a_thread(lambda: None)
    nothing_else(before, now)
    asked = SLICE_NS if LINUX >= (6, 12) else before["sched_runtime"][0]
    assert now["sched_runtime"][0] == asked


def test_who_is_nice_stays_nice() -> None:
    before, now = in_a_thread(lambda: os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 7))
    nothing_else(before, now)
    assert now["sched_nice"][0] == 7


@pytest.mark.parametrize("policy", [os.SCHED_BATCH, os.SCHED_IDLE])
def test_the_policy_stays(policy: int) -> None:
    before, now = in_a_thread(lambda: os.sched_setscheduler(0, policy, os.sched_param(0)))
    nothing_else(before, now)
    assert now["sched_policy"][0] == policy
