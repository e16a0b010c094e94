"""What the driver does for each effect."""

from typing import Any, cast

import pytest

from common.event_channel import event_words
from common.spinning import new_spin
from frontend import effects
from frontend.blkfront_info import BROKEN_ID, BROKEN_REASONS
from frontend.driver import SLEEP_MS, DeviceBroken, Driver
from tests.pair import Pair, pages


class Channel:
    """Writes down what is asked of it, and how many threads were runnable then."""

    def __init__(self) -> None:
        self.port = 3
        self.far_pending, self.far_mask = event_words(pages(1))
        self.asked: list[tuple[str, int]] = []
        self.driver: Driver | None = None

    def wake_far_end(self) -> None:
        self._note("wake")

    def wait(self, timeout_ms: int) -> bool:
        assert timeout_ms == SLEEP_MS
        self._note("wait")
        return False

    def _note(self, what: str) -> None:
        assert self.driver is not None
        self.asked.append((what, int(self.driver.runnable[0])))


class Stop(Exception):
    """Raised to end a run from outside."""


@pytest.fixture
def channel() -> Channel:
    channel, pair = Channel(), Pair()
    channel.driver = Driver(pair.front, cast(Any, channel), new_spin(False), pair.runnable)
    return channel


def run(channel: Channel, *script: int) -> list[str]:
    """Run a loop that has these effects; what was asked, `keep_going` included."""
    assert channel.driver is not None
    left = list(script)
    channel.driver.run(lambda: left.pop(0), lambda: channel._note("keep going"))
    assert left == [] and channel.driver.runnable[0] == 0
    return [what for what, _ in channel.asked]


def test_done_ends_the_run(channel: Channel) -> None:
    assert run(channel, effects.DONE) == []


def test_a_wake_wakes_and_goes_straight_on(channel: Channel) -> None:
    assert run(channel, effects.WAKE, effects.WAKE, effects.DONE) == ["wake", "wake"]


def test_a_slice_is_time_for_the_outside_world(channel: Channel) -> None:
    assert run(channel, effects.SLICE, effects.DONE) == ["keep going"]


def test_a_wait_sleeps_and_then_looks_at_the_outside_world(channel: Channel) -> None:
    assert run(channel, effects.WAIT, effects.DONE) == ["wait", "keep going"]
    assert channel.driver is not None
    assert channel.driver.dev.counters["waits"][0] == 1


def test_a_sleeper_is_not_runnable_and_a_runner_is(channel: Channel) -> None:
    run(channel, effects.WAKE, effects.WAIT, effects.SLICE, effects.DONE)
    assert channel.asked == [("wake", 1), ("wait", 0), ("keep going", 1), ("keep going", 1)]


def test_a_broken_device_is_an_error_that_says_how(channel: Channel) -> None:
    assert channel.driver is not None
    channel.driver.dev.front["broken"] = BROKEN_ID
    with pytest.raises(DeviceBroken, match=BROKEN_REASONS[BROKEN_ID]):
        run(channel, effects.BROKEN)
    assert channel.driver.runnable[0] == 0


@pytest.mark.parametrize("effect", [effects.SLICE, effects.WAIT])
def test_who_ends_a_run_from_outside_leaves_nothing_runnable(channel: Channel, effect: int) -> None:
    def stop() -> None:
        raise Stop

    assert channel.driver is not None
    with pytest.raises(Stop):
        channel.driver.run(lambda: effect, stop)
    assert channel.driver.runnable[0] == 0
