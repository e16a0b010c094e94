"""The client's end of the protocol without a socket: whose answer is whose, how many at once."""

import pytest

from common.xenstore_exchange import (
    PIPELINED_MAX,
    Broken,
    Exchange,
    Reply,
    Request,
    Talk,
    XenStoreError,
)
from common.xenstore_talks import directory, look, write_if_there
from common.xenstore_wire import MessageType, Packet, Parser, pack

READ = MessageType.READ


class Store:
    """What is asked, and a test's answers to it."""

    def __init__(self) -> None:
        self.exchange = Exchange()
        self._parser = Parser()
        self.asked: list[Packet] = []

    def take(self) -> list[Packet]:
        """The requests that have come since the last look."""
        packets = self._parser.feed(bytes(self.exchange.out))
        self.exchange.out.clear()
        self.asked += packets
        return packets

    def answer(self, packet: Packet, payload: bytes) -> None:
        self.exchange.feed(pack(packet._replace(payload=payload)))

    def refuse(self, packet: Packet, name: str) -> None:
        error = packet._replace(type=MessageType.ERROR, payload=name.encode() + b"\0")
        self.exchange.feed(pack(error))


def hold(store: Store, talk: Talk[object]) -> list[object]:
    """What comes of the conversation, once something has."""
    came: list[object] = []
    store.exchange.hold(talk, came.append)
    return came


def test_each_answer_goes_to_who_asked_in_whatever_order_they_come() -> None:
    store = Store()
    came: dict[str, list[Reply]] = {}
    for path in ("/a", "/b", "/c"):
        store.exchange.ask(
            [Request(READ, path)], lambda replies, at=path: came.update({at: replies})
        )
    first, second, third = store.take()
    store.answer(third, b"3")
    store.refuse(first, "ENOENT")
    assert came["/c"] == [b"3"] and isinstance(came["/a"][0], XenStoreError)
    assert (came["/a"][0].name, came["/a"][0].path, "/b" in came) == ("ENOENT", "/a", False)
    store.answer(second, b"2")
    assert came["/b"] == [b"2"]


def test_one_slow_answer_holds_up_its_own_conversation_only() -> None:
    store = Store()
    slow, quick = hold(store, look(["/slow"])), hold(store, look(["/quick"]))
    begin_slow, begin_quick = store.take()
    store.answer(begin_quick, b"2\0")
    read, end = store.take()
    assert (read.tx_id, end.tx_id) == (2, 2)
    store.answer(read, b"x")
    store.answer(end, b"OK\0")
    assert (quick, slow) == ([{"/quick": b"x"}], [])
    store.answer(begin_slow, b"1\0")
    read, end = store.take()
    store.refuse(read, "ENOENT")
    store.answer(end, b"OK\0")
    assert slow == [{}]


def test_no_more_are_on_their_way_than_the_store_takes_in() -> None:
    store = Store()
    answered: list[list[Reply]] = []
    store.exchange.ask([Request(READ, f"/{n}") for n in range(50)], answered.append)
    taken = store.take()
    assert len(taken) == PIPELINED_MAX
    while taken:
        store.answer(taken.pop(0), b"")
        taken += store.take()
        assert len(taken) <= PIPELINED_MAX
    assert [packet.payload for packet in store.asked] == [b"/%d\0" % n for n in range(50)]
    assert len(answered) == 1 and len(answered[0]) == 50


def test_what_cannot_be_sent_is_refused_whole() -> None:
    store = Store()
    with pytest.raises(XenStoreError, match="E2BIG"):
        store.exchange.ask(
            [Request(READ, "/a"), Request(MessageType.WRITE, "/b", bytes(4096))], lambda _: None
        )
    assert store.take() == []


