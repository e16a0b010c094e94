"""Bytes in, bytes out: how they are cut does not matter, and nothing a guest sends gets through."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.xenstore_wire import HEADER, MessageType, Packet, pack
from tests.xenstored.world import World, always, path
from xenstored.connection import OUTPUT_PAUSE


@pytest.fixture
def world():
    return World()


def exchange(connection, data):
    connection.feed(data)
    for _ in range(1000):
        connection.step(always)
    out = connection.outgoing()
    connection.sent(len(out))
    return out


def test_a_new_connection_wants_input_and_nothing_else(world):
    connection = world.guest.connection
    assert connection.wants_input and not connection.runnable and connection.finished is None


def test_the_reply_carries_the_requests_type_and_ids(world):
    tx = world.guest.begin()
    request = Packet(MessageType.GET_DOMAIN_PATH, 0xDEADBEEF, tx, path("1"))
    reply = exchange(world.guest.connection, pack(request))
    assert reply == pack(request._replace(payload=path("/local/domain/1")))


def test_an_error_carries_the_ids_and_a_name(world):
    reply = exchange(world.guest.connection, pack(Packet(MessageType.READ, 7, 9, path("x"))))
    assert reply == pack(Packet(MessageType.ERROR, 7, 9, path("ENOENT")))


def test_a_request_may_come_byte_by_byte(world):
    request = pack(Packet(MessageType.GET_DOMAIN_PATH, 1, 0, path("1")))
    replies = [exchange(world.guest.connection, bytes([byte])) for byte in request]
    assert replies[:-1] == [b""] * (len(request) - 1)
    assert replies[-1]


def test_many_requests_may_come_at_once_and_a_step_serves_one(world):
    world.guest.connection.feed(pack(Packet(MessageType.GET_DOMAIN_PATH, 1, 0, path("1"))) * 3)
    for served, left in ((1, True), (2, True), (3, False)):
        world.guest.serve(1)
        world.guest.read()
        assert (len(world.guest._replies), world.guest.connection.runnable) == (served, left)


def test_a_payload_over_the_limit_ends_the_connection_after_what_came_before(world):
    good = pack(Packet(MessageType.GET_DOMAIN_PATH, 1, 0, path("1")))
    connection = world.guest.connection
    reply = exchange(connection, good + HEADER.pack(MessageType.READ, 2, 0, 4097) + good)
    assert reply.endswith(path("/local/domain/1"))
    assert connection.finished == "a payload of 4097 bytes is over 4096"
    assert exchange(connection, good) == b""


def test_a_client_that_does_not_read_is_not_served_and_not_read_until_it_does(world):
    world.dom0.do("write /local/domain/1/x " + "v" * 4000)
    connection = world.guest.connection
    connection.feed(pack(Packet(MessageType.READ, 1, 0, path("x"))) * 100)
    world.guest.serve()
    assert OUTPUT_PAUSE <= world.guest.session.outbox.size < OUTPUT_PAUSE + 4112
    assert not connection.wants_input and not connection.runnable
    while connection.outgoing() or connection.runnable:
        connection.sent(len(connection.outgoing()))
        connection.step(always)
    assert connection.wants_input


def test_what_is_not_served_when_the_client_goes_is_never_served(world):
    world.guest.post(MessageType.MKDIR, path("late"))
    world.guest.connection.close()
    world.guest.serve(10)
    assert world.dom0.do("read /local/domain/1/late") == "ENOENT"


FUZZ = settings(max_examples=60, deadline=None)

PAYLOADS = st.one_of(
    st.binary(max_size=64),
    st.lists(
        st.sampled_from(["", "/", "x", "x/y", "/local", "@releaseDomain", "n1", "r0", "T", "1"]),
        max_size=4,
    ).map(lambda strings: path(*strings)),
)


@FUZZ
@given(st.lists(st.binary(max_size=200), max_size=20))
def test_random_bytes_never_crash_a_connection(chunks):
    world = World()
    guest = world.client(1)
    for chunk in chunks:
        exchange(guest.connection, chunk)
    guest.connection.close()
    assert world.dom0.do("perms? /") == b"n0\0"


@FUZZ
@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(0, 3), PAYLOADS),
        max_size=40,
    ),
    st.randoms(use_true_random=False),
)
def test_random_requests_are_all_answered_and_reach_nothing_of_others(requests, cuts):
    world = World()
    world.dom0.do("write /secret 1")
    guest = world.client(1)
    data = b"".join(
        pack(Packet(kind, number, tx, payload))
        for number, (kind, tx, payload) in enumerate(requests)
    )
    while data:
        cut = cuts.randint(1, 100)
        guest.connection.feed(data[:cut])
        guest.serve(100)
        guest.read()
        data = data[cut:]
    assert [reply.req_id for reply in guest._replies] == list(range(len(requests)))
    guest.connection.close()
    assert world.dom0.do("read /secret") == b"1"
    assert world.dom0.do("perms? /secret") == b"n0\0"
    assert guest.session.usage.watches == guest.session.usage.transactions == 0
