"""The hypervisor's connections: who is ready, and what becomes of each."""

import os
import socket
from collections.abc import Iterator

import pytest

from common.hypercall import MESSAGE_MAX
from common.process import open_descriptors
from hypervisor.connections import Connections, close_all


@pytest.fixture
def connections() -> Iterator[Connections]:
    before = open_descriptors()
    connections = Connections()
    yield connections
    connections.close()
    assert open_descriptors() == before


def made(connections: Connections, domid: int, vcpu: int = 0) -> socket.socket:
    return socket.socket(fileno=connections.make(domid, vcpu))


def who(connections: Connections) -> list[tuple[int, int]]:
    return [(caller.domid, caller.vcpu) for caller in connections.ready(0)]


def test_a_caller_is_who_its_connection_was_made_for(connections: Connections) -> None:
    with made(connections, 0, 5) as dom0, made(connections, 3) as guest:
        assert who(connections) == []
        guest.send(b"call")
        assert who(connections) == [(3, 0)]
        dom0.send(b"call")
        assert sorted(who(connections)) == [(0, 5), (3, 0)]


def test_one_packet_is_one_call(connections: Connections) -> None:
    with made(connections, 1) as guest:
        for message in (b"one", b"two"):
            guest.send(message)
        (caller,) = connections.ready(0)
        assert [caller.receive() for _ in range(3)] == [b"one", b"two", None]


def test_a_call_that_is_too_long_is_seen_to_be(connections: Connections) -> None:
    with made(connections, 1) as guest:
        guest.send(bytes(MESSAGE_MAX))
        guest.send(bytes(100_000))
        (caller,) = connections.ready(0)
        assert [len(caller.receive() or b"") for _ in range(2)] == [MESSAGE_MAX, MESSAGE_MAX + 1]


def test_a_caller_that_is_gone_is_ready_with_nothing(connections: Connections) -> None:
    made(connections, 1).close()
    (caller,) = connections.ready(0)
    assert caller.receive() == b""
    connections.drop(caller)
    assert connections.ready(0) == []
    assert caller.receive() == b""  # it may be in the hands of who was told of it before
    connections.drop(caller)


def test_an_answer_goes_to_its_caller_with_its_descriptors(connections: Connections) -> None:
    with made(connections, 1) as one, made(connections, 2) as two:
        reads, writes = os.pipe()
        for guest in (one, two):
            guest.send(b"call")
        for caller in connections.ready(0):
            handed = [writes] if caller.domid == 2 else []
            assert caller.send(b"answer %d" % caller.domid, handed)
        assert socket.recv_fds(one, 100, 4)[:2] == (b"answer 1", [])
        answer, (fd,), _, _ = socket.recv_fds(two, 100, 4)
        assert answer == b"answer 2"
        close_all([writes, fd, reads])


def test_descriptors_go_only_to_who_has_read_all_its_answers(connections: Connections) -> None:
    """In flight they are counted for the whole user: a guest's could stop everybody's."""
    null = os.open(os.devnull, os.O_RDWR)
    with made(connections, 1) as slow, made(connections, 2) as other:
        for guest in (slow, other):
            guest.send(b"call")
        callers = {caller.domid: caller for caller in connections.ready(0)}
        assert callers[1].send(b"first", [null])
        assert not callers[1].send(b"second", [null])
        assert callers[1].send(b"without", [])
        assert callers[2].send(b"another's", [null])
        for _ in range(2):
            socket.recv_fds(slow, 100, 0)
        assert callers[1].send(b"third", [null])
    os.close(null)


def test_an_answer_for_which_there_is_no_room_cannot_be_given(connections: Connections) -> None:
    with made(connections, 1) as guest:
        guest.send(b"call")
        (caller,) = connections.ready(0)
        sent = 0
        while caller.send(bytes(MESSAGE_MAX), []):
            sent += 1
            assert sent < 1000
        assert sent > 0
    (caller,) = connections.ready(0)
    assert not caller.send(b"answer", [])  # nor to who is gone


def test_a_domains_connections_end_together_and_no_others(connections: Connections) -> None:
    ends = [made(connections, *each) for each in ((0, 0), (1, 0), (1, 1), (2, 0))]
    connections.forget(1)
    connections.forget(7)
    for end, domid in zip(ends, (0, 1, 1, 2), strict=True):
        end.setblocking(False)
        if domid == 1:
            assert end.recv(10) == b""
        else:
            with pytest.raises(BlockingIOError):
                end.recv(10)
        end.close()


def test_what_else_is_watched_is_told_and_is_nobodys_call(connections: Connections) -> None:
    reads, writes = os.pipe()
    told: list[bytes] = []
    connections.watch(reads, lambda: told.append(os.read(reads, 10)))
    assert connections.ready(0) == [] and told == []
    os.write(writes, b"x")
    assert connections.ready(None) == [] and told == [b"x"]
    connections.unwatch(reads)
    os.write(writes, b"y")
    assert connections.ready(0) == [] and told == [b"x"]
    close_all([reads, writes])


def test_who_is_dropped_while_others_are_told_is_not_ready_any_more(
    connections: Connections,
) -> None:
    reads, writes = os.pipe()
    with made(connections, 1) as guest:
        guest.send(b"call")
        os.write(writes, b"x")
        connections.watch(reads, lambda: connections.forget(1))
        assert connections.ready(0) == []
    connections.unwatch(reads)
    close_all([reads, writes])


def test_who_rests_is_not_looked_at_until_it_has_rested(connections: Connections) -> None:
    with made(connections, 1) as tired, made(connections, 2) as other:
        tired.send(b"call")
        (caller,) = connections.ready(0)
        connections.rest(caller, 50_000_000)
        other.send(b"call")
        assert who(connections) == [(2, 0)]
        assert other.send(b"call") and connections.ready(None)[0].domid == 2
        for ready in connections.ready(0):
            while ready.receive():
                pass
        # Nobody else calls: it waits no longer than the rest takes.
        assert [each.domid for each in connections.ready(None)] == []
        assert [each.domid for each in connections.ready(None)] == [1]
        assert caller.receive() == b"call"


def test_who_dies_resting_is_seen_to_be_gone(connections: Connections) -> None:
    tired = made(connections, 1)
    tired.send(b"call")
    (caller,) = connections.ready(0)
    connections.rest(caller, 3600 * 10**9)
    tired.close()
    assert connections.ready(0) == [caller]
    connections.drop(caller)
    assert connections.ready(0) == []


def test_a_rest_outlives_its_caller_and_does_not_meet_the_next_one(
    connections: Connections,
) -> None:
    tired = made(connections, 1)
    tired.send(b"call")
    (caller,) = connections.ready(0)
    connections.rest(caller, 1)
    connections.drop(caller)
    tired.close()
    with made(connections, 1) as another:  # the same descriptor's number
        another.send(b"call")
        assert [each.domid for each in connections.ready(0)] == [1]
