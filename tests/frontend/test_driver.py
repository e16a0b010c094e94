"""What the driver does for each effect."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from common import effects
from common.faults import PeerFault
from frontend import driver
from frontend.blkfront_info import BROKEN_ID, BROKEN_REASONS
from frontend.driver import Driver
from frontend.stepper import LOOKS_PER_SLICE
from tests.pair import Pair

OTHERS = (31, 32)


class Channel:
    """Writes down what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.script: list[int] = []
        self.pair = Pair()
        self.driver = Driver(self.pair.front, cast(Any, self))

    def effect(self, *args: object) -> int:
        """What the loop comes out with: next in the script, which may never end."""
        assert args[2:] == (0, LOOKS_PER_SLICE, 0)
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]

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
def channel(monkeypatch: pytest.MonkeyPatch) -> Channel:
    channel = Channel()
    monkeypatch.setattr(driver, "direct", lambda *_: channel.effect)
    return channel


def run(channel: Channel, *script: int) -> list[str]:
    """Run a loop that has these effects; what was asked, `keep_going` included."""
    channel.script = list(script)
    keep_going = lambda: channel.asked.append("keep going")  # noqa: E731
    channel.driver.run(channel.pair.queued, keep_going, OTHERS)
    assert len(channel.script) == 1
    return channel.asked


def test_done_ends_the_run(channel: Channel) -> None:
    assert run(channel, effects.DONE) == []


def test_a_wake_wakes_and_goes_straight_on(channel: Channel) -> None:
    assert run(channel, effects.WAKE, effects.WAKE, effects.DONE) == ["wake", "wake"]


def test_a_slice_is_time_for_the_outside_world(channel: Channel) -> None:
    assert run(channel, effects.SLICE, effects.DONE) == ["keep going"]


def test_a_wait_sleeps_and_then_looks_at_the_outside_world(channel: Channel) -> None:
    assert run(channel, effects.WAIT, effects.DONE) == ["wait", "keep going"]
    assert channel.driver.dev.counters["waits"][0] == 1


def test_a_broken_device_is_an_error_that_says_how(channel: Channel) -> None:
    channel.driver.dev.front["broken"] = BROKEN_ID
    with pytest.raises(PeerFault, match=BROKEN_REASONS[BROKEN_ID]):
        run(channel, effects.BROKEN)


@pytest.mark.parametrize("effect", [effects.SLICE, effects.WAIT])
def test_a_run_can_be_ended_from_outside_after_a_slice_or_a_sleep(
    channel: Channel, effect: int
) -> None:
    def stop() -> None:
        raise Stop

    channel.script = [effect]
    with pytest.raises(Stop):
        channel.driver.run(channel.pair.queued, stop, OTHERS)
