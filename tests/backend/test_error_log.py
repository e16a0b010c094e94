"""What a store could not do is said once, and counted."""

import logging

import pytest

from backend.error_log import COUNT_EVERY_S, ErrorLog


def test_the_first_of_a_kind_is_a_line_and_the_rest_is_a_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    errors = ErrorLog("vbd 1/51712", lambda: now)
    with caplog.at_level(logging.WARNING):
        errors.say("No space left", where="sector 8")
        for _ in range(999):
            errors.say("No space left")
        errors.say("Input/output error", 3)
        assert caplog.messages == [
            "vbd 1/51712: No space left (sector 8)",
            "vbd 1/51712: Input/output error",
        ]
        now = COUNT_EVERY_S
        errors.say("No space left")
        assert caplog.messages[2:] == [
            "vbd 1/51712: No space left: 1000 more requests have failed",
            "vbd 1/51712: Input/output error: 2 more requests have failed",
        ]
        errors.tell_counts()
        assert len(caplog.messages) == 4
