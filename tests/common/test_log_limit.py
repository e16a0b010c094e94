"""So many log lines in so long, and the next one says how many were missing."""

import logging

from common.log_limit import BURST, INTERVAL_S, LogLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(limit: LogLimit, text: str) -> str | None:
    record = logging.LogRecord("name", logging.WARNING, "file", 1, "vbd %s", (text,), None)
    return record.getMessage() if limit.filter(record) else None


def test_a_burst_is_shown_and_what_is_over_it_is_not() -> None:
    limit = LogLimit(Clock())
    lines = [shown(limit, str(number)) for number in range(BURST + 3)]
    assert lines == [f"vbd {number}" for number in range(BURST)] + [None] * 3


def test_after_the_interval_the_next_says_how_many_are_missing() -> None:
    clock = Clock()
    limit = LogLimit(clock)
    for number in range(BURST + 3):
        shown(limit, str(number))
    clock.now = INTERVAL_S
    assert shown(limit, "later %d") == "(3 lines were not shown) vbd later %d"
    assert shown(limit, "and on") == "vbd and on"


def test_without_too_many_nothing_is_said_of_them() -> None:
    clock = Clock()
    limit = LogLimit(clock)
    for _ in range(3):
        for number in range(BURST):
            assert shown(limit, str(number)) == f"vbd {number}"
        clock.now += INTERVAL_S
