"""The sockets: who is whose, what is left of whom, and nobody who waits for another."""

import gc
import os
import resource
import socket
import tempfile
import time
from collections.abc import Iterator

import pytest

from common.xenstore import XenStoreClient, XenStoreError
from common.xenstore_wire import HEADER, MessageType, Packet, Parser, pack, pack_strings
from tests.xenstored.serving import TIMEOUT_S, Serving
from tests.xenstored.world import World

HOME = "/local/domain/1"
GONE = r"ECONNRESET|EPIPE"


@pytest.fixture
def serving() -> Iterator[Serving]:
    with tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as run_dir:
        serving = Serving(run_dir)
        yield serving
        serving.stop()


@pytest.fixture
def dom0(serving: Serving) -> Iterator[XenStoreClient]:
    with XenStoreClient(serving.path) as client:
        yield client


def born(serving: Serving, dom0: XenStoreClient, domid: int) -> XenStoreClient:
    dom0.mkdir(f"/local/domain/{domid}")
    dom0.set_perms(f"/local/domain/{domid}", [f"n{domid}"])
    return serving.guest(domid)


def test_whoever_connects_to_the_path_is_domain_0_and_who_is_introduced_is_that_domain(
    serving: Serving, dom0: XenStoreClient
) -> None:
    guest = born(serving, dom0, 1)
    guest.write("x", b"1")
    assert dom0.get_perms(f"{HOME}/x") == ["n1"]
    with pytest.raises(XenStoreError, match="EACCES"):
        guest.write("/x", b"1")
    dom0.write("/x", b"1")
    guest.close()


def test_introducing_and_releasing_is_told(serving: Serving, dom0: XenStoreClient) -> None:
    for path in ("@introduceDomain", "@releaseDomain"):
        dom0.watch(path, "t")
        assert dom0.wait_event(TIMEOUT_S) == (path, "t")
    with serving.guest(1):
        assert dom0.wait_event(TIMEOUT_S) == ("@introduceDomain", "t")
        assert dom0.is_domain_introduced(1)
        assert serving.release(1)
        assert dom0.wait_event(TIMEOUT_S) == ("@releaseDomain", "t")
        assert not dom0.is_domain_introduced(1)
    assert not serving.release(1)


def test_a_release_is_complete_when_it_returns(serving: Serving, dom0: XenStoreClient) -> None:
    dom0.watch("@releaseDomain", "t")
    with born(serving, dom0, 1) as guest:
        guest.watch("x", "t")
        guest.write("x", b"1")
        assert serving.release(1)
        store = serving.server._store
        assert (store.tree.held(1).nodes, store._sessions.get(1), store._usages.get(1)) == (
            0,
            None,
            None,
        )
        with pytest.raises(XenStoreError, match=GONE):
            guest.read("x")
    assert [path for path, _ in dom0.events()] == ["@releaseDomain"] * 2


def test_a_domain_that_is_introduced_again_inherits_nothing(
    serving: Serving, dom0: XenStoreClient
) -> None:
    dom0.write("/shared", b"1")
    dom0.set_perms("/shared", ["n0", "r1"])
    with born(serving, dom0, 1) as guest:
        guest.write("x", b"1")
        assert guest.read("/shared") == b"1"
        serving.release(1)
    with born(serving, dom0, 1) as guest:
        assert not guest.exists("x")
        with pytest.raises(XenStoreError, match="EACCES"):
            guest.read("/shared")


def test_a_domain_has_one_connection(serving: Serving) -> None:
    with serving.guest(1) as guest:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, pytest.raises(ValueError, match="domain 1 has its connection"):
            serving.call(lambda: serving.server.introduce(1, theirs))
        assert theirs.fileno() == -1
        assert guest.get_domain_path(1) == HOME


def test_the_wire_can_introduce_a_domain_without_connection_and_the_toolstack_bring_it_after(
    serving: Serving, dom0: XenStoreClient
) -> None:
    dom0.introduce(1)
    assert dom0.is_domain_introduced(1)
    with serving.guest(1) as guest:
        assert guest.get_domain_path(1) == HOME
        dom0.release(1)
        with pytest.raises(XenStoreError, match=GONE):
            guest.get_domain_path(1)


def test_another_descriptor_is_looked_at_until_it_is_unregistered(serving: Serving) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def echo() -> None:
        theirs.send(theirs.recv(10))

    with ours, theirs:
        ours.settimeout(TIMEOUT_S)
        serving.call(lambda: serving.server.register(theirs.fileno(), echo))
        for message in (b"one", b"two"):
            ours.send(message)
            assert ours.recv(10) == message
        serving.call(lambda: serving.server.unregister(theirs.fileno()))
        ours.send(b"three")
        serving.call(lambda: None)
        assert theirs.recv(10, socket.MSG_DONTWAIT) == b"three"


