"""The control protocol's two ends, and a stranger at the other."""

import socket
from collections.abc import Iterator

import msgpack
import pytest

from toolstack.client import UNSENT_MAX, Client
from toolstack.failures import GuestFailed, MachineError
from toolstack.loadspec import ConfigError
from toolstack.wire import MESSAGE_MAX, ConnectionLost, Reader, Requests, kind_of, packed


class Ends:
    """A client's end, and the keeper's."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.settimeout(10)
        self.raw, self.requests, self.client = ours, Requests(ours), Client(theirs)

    def close(self) -> None:
        self.requests.close()
        self.client.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def test_a_request_is_a_number_a_word_and_arguments(ends: Ends) -> None:
    first, second = ends.requests.begin("one", 1, b"x"), ends.requests.begin("two")
    assert list(ends.client.receive()) == [[first, "one", 1, b"x"], [second, "two"]]
    assert list(ends.client.receive()) == []


def test_answers_find_their_requests_in_any_order(ends: Ends) -> None:
    first, second = ends.requests.begin("one"), ends.requests.begin("two")
    ends.client.more(first, "begun")
    ends.client.answer(second, {"b": 2})
    ends.client.more(first, "half")
    ends.client.answer(first, None)
    assert list(ends.requests.results(second)) == [{"b": 2}]
    assert list(ends.requests.results(first)) == ["begun", "half", None]


@pytest.mark.parametrize("error", [ConfigError("a"), MachineError("b"), GuestFailed("c")])
def test_an_error_arrives_as_what_it_is(ends: Ends, error: Exception) -> None:
    number = ends.requests.begin("one")
    ends.client.refuse(number, error)
    with pytest.raises(type(error), match=f"^{error}$") as caught:
        list(ends.requests.results(number))
    assert type(caught.value) is type(error)


def test_an_error_of_no_known_kind_is_the_machines(ends: Ends) -> None:
    assert kind_of(TypeError("x")) == "MachineError"
    ends.client._send(number := ends.requests.begin("one"), "error", "Strange", "text")
    with pytest.raises(MachineError, match=r"^text$"):
        list(ends.requests.results(number))


def test_what_nobody_waits_for_any_more_is_dropped(ends: Ends) -> None:
    first = ends.requests.begin("one")
    results = ends.requests.results(first)
    ends.client.more(first, 1)
    assert next(results) == 1
    results.close()
    ends.client.answer(first, 2)
    ends.client.answer(ends.requests.begin("two"), 3)
    assert list(ends.requests.results(first + 1)) == [3]


def test_a_machine_that_goes_is_told_to_who_waits(ends: Ends) -> None:
    number = ends.requests.begin("one")
    ends.client.close()
    with pytest.raises(ConnectionLost, match=r"^the machine is gone"):
        list(ends.requests.results(number))
    with pytest.raises(ConnectionLost, match=r"^the machine is gone"):
        ends.requests.begin("two")


@pytest.mark.parametrize(
    "sent",
    [
        b"\xc1",  # never used in MessagePack
        msgpack.packb(5),
        msgpack.packb([]),
        msgpack.packb([1]),
        msgpack.packb(["word", 1]),
        msgpack.packb({"a": 1}),
        msgpack.packb([1, "word", msgpack.ExtType(3, b"x")]),
        b"\x91" * 100_000,  # lists in lists
    ],
)
def test_what_is_no_message_ends_the_connection(ends: Ends, sent: bytes) -> None:
    ends.raw.sendall(sent)
    with pytest.raises(ConnectionLost):
        for _ in range(10):
            list(ends.client.receive())


def test_a_message_without_end_is_not_kept() -> None:
    reader, begun = Reader(), b"\xdd\xff\xff\xff\xff"  # an array of four thousand million
    with pytest.raises(ConnectionLost):
        list(reader.feed(begun))
        for _ in range(MESSAGE_MAX // (1 << 20) + 2):
            list(reader.feed(b"\xc6\x7f\xff\xff\xff" + bytes(1 << 20)))


def test_messages_come_in_any_pieces() -> None:
    reader, whole = Reader(), packed(7, "word", [1, 2], b"bytes") * 3
    found = [message for at in range(len(whole)) for message in reader.feed(whole[at : at + 1])]
    assert found == [[7, "word", [1, 2], b"bytes"]] * 3


def test_a_client_that_does_not_read_is_not_waited_for_and_in_the_end_lost(ends: Ends) -> None:
    piece = bytes(1 << 20)
    for _ in range(UNSENT_MAX // len(piece) + 2):
        ends.client.more(1, piece)  # which returns at once
    assert ends.client.wants_to_write
    with pytest.raises(ConnectionLost, match="does not read"):
        ends.client.flush()


def test_a_slow_client_gets_all_of_it(ends: Ends) -> None:
    number = ends.requests.begin("one")
    list(ends.client.receive())
    for at in range(20):
        ends.client.more(number, bytes([at]) * 100_000)
    ends.client.answer(number, None)
    results, got = ends.requests.results(number), []
    while ends.client.wants_to_write or len(got) < 21:
        if ends.client.wants_to_write:
            ends.client.flush()
        got.append(next(results))
    assert [each[0] for each in got[:-1]] == list(range(20))
