"""When logs are written, and how much is read of them: a guest's may claim anything."""

from typing import Any

import numpy as np
import pytest

from common.hypercall import HypercallError
from common.trace_log import (
    BACK_ENTRIES,
    FRONT_ENTRIES,
    STATS_BYTES,
    STEP_ENTRY,
    front_log,
    trace_bytes,
    trace_logs,
    write_step,
)
from toolstack.trace_windows import TraceWindows


class Memory:
    """Segments of a machine with guests 1 and 2 and two vCPUs."""

    def __init__(self) -> None:
        self.trace = np.zeros(trace_bytes(2), np.uint8)
        self.stats = {domid: np.zeros(STATS_BYTES, np.uint8) for domid in (1, 2)}

    def segment(self, name: str, domid: int = 0) -> np.ndarray:
        if name == "trace":
            return self.trace
        if domid not in self.stats:
            raise HypercallError(3, "no such domain")
        return self.stats[domid]


def logs_of(taken: dict[str, Any]) -> dict[tuple[str, int], np.ndarray]:
    return {
        (kind, number): np.frombuffer(raw, STEP_ENTRY)
        for kind, number, _, raw in taken["logs"]
        if kind != "calls"
    }


def test_what_is_written_in_a_window_is_read_after_it_once() -> None:
    memory = Memory()
    windows = TraceWindows(memory, [1, 2], 2)  # type: ignore[arg-type]
    backs, front = trace_logs(memory.trace, 2).backs, front_log(memory.stats[2])
    write_step(*backs[1], 5, 0, 0, 0, 0, 0, 0, 0)
    until_ns = windows.open(60.0)
    for at in (6, 7):
        write_step(*backs[1], at, 0, 0, 0, 0, 0, 0, 0)
    write_step(*front, 8, 0, 0, 0, 0, 0, 0, 0)
    write_step(*front, until_ns, 0, 0, 0, 0, 0, 0, 0)
    found = {key: rows["at_ns"].tolist() for key, rows in logs_of(windows.take()).items()}
    assert found == {("back", 0): [], ("back", 1): [6, 7], ("front", 1): [], ("front", 2): [8]}
    write_step(*backs[1], 9, 0, 0, 0, 0, 0, 0, 0)  # the window is over
    assert [int(log.head["until_ns"][0]) for log in (*backs, front)] == [0, 0, 0]
    assert backs[1].head["written"][0] == 2
    windows.open(60.0)
    assert all(len(rows) == 0 for rows in logs_of(windows.take()).values())


def test_a_log_that_wraps_is_read_in_order() -> None:
    memory = Memory()
    windows = TraceWindows(memory, [], 2)  # type: ignore[arg-type]
    log = trace_logs(memory.trace, 2).backs[0]
    for many in (BACK_ENTRIES - 2, 5):
        windows.open(60.0)
        for at in range(many):
            write_step(*log, at + 1, 0, 0, 0, 0, 0, 0, 0)
        rows = logs_of(windows.take())["back", 0]
    assert rows["at_ns"].tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("claimed", [0, 1 << 63, (1 << 64) - 1])
def test_a_guest_that_claims_to_have_written_much_is_read_as_much_as_there_is(claimed: int) -> None:
    memory = Memory()
    windows = TraceWindows(memory, [1], 2)  # type: ignore[arg-type]
    front = front_log(memory.stats[1])
    for before in (0, claimed):
        front.head["written"] = before
        windows.open(60.0)
        front.head["written"] = claimed
        assert len(logs_of(windows.take())["front", 1]) <= FRONT_ENTRIES


def test_a_guest_that_has_died_is_left_out() -> None:
    memory = Memory()
    windows = TraceWindows(memory, [1, 2], 2)  # type: ignore[arg-type]
    windows.open(60.0)
    del memory.stats[1]
    assert ("front", 1) not in logs_of(windows.take())
