"""The logs of a traced run: written while somebody asks for it, and no more than there is room."""

import time

import numpy as np
import pytest

from common.machine_memory import STATS
from common.trace_log import (
    BACK_ENTRIES,
    FRONT_ENTRIES,
    STATS_BYTES,
    Log,
    front_log,
    trace_bytes,
    trace_logs,
    write_step,
)

FOREVER = 1 << 62


def log() -> Log:
    return front_log(np.zeros(STATS_BYTES, np.uint8))


def write(to: Log, at_ns: int, index: int = 7) -> None:
    write_step(to.head, to.entries, at_ns, 3, 5, index, 9, 1 << 40, 1, 11)


def test_nothing_is_written_where_nobody_asks() -> None:
    off = log()
    write(off, 1)
    assert off.head["written"][0] == 0 and not off.entries.tobytes().strip(b"\0")
    assert not off.asks()()


def test_an_entry_says_what_began_when() -> None:
    on = log()
    on.head["until_ns"], on.head["limit"] = FOREVER, 10
    write(on, 123_456_789_012, index=0xFFFFFFFF)
    assert on.entries[0].tolist() == (123_456_789_012, 1 << 40, 0xFFFFFFFF, 9, 3, 5, 1, 11, 0)


def test_it_ends_in_time() -> None:
    on = log()
    on.head["until_ns"], on.head["limit"] = 100, 10
    for at_ns in (98, 99, 100, 101):
        write(on, at_ns)
    assert on.head["written"][0] == 2


def test_a_full_log_keeps_what_is_in_it_until_it_is_given_room() -> None:
    on = log()
    on.head["until_ns"], on.head["limit"] = FOREVER, FRONT_ENTRIES
    for at in range(FRONT_ENTRIES + 5):
        write(on, 1, index=at)
    assert on.head["written"][0] == FRONT_ENTRIES
    assert on.entries["index"].tolist() == list(range(FRONT_ENTRIES))
    on.head["limit"] = FRONT_ENTRIES + 2
    for at in range(5):
        write(on, 1, index=at)
    assert on.entries["index"][:3].tolist() == [0, 1, 2] and on.head["written"][0] == (
        FRONT_ENTRIES + 2
    )


@pytest.mark.parametrize(
    ("until_ns", "limit", "on"),
    [(0, 5, False), (1, 5, False), (FOREVER, 0, False), (FOREVER, 5, True)],
)
def test_who_asks_is_told_what_is_so_now(until_ns: int, limit: int, on: bool) -> None:
    asked = log()
    is_on = asked.asks()
    asked.head["until_ns"], asked.head["limit"] = until_ns, limit
    assert is_on() is on
    asked.head["until_ns"] = time.monotonic_ns() - 1
    assert not is_on()


def test_logs_do_not_share_a_byte_with_each_other_nor_with_what_a_guest_counts() -> None:
    segment = np.zeros(trace_bytes(3), np.uint8)
    logs = trace_logs(segment, 3)
    logs.rings[:] = (0x01010101, 0x01010101)
    for number, each in enumerate([logs.calls, *logs.backs]):
        each.head.view(np.uint8)[:] = each.entries.view(np.uint8)[:] = 2 + number
    assert len(logs.backs) == 3 and len(logs.backs[0].entries) == BACK_ENTRIES
    values, counts = np.unique(segment, return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5]  # each byte is somebody's
    assert counts.sum() == len(segment) and len(set(counts.tolist()[2:])) == 1
    stats = np.zeros(STATS_BYTES, np.uint8)
    front_log(stats).head["written"] = 0xFFFF
    front_log(stats).entries.view(np.uint8)[:] = 1
    assert not stats[: STATS.itemsize].any()
