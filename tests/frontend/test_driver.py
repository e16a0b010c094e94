"""What the driver does for each effect, and for which ring."""

from typing import Any, cast

import pytest

from common import effects
from common.faults import PeerFault
from common.turns import RING_BITS
from frontend import driver
from frontend.blkfront_info import BROKEN_ID, BROKEN_REASONS
from frontend.driver import Driver
from tests.pair import Pair

Effect = tuple[int, int]  # and its ring


class Carrier:
    """Of ring `ring`; writes down what is asked of it. pipe: a descriptor, or what a poller has."""

    def __init__(self, asked: list[str], ring: int) -> None:
        self.polled, self.hung_up, self.carrier = f"carrier {ring}", False, self
        self._asked, self._ring = asked, ring

    def wake_far_end(self) -> None:
        self._asked.append(f"wake {self._ring}")

    def drain(self) -> None:
        self._asked.append(f"drain {self._ring}")


class World:
    """A driver of two rings, whose loop comes out with a script's effects. woken: the rings that
    the next polls find woken; then something else is readable.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.pairs = [Pair(), Pair()]
        self.driver = Driver(self.pairs[0].spin, self)
        self.carriers = [Carrier(self.asked, ring) for ring in range(2)]
        for ring, pair in enumerate(self.pairs):
            self.driver.attach(ring, pair.front, cast(Any, self.carriers[ring]))
        self.script: list[Effect] = []
        self.woken: list[list[int]] = []
        self.polled: set[str] = set()

    def run(self, *script: Effect, rings: tuple[int, ...] = (0, 1)) -> dict[int, str]:
        """Jobs of `rings`, with these effects."""
        self.script = list(script)
        jobs = {ring: self.pairs[ring].queued for ring in rings}
        failed = self.driver.run(jobs, self.keep_going)
        assert not self.script and not self.driver.running and not self.polled
        return failed

    def keep_going(self) -> None:
        self.asked.append("keep going")

    def effect(self, *_: object) -> int:
        effect, ring = self.script.pop(0)
        return effect << RING_BITS | ring

    def register(self, polled: str, _: int) -> None:
        self.polled.add(polled)

    def unregister(self, polled: str) -> None:
        self.polled.remove(polled)

    def poll(self, timeout_ms: int | None) -> list[tuple[str, int]]:
        # For ever, if need be: what else may happen is polled, too.
        assert (timeout_ms is None) == (not self.driver._suspended)
        self.asked.append(f"sleep on {', '.join(sorted(self.polled))}")
        return [(f"carrier {ring}", 1) for ring in (self.woken.pop(0) if self.woken else ())]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(driver, "serving", lambda *_: world.effect)
    return world


DONE = ((effects.DONE, 0), (effects.DONE, 1))


def test_all_done_ends_the_run(world: World) -> None:
    assert world.run(*DONE) == {}
    assert world.asked == []


def test_a_wake_wakes_its_rings_far_end_and_goes_straight_on(world: World) -> None:
    world.run((effects.WAKE, 1), (effects.WAKE, 0), *DONE)
    assert world.asked == ["wake 1", "wake 0"]


def test_a_slice_is_time_for_the_outside_world(world: World) -> None:
    world.run((effects.SLICE, 0), *DONE)
    assert world.asked == ["keep going"]


def test_a_wait_sleeps_on_all_and_then_looks_at_the_outside_world(world: World) -> None:
    world.run((effects.WAIT, 0), *DONE)
    assert world.asked == ["sleep on carrier 0, carrier 1", "keep going"]
    assert [pair.front.counters["waits"][0] for pair in world.pairs] == [1, 1]


def test_who_is_done_is_slept_on_no_more(world: World) -> None:
    world.run((effects.DONE, 0), (effects.WAIT, 0), (effects.DONE, 1))
    assert world.asked == ["sleep on carrier 1", "keep going"]


def test_only_who_was_woken_is_drained(world: World) -> None:
    world.woken = [[1]]
    world.run((effects.WAIT, 0), *DONE)
    assert world.asked[1:] == ["drain 1", "keep going"]


def test_a_far_end_that_has_hung_up_ends_no_more_sleeps(world: World) -> None:
    world.woken, world.carriers[1].hung_up = [[1]], True
    world.run((effects.WAIT, 0), (effects.WAIT, 0), *DONE)
    assert world.asked[3] == "sleep on carrier 0"


def test_wake_ups_without_an_event_cost_time_and_those_with_one_do_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(driver.time, "sleep", naps.append)
    for pending, nap in ((True, []), (False, [driver.FRUITLESS_NAP_S])):
        monkeypatch.setattr(driver, "any_pending", lambda _, pending=pending: pending)
        world.woken = [[0], [1], [0], [1]]
        world.run(*[(effects.WAIT, 0)] * 4, *DONE)
        assert naps == nap


def test_a_broken_device_fails_its_own_job_and_the_other_goes_on(world: World) -> None:
    world.pairs[1].front.front["broken"] = BROKEN_ID
    failed = world.run((effects.BROKEN, 1), (effects.WAKE, 0), (effects.DONE, 0))
    assert failed == {1: BROKEN_REASONS[BROKEN_ID]}
    assert world.asked == ["keep going", "wake 0"]


def test_one_job_that_fails_is_an_error_that_says_how(world: World) -> None:
    world.pairs[0].front.front["broken"] = BROKEN_ID
    world.script = [(effects.BROKEN, 0)]
    with pytest.raises(PeerFault, match=BROKEN_REASONS[BROKEN_ID]):
        world.driver.run_one(0, world.pairs[0].queued, world.keep_going)


def test_a_job_can_be_failed_from_outside(world: World) -> None:
    world.keep_going = lambda: world.driver.fail(0, "closed")  # type: ignore[method-assign]
    assert world.run((effects.SLICE, 0), (effects.DONE, 1)) == {0: "closed"}
    assert world.run((effects.DONE, 1), rings=(1,)) == {}  # the next run's failures are its own


@pytest.mark.parametrize("effect", [effects.SLICE, effects.WAIT])
def test_a_run_can_be_ended_from_outside_after_a_slice_or_a_sleep(
    world: World, effect: int
) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    world.keep_going = stop  # type: ignore[method-assign]
    with pytest.raises(Stop):
        world.run((effect, 0))
    assert not world.driver.running and not world.polled


def test_a_ring_that_is_suspended_waits_and_goes_on(world: World) -> None:
    another = Carrier(world.asked, 5)

    def keep_going() -> None:
        world.asked.append("keep going")
        calls = world.asked.count("keep going")
        if calls == 1:
            world.driver.suspend(1)
            assert sorted(world.driver.running) == [0, 1] and world.polled == {"carrier 0"}
        if calls == 2:
            world.driver.go_on(1, cast(Any, another))
            assert world.polled == {"carrier 0", "carrier 5"}

    world.keep_going = keep_going  # type: ignore[method-assign]
    world.run((effects.SLICE, 0), (effects.WAIT, 0), (effects.WAKE, 1), *DONE)
    assert world.asked == ["keep going", "sleep on carrier 0", "keep going", "wake 5"]


def test_where_all_are_suspended_there_is_nothing_to_run(world: World) -> None:
    def keep_going() -> None:
        world.asked.append("keep going")
        world.driver.suspend(0)
        if world.asked.count("keep going") == 3:
            world.driver.go_on(0, cast(Any, world.carriers[0]))

    world.keep_going = keep_going  # type: ignore[method-assign]
    world.run((effects.SLICE, 0), (effects.DONE, 0), rings=(0,))
    assert world.asked == ["keep going", *["sleep on ", "keep going"] * 2]


def test_who_is_suspended_may_fail(world: World) -> None:
    def keep_going() -> None:
        world.driver.suspend(1)
        world.driver.fail(1, "it is gone")

    world.keep_going = keep_going  # type: ignore[method-assign]
    assert world.run((effects.SLICE, 0), (effects.DONE, 0)) == {1: "it is gone"}
