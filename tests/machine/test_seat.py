"""What becomes of an intent, and when what is to be done later is done."""

import itertools
from collections.abc import Callable
from typing import TypeVar

import pytest

from backend.vbd import BackendVbd
from common.faults import LocalFault, PeerFault
from common.handshake import Done, Event, Fail, Hypercall, Op, Start, Stop
from common.xenstore_exchange import Talk
from machine.seat import Seat, Timers

T = TypeVar("T")


class Driver(BackendVbd):
    """It wants what a test says, and keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(1, 51712, 8, True, itertools.count(1))
        self.told: list[Event] = []

    def handle(self, event: Event) -> list[object]:  # type: ignore[override]
        self.told.append(event)
        return []


class Hands:
    """They refuse, if there is a `fault`."""

    def __init__(self, fault: Exception | None = None) -> None:
        self._fault = fault
        self.did: list[object] = []

    def call(self, op: Op, argument: int) -> int:
        if self._fault is not None:
            raise self._fault
        self.did.append((op, argument))
        return 7

    def start(self, keeps: bool, ended: Callable[[str], None]) -> None:
        if self._fault is not None:
            raise self._fault
        self.ended = ended

    def stop(self) -> None:
        self.ended("")

    def fail(self, reason: str) -> None:
        self.did.append(reason)


class NoStore:
    """Nobody asks it."""

    def hold(self, talk: Talk[T], then: Callable[[T], None]) -> None:
        raise AssertionError


def seat(fault: Exception | None = None) -> tuple[Driver, Hands, Seat]:
    driver, hands = Driver(), Hands(fault)
    return driver, hands, Seat(driver, NoStore(), hands)


def test_a_call_brings_its_number_and_its_result_back() -> None:
    driver, hands, at = seat()
    at.do(Hypercall(41, Op.BIND_INTERDOMAIN, 5))
    assert (driver.told, hands.did) == ([Done(41, 7)], [(Op.BIND_INTERDOMAIN, 5)])


@pytest.mark.parametrize("fault", [PeerFault("no such gref"), LocalFault("no room")])
def test_what_is_refused_says_why(fault: Exception) -> None:
    driver, _, at = seat(fault)
    at.do(Hypercall(41, Op.MAP_RING, 8))
    assert driver.told == [Done(41, refused=str(fault))]


def test_a_start_is_answered_when_it_has_ended() -> None:
    driver, _, at = seat()
    at.do(Start(41, True))
    assert driver.told == []
    at.do(Stop(41))
    assert driver.told == [Done(41)]


def test_a_start_that_cannot_be_had_has_ended_at_once() -> None:
    driver, _, at = seat(LocalFault("no thread"))
    at.do(Start(41, True))
    assert driver.told == [Done(41, refused="no thread")]


def test_people_are_told_and_the_driver_is_not() -> None:
    driver, hands, at = seat()
    at.do(Fail("broken"))
    assert (driver.told, hands.did) == ([], ["broken"])


def test_what_is_to_be_done_later_is_done_in_the_order_of_its_time() -> None:
    now, done = [10.0], list[str]()
    timers = Timers(lambda: now[0])
    assert timers.pause_s() is None
    for seconds, name in ((3, "late"), (1, "soon"), (1, "soon, too")):
        timers.after(seconds, lambda name=name: done.append(name))  # type: ignore[misc]
    assert timers.pause_s() == 1
    timers.ring()
    assert done == []
    now[0] = 11.5
    timers.ring()
    assert (done, timers.pause_s()) == (["soon", "soon, too"], 1.5)
