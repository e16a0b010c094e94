"""What the driver does for each effect."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from common.event_channel import event_words
from common.faults import PeerFault
from common.spinning import new_spin
from frontend import effects
from frontend.blkfront_info import BROKEN_ID, BROKEN_REASONS
from frontend.driver import Driver
from tests.pair import Pair, pages

OTHERS = (31, 32)


class Channel:
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        self.port = 3
        self.far_pending, self.far_mask = event_words(pages(1))
        self.asked: list[str] = []
        self.driver: Driver | None = None

    def wake_far_end(self) -> None:
        self.asked.append("wake")

    def wait(self, timeout_ms: int, others: Sequence[int]) -> bool:
        """Forever, if need be: what else may happen is in `others`."""
        assert (timeout_ms, others) == (-1, OTHERS)
        self.asked.append("wait")
        return False


class Stop(Exception):
    """Raised to end a run from outside."""


@pytest.fixture
def channel() -> Channel:
    channel, pair = Channel(), Pair()
    channel.driver = Driver(pair.front, cast(Any, channel), new_spin(False))
    return channel


def run(channel: Channel, *script: int) -> list[str]:
    """Run a loop that has these effects; what was asked, `keep_going` included."""
    assert channel.driver is not None
    left = list(script)
    channel.driver.run(lambda: left.pop(0), lambda: channel.asked.append("keep going"), OTHERS)
    assert left == []
    return channel.asked


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


def test_a_broken_device_is_an_error_that_says_how(channel: Channel) -> None:
    assert channel.driver is not None
    channel.driver.dev.front["broken"] = BROKEN_ID
    with pytest.raises(PeerFault, match=BROKEN_REASONS[BROKEN_ID]):
        run(channel, effects.BROKEN)


@pytest.mark.parametrize("effect", [effects.SLICE, effects.WAIT])
def test_a_run_can_be_ended_from_outside_after_a_slice_or_a_sleep(
    channel: Channel, effect: int
) -> None:
    def stop() -> None:
        raise Stop

    assert channel.driver is not None
    with pytest.raises(Stop):
        channel.driver.run(lambda: effect, stop, OTHERS)
