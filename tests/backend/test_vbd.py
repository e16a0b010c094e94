"""The backend's driver alone: events in, intents out, and numbers that are heeded once."""

import itertools
from typing import Any, TypeVar

import pytest

from backend.vbd import BackendVbd
from common.handshake import (
    AGAIN_MAX,
    Again,
    Committed,
    Done,
    Event,
    Fail,
    Gone,
    Hypercall,
    Intent,
    Leave,
    Look,
    Op,
    Resized,
    Seen,
    Start,
    Stirred,
    Stop,
    Write,
)
from common.xenbus import (
    CLOSED,
    CLOSING,
    CONNECTED,
    INIT_WAIT,
    INITIALISED,
    INITIALISING,
)

T = TypeVar("T", bound=Intent)

PUBLISHED = {
    "ring-ref": b"8",
    "event-channel": b"5",
    "protocol": b"x86_64-abi",
    "feature-persistent": b"1",
}


class End:
    """The driver, and what it wants now."""

    def __init__(self) -> None:
        self.vbd = BackendVbd(1, 51712, 4096, True, itertools.count(1))
        self.wants: list[Intent] = []

    def tell(self, event: Event) -> None:
        self.wants = self.vbd.handle(event)

    def wanted(self, kind: type[T]) -> T:
        """The one intent, which is of `kind`."""
        (intent,) = self.wants
        assert isinstance(intent, kind)
        return intent

    def see(self, other: int | None, own: int | None = None, **keys: bytes) -> None:
        """Stirred, if it does not look already, it sees these states and keys."""
        if not any(isinstance(intent, Look) for intent in self.wants):
            self.tell(Stirred())
        values = {f"{self.vbd.path}/online": b"1"}
        if other is not None:
            values[f"{self.vbd.other}/state"] = b"%d" % other
        if own != -1:
            values[f"{self.vbd.path}/state"] = b"%d" % (self.vbd.state if own is None else own)
        values |= {f"{self.vbd.other}/{key}": value for key, value in keys.items()}
        self.tell(Seen(self.wanted(Look).number, values))

    def commit(self, **values: Any) -> None:
        """What it writes is written; `values` are among it."""
        write = self.wanted(Write)
        assert values.items() <= dict(write.values).items()
        self.tell(Committed(write.number))

    def call(self, op: Op, argument: int, value: int = 0, refused: str = "") -> None:
        """It makes this hypercall, and is answered."""
        call = self.wanted(Hypercall)
        assert (call.op, call.argument) == (op, argument)
        self.tell(Done(call.number, value, refused))

    def announce(self) -> None:
        self.see(INITIALISING)
        self.commit()
        self.commit(state=INIT_WAIT)

    def connect(self, state: int = INITIALISED) -> Start:
        self.announce()
        self.see(state, **PUBLISHED)
        self.call(Op.MAP_RING, 8)
        self.call(Op.BIND_INTERDOMAIN, 5, 77)
        self.commit(sectors=4096)
        start, write = self.wants
        assert isinstance(start, Start) and isinstance(write, Write)
        self.wants = [write]
        self.commit(state=CONNECTED)
        self.see(state)
        assert self.wants == [] and self.vbd.state == CONNECTED
        return start

    def disconnect(self, start: Start) -> None:
        assert self.wanted(Stop).number == start.number
        self.tell(Done(start.number))
        self.call(Op.CLOSE, 77)
        self.call(Op.UNMAP_RING, 0)


@pytest.mark.parametrize("state", [INITIALISED, CONNECTED])
def test_a_frontend_that_is_connected_has_said_all(state: int) -> None:
    assert End().connect(state).keeps


def test_a_driver_looks_once_however_often_it_is_stirred() -> None:
    end = End()
    end.tell(Stirred())
    first = end.wanted(Look)
    for _ in range(3):
        end.tell(Stirred())
        assert end.wants == []
    end.tell(Seen(first.number, {f"{end.vbd.path}/state": b"1"}))
    assert end.wanted(Look).number > first.number  # what it was stirred for may have come after


@pytest.mark.parametrize("kind", [Seen, Again, Committed, Gone, Done])
def test_an_event_with_an_old_number_is_nothing(kind: Any) -> None:
    end = End()
    end.announce()
    end.see(INITIALISING)
    for number in range(1, end.vbd.number()):
        end.tell(kind(number, {}) if kind is Seen else kind(number))
        assert (end.wants, end.vbd.state) == ([], INIT_WAIT)


def test_an_answer_is_heeded_once() -> None:
    end = End()
    end.see(INITIALISING)
    write = end.wanted(Write)
    end.commit()
    end.tell(Committed(write.number))
    assert end.wants == []
    assert end.vbd.state == INIT_WAIT


def test_a_transaction_that_is_lost_is_tried_again_and_in_the_end_not_waited_for() -> None:
    end = End()
    end.see(INITIALISING)
    numbers = set()
    for _ in range(AGAIN_MAX):
        write = end.wanted(Write)
        assert write.whole and write.number not in numbers
        numbers.add(write.number)
        end.tell(Again(write.number))
    assert not end.wanted(Write).whole
    end.commit()
    end.commit(state=INIT_WAIT)