def test_a_broken_stream_ends_that_client_alone(serving: Serving, dom0: XenStoreClient) -> None:
    connection = serving.connection(1)
    with connection:
        connection.sendall(HEADER.pack(MessageType.READ, 1, 0, 4097))
        connection.settimeout(TIMEOUT_S)
        assert connection.recv(1) == b""
    dom0.mkdir("/a")
    assert dom0.is_domain_introduced(1)


def test_a_dom0_that_is_killed_leaves_no_watch_and_no_transaction(
    serving: Serving, dom0: XenStoreClient
) -> None:
    """Its connection ends by itself; the toolstack's, which is domain 0's too, stays."""
    dom0.watch("/theirs", "t")
    assert dom0.wait_event(TIMEOUT_S) is not None  # the first comes at once
    usage = serving.server._store._usages[0]
    before = usage.watches, usage.transactions
    with XenStoreClient(serving.path) as dying:
        for path in ("/a", "/b"):
            dying.watch(path, "t")
        with pytest.raises(XenStoreError), dying.transaction() as transaction:
            transaction.write("/lost", b"1")
            assert (usage.watches, usage.transactions) == (before[0] + 2, before[1] + 1)
            dying._connection._socket.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + TIMEOUT_S
    while (usage.watches, usage.transactions) != before:
        assert time.monotonic() < deadline
        dom0.exists("/a")
    assert not dom0.exists("/lost")
    dom0.write("/theirs", b"1")
    assert dom0.wait_event(TIMEOUT_S) is not None


def test_a_client_that_sends_and_never_reads_keeps_nobody_waiting_and_has_all_its_answers(
    serving: Serving, dom0: XenStoreClient
) -> None:
    requests = b"".join(
        pack(Packet(MessageType.GET_DOMAIN_PATH, number, 0, pack_strings(b"1")))
        for number in range(20_000)
    )
    with serving.connection(1) as connection:
        connection.setblocking(False)
        sent = 0
        for _ in range(100):
            try:
                sent += connection.send(requests[sent:])
            except BlockingIOError:
                dom0.write("/a", b"1")
        assert 0 < sent < len(requests)
        parser, replies = Parser(), []
        connection.settimeout(TIMEOUT_S)
        whole = sent // len(requests[: HEADER.size + 2])
        while len(replies) < whole:
            replies += parser.feed(connection.recv(1 << 16))
        assert [reply.req_id for reply in replies] == list(range(whole))


def test_without_descriptors_domain_0_waits_and_then_connects(
    serving: Serving, dom0: XenStoreClient
) -> None:
    """What cannot be accepted stays in the backlog; those who are connected are served."""
    dom0.mkdir("/a")
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken[0], client.fileno()) + 1, hard))
    try:
        while True:
            try:
                taken.append(os.dup(0))
            except OSError:
                break
        client.connect(serving.path)
        client.sendall(pack(Packet(MessageType.GET_DOMAIN_PATH, 1, 0, pack_strings(b"1"))))
        for _ in range(10):
            dom0.write("/a", b"1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)
    with client:
        client.settimeout(TIMEOUT_S)
        assert client.recv(100).endswith(b"/local/domain/1\0")


def test_closing_ends_all_connections_and_unlinks_the_path(serving: Serving) -> None:
    with serving.guest(1) as guest, XenStoreClient(serving.path) as dom0:
        dom0.mkdir("/a")
        serving.stop()
        for client in (guest, dom0):
            with pytest.raises(XenStoreError, match=GONE):
                client.read("/a")
    assert not os.path.exists(serving.path)
    serving.server.close()


def test_nothing_in_the_store_needs_the_cycle_collector() -> None:
    """It is off while the server serves."""
    gc.collect()
    gc.disable()
    try:
        world = World(output_bytes=500)
        for client in (world.guest, world.other):
            client.do("watch a t")
            tx = client.begin()
            client.do("write a/b/c 1", tx=tx)
            client.do("read none", tx=tx)
            client.end(tx)
            client.do("read /none")
            client.do("rm a")
            client.begin()
        for number in range(100):
            world.dom0.do(f"write /local/domain/1/a/{number} 1")
        world.release(1)
        for client in (world.guest, world.other):
            client.connection.close()
        del client, world.guest, world.other
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()  # others' cycles, too: of this process' other threads
        ours = [each for each in gc.garbage if type(each).__module__.startswith("xenstored")]
        assert ours == []
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