@pytest.mark.parametrize(
    "packet",
    [
        Packet(READ, 2, 0, b""),
        Packet(READ, 0, 0, b""),
        Packet(MessageType.WRITE, 1, 0, b""),
        Packet(MessageType.WATCH_EVENT, 0, 0, b"no token\0"),
    ],
)
def test_what_is_not_the_protocol_is_said(packet: Packet) -> None:
    store = Store()
    store.exchange.ask([Request(READ, "/a")], lambda _: None)
    with pytest.raises(Broken):
        store.exchange.feed(pack(packet))


def test_an_answer_counts_once() -> None:
    store = Store()
    came: list[list[Reply]] = []
    store.exchange.ask([Request(READ, "/a")], came.append)
    (packet,) = store.take()
    store.answer(packet, b"1")
    with pytest.raises(Broken):
        store.answer(packet, b"1")
    assert came == [[b"1"]]


def test_a_write_where_nothing_is_writes_nothing() -> None:
    store = Store()
    came = hold(store, write_if_there("/d", {"k": 1}, ["error"]))
    store.answer(store.take()[0], b"7\0")
    state, error = store.take()
    store.refuse(state, "ENOENT")
    store.refuse(error, "ENOENT")
    (end,) = store.take()
    assert (end.type, end.payload) == (MessageType.TRANSACTION_END, b"F\0")
    store.answer(end, b"OK\0")
    assert came == ["gone"]
    assert all(packet.type != MessageType.WRITE for packet in store.asked)


@pytest.mark.parametrize(
    ("refused", "outcome"), [("", "committed"), ("EAGAIN", "again"), ("EACCES", "gone")]
)
def test_how_a_write_ends(refused: str, outcome: str) -> None:
    store = Store()
    came = hold(store, write_if_there("/d", {"k": 1, "l": "two"}, ["error"]))
    store.answer(store.take()[0], b"7\0")
    for packet in store.take():
        store.answer(packet, b"1")
    changes = store.take()
    assert [(packet.type, packet.payload) for packet in changes] == [
        (MessageType.WRITE, b"/d/k\x001"),
        (MessageType.WRITE, b"/d/l\0two"),
        (MessageType.RM, b"/d/error\0"),
        (MessageType.TRANSACTION_END, b"T\0"),
    ]
    for packet in changes[:-1]:
        store.answer(packet, b"OK\0")
    if refused:
        store.refuse(changes[-1], refused)
    else:
        store.answer(changes[-1], b"OK\0")
    assert came == [outcome]


def test_an_error_nobody_expects_is_raised_where_the_answer_is_taken_in() -> None:
    store = Store()
    hold(store, directory("/a"))
    with pytest.raises(XenStoreError, match="ENOMEM"):
        store.refuse(store.take()[0], "ENOMEM")


def test_who_may_have_few_transactions_holds_so_many_conversations_and_the_rest_wait() -> None:
    store = Store()
    store.exchange = Exchange(talks_max=2)
    came = [hold(store, look([f"/{number}"])) for number in range(4)]
    begun = store.take()
    for number in range(4):
        assert [packet.type for packet in begun] == [MessageType.TRANSACTION_START] * len(begun)
        assert len(begun) == min(2, 4 - number)
        store.answer(begun.pop(0), b"7\0")
        read, ended = store.take()
        store.answer(read, b"value")
        store.answer(ended, b"OK\0")
        assert came[number] == [{f"/{number}": b"value"}]
        begun += store.take()  # one that had waited


def test_a_conversation_that_fails_makes_room_for_the_next() -> None:
    store = Store()
    store.exchange = Exchange(talks_max=1)
    hold(store, look(["/a"]))
    came = hold(store, look(["/b"]))
    (beginning,) = store.take()
    with pytest.raises(XenStoreError, match="ENOSPC"):
        store.refuse(beginning, "ENOSPC")
    (beginning,) = store.take()
    store.answer(beginning, b"1\0")
    read, ended = store.take()
    store.answer(read, b"b")
    store.answer(ended, b"OK\0")
    assert came == [{"/b": b"b"}]