def test_a_look_that_is_lost_is_taken_again() -> None:
    end = End()
    end.tell(Stirred())
    end.tell(Again(end.wanted(Look).number))
    assert isinstance(end.wants[0], Look)


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"ring-ref": b"x"}, "ring-ref b'x' is not a number"),
        ({"event-channel": b"-1"}, "event-channel b'-1' is not a number"),
        ({"protocol": b"x86_32-abi"}, "protocol b'x86_32-abi' is not 'x86_64-abi'"),
    ],
)
def test_nonsense_closes_the_device_before_anything_is_mapped(
    keys: dict[str, bytes], reason: str
) -> None:
    end = End()
    end.announce()
    end.see(INITIALISED, **{**PUBLISHED, **keys})
    fail, end.wants = end.wants[0], end.wants[1:]
    assert fail == Fail(reason)
    end.commit(state=CLOSING, error=reason)


def test_a_channel_that_is_refused_gives_the_ring_back() -> None:
    end = End()
    end.announce()
    end.see(INITIALISED, **PUBLISHED)
    end.call(Op.MAP_RING, 8)
    end.call(Op.BIND_INTERDOMAIN, 5, refused="event-channel 5: EINVAL")
    assert end.wants.pop(0) == Fail("event-channel 5: EINVAL")
    end.call(Op.UNMAP_RING, 0)
    end.commit(state=CLOSING, error="event-channel 5: EINVAL")


def test_a_directory_that_goes_while_it_connects_gives_all_back() -> None:
    end = End()
    end.announce()
    end.see(INITIALISED, **PUBLISHED)
    end.call(Op.MAP_RING, 8)
    end.call(Op.BIND_INTERDOMAIN, 5, 77)
    end.tell(Gone(end.wanted(Write).number))
    end.call(Op.CLOSE, 77)
    end.call(Op.UNMAP_RING, 0)
    end.see(CLOSED, own=-1)
    assert end.vbd.finished and end.wants == []


def test_a_ring_that_is_slow_to_stop_holds_up_nothing_but_its_own_close() -> None:
    end = End()
    start = end.connect()
    end.see(CLOSED)
    assert end.wanted(Stop).number == start.number
    end.tell(Stirred())
    assert end.wants == []
    end.tell(Done(start.number))
    end.call(Op.CLOSE, 77)
    end.call(Op.UNMAP_RING, 0)
    end.commit(state=CLOSED)


def test_a_broken_ring_closes_its_own_connection_and_no_later_one() -> None:
    end = End()
    first = end.connect()
    end.tell(Done(first.number, refused="broken"))
    assert end.wants.pop(0) == Fail("broken")
    end.call(Op.CLOSE, 77)
    end.call(Op.UNMAP_RING, 0)
    end.commit(state=CLOSING, error="broken")
    end.see(CLOSED)
    end.commit(state=CLOSED)
    end.see(INITIALISING)
    end.commit()
    end.commit(state=INIT_WAIT)
    end.see(INITIALISED, **PUBLISHED)
    end.call(Op.MAP_RING, 8)
    end.call(Op.BIND_INTERDOMAIN, 5, 77)
    end.commit()
    second = end.wants[0]
    assert isinstance(second, Start) and second.number > first.number
    del end.wants[0]
    end.commit(state=CONNECTED)
    end.see(CONNECTED)
    end.tell(Done(first.number, refused="broken"))
    assert (end.wants, end.vbd.state) == ([], CONNECTED)


def test_a_directory_made_again_is_left_once_its_frontend_has_let_go() -> None:
    end = End()
    start = end.connect()
    end.see(CONNECTED, own=INITIALISING)
    end.disconnect(start)
    end.commit(error="the frontend has not let go of the disk that was here before")
    assert not end.vbd.finished
    end.see(CLOSED, own=INITIALISING)
    assert end.vbd.finished


def test_who_is_to_leave_lets_go_of_everything() -> None:
    end = End()
    start = end.connect()
    end.tell(Leave())
    end.disconnect(start)
    assert end.vbd.finished and end.wants == []


def test_nothing_urgent_waits_for_a_look() -> None:
    """Whose turn may be long in coming: its guest has storms."""
    for event in (lambda start: Leave(), lambda start: Done(start.number, refused="broken")):
        end = End()
        start = end.connect()
        end.tell(Stirred())
        look = end.wanted(Look)
        end.tell(event(start))
        assert not isinstance(end.wants[-1], Look)
        wants = end.wants
        end.tell(Seen(look.number, {}))  # late: nobody awaits it
        assert end.wants == []
        end.wants = [intent for intent in wants if not isinstance(intent, Fail)]
        if isinstance(end.wants[0], Stop):
            end.tell(Done(start.number))
        end.call(Op.CLOSE, 77)
        end.call(Op.UNMAP_RING, 0)
        if not end.vbd.finished:
            end.commit(state=CLOSING, error="broken")
        assert end.wanted(Look).number > look.number


def test_another_size_is_told_with_the_state_as_it_is() -> None:
    """As Linux's xen_vbd_resize writes it: the frontend's watch is on `state`."""
    end = End()
    end.connect()
    end.tell(Resized(8192))
    write = end.wanted(Write)
    assert list(write.values.items()) == [("sectors", 8192), ("state", CONNECTED)]
    assert write.whole and write.since == CONNECTED
    end.tell(Again(write.number))
    end.commit(sectors=8192, state=CONNECTED)
    assert end.wants == [] and end.vbd.state == CONNECTED


def test_a_disk_that_is_not_connected_says_its_size_when_it_is() -> None:
    end = End()
    end.announce()
    looks = end.wants
    end.tell(Resized(8192))
    assert end.wants == []
    end.wants = looks
    end.see(INITIALISED, **PUBLISHED)
    end.call(Op.MAP_RING, 8)
    end.call(Op.BIND_INTERDOMAIN, 5, 77)
    end.commit(sectors=8192)
