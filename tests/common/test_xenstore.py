"""The client against the real xenstored, and against ones that do not keep to the protocol."""

import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from common.xenstore import Transaction, XenStoreClient, XenStoreError
from common.xenstore_talks import look
from common.xenstore_wire import HEADER, MessageType, Packet, pack
from tests.xenstored.serving import TIMEOUT_S, Serving

HOME = "/local/domain/1"


@pytest.fixture
def machine(run_dir: str) -> Iterator[Serving]:
    serving = Serving(run_dir)
    yield serving
    serving.stop()


@pytest.fixture
def dom0(machine: Serving) -> Iterator[XenStoreClient]:
    with XenStoreClient(machine.path) as client:
        client.mkdir(HOME)
        client.set_perms(HOME, ["n1"])
        yield client


@pytest.fixture
def other(machine: Serving) -> Iterator[XenStoreClient]:
    """A second client of dom0, which gets in the way."""
    with XenStoreClient(machine.path) as client:
        yield client


@pytest.fixture
def guest(machine: Serving, dom0: XenStoreClient) -> Iterator[XenStoreClient]:
    with machine.guest(1) as client:
        yield client


def refusal(call: Callable[[], object]) -> tuple[str, str, str]:
    with pytest.raises(XenStoreError) as refused:
        call()
    return refused.value.name, refused.value.path, refused.value.operation


def readable(client: XenStoreClient, timeout_s: float = 0) -> bool:
    return bool(select.select([client.fileno()], [], [], timeout_s)[0])


# --- nodes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"", b"1", b"a b", bytes(range(256)), b"x" * 2000])
def test_a_value_is_read_as_it_was_written(dom0: XenStoreClient, value: bytes) -> None:
    dom0.write("/a/b", value)
    assert dom0.read("/a/b") == value


def test_parents_are_made_and_listed_and_removed_with_all_below(dom0: XenStoreClient) -> None:
    dom0.write("/a/b/c", b"1")
    dom0.mkdir("/a/d")
    assert (dom0.directory("/a"), dom0.directory("/a/d")) == (["b", "d"], [])
    assert (dom0.read("/a/b"), dom0.exists("/a/b/c")) == (b"", True)
    dom0.rm("/a/b")
    assert dom0.directory("/a") == ["d"]
    assert not dom0.exists("/a/b/c")


def test_a_guests_relative_path_begins_at_its_home(
    dom0: XenStoreClient, guest: XenStoreClient
) -> None:
    guest.write("device/x", b"1")
    assert dom0.read(f"{HOME}/device/x") == b"1"
    assert guest.get_domain_path(1) == dom0.get_domain_path(1) == HOME


def test_permissions_are_set_read_and_kept_to(dom0: XenStoreClient, guest: XenStoreClient) -> None:
    dom0.write("/a", b"secret")
    assert refusal(lambda: guest.read("/a")) == ("EACCES", "/a", "READ")
    assert refusal(lambda: guest.exists("/a")) == ("EACCES", "/a", "READ")
    dom0.set_perms("/a", ["n0", "r1"])
    assert dom0.get_perms("/a") == ["n0", "r1"]
    assert guest.read("/a") == b"secret"
    assert refusal(lambda: guest.write("/a", b"")) == ("EACCES", "/a", "WRITE")


def test_an_error_says_what_failed_where_and_why(dom0: XenStoreClient) -> None:
    assert refusal(lambda: dom0.read("/none")) == ("ENOENT", "/none", "READ")
    assert refusal(lambda: dom0.directory("/none")) == ("ENOENT", "/none", "DIRECTORY")
    assert refusal(lambda: dom0.rm("/none/x")) == ("ENOENT", "/none/x", "RM")
    assert refusal(lambda: dom0.write("//", b"")) == ("EINVAL", "//", "WRITE")
    assert str(XenStoreError("ENOENT", "/none", "READ")) == "xenstore: READ /none: ENOENT"


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [("/a\0b", b"", "EINVAL"), ("/a", b"x" * 4094, "E2BIG"), ("/" + "a" * 4095, b"", "E2BIG")],
)
def test_what_cannot_be_sent_is_refused_here_and_the_client_goes_on(
    dom0: XenStoreClient, path: str, value: bytes, name: str
) -> None:
    assert refusal(lambda: dom0.write(path, value)) == (name, path, "WRITE")
    dom0.write("/after", b"1")
    assert dom0.read("/after") == b"1"


def test_a_message_as_large_as_may_be_goes_through(dom0: XenStoreClient) -> None:
    dom0.write("/a", b"x" * 4093)
    assert dom0.read("/a") == b"x" * 4093


@pytest.mark.parametrize("count", [0, 1, 204, 205, 1000])
def test_a_directory_is_listed_whole_however_long_it_is(dom0: XenStoreClient, count: int) -> None:
    names = [f"a-name-of-19-c-{index:04}" for index in range(count)]
    dom0.mkdir("/many")
    with dom0.transaction() as transaction:
        for name in names:
            transaction.write(f"/many/{name}", b"")
    assert sorted(dom0.directory("/many")) == names


def test_none_is_no_such_node_and_nothing_else(
    machine: Serving, dom0: XenStoreClient, guest: XenStoreClient
) -> None:
    dom0.write("/a/empty", b"")
    assert (dom0.read_or_none("/a/none"), dom0.read_or_none("/a/empty")) == (None, b"")
    assert refusal(lambda: guest.read_or_none("/a/none"))[0] == "EACCES"
    assert refusal(lambda: dom0.read_or_none("//"))[0] == "EINVAL"
    assert dom0.run(look(["/a/none", "/a/empty"])) == {"/a/empty": b""}
    assert guest.run(look(["/a/empty"])) == {}  # what one may not see is not there
    machine.stop()
    assert refusal(lambda: dom0.read_or_none("/a"))[0] in ("ECONNRESET", "EPIPE")


@pytest.mark.parametrize("count", [1, 15, 16, 100])
def test_a_look_is_at_many_nodes_at_once(dom0: XenStoreClient, count: int) -> None:
    values = {f"/dir/k{index}": str(index).encode() * 100 for index in range(count)}
    for path, value in values.items():
        dom0.write(path, value)
    assert dom0.run(look([*values, "/dir/none"])) == values


def test_what_somebody_changes_is_looked_at_of_one_moment(
    machine: Serving, dom0: XenStoreClient
) -> None:
    """Both children are always written together, so they are always the same."""
    stop = threading.Event()

    def change() -> None:
        with XenStoreClient(machine.path) as other:
            count = 0
            while not stop.is_set():
                count += 1
                with other.transaction() as transaction:
                    transaction.write("/dir/a", str(count).encode())
                    transaction.write("/dir/b", str(count).encode())

    dom0.write("/dir/a", b"0")
    dom0.write("/dir/b", b"0")
    thread = threading.Thread(target=change)
    thread.start()
    seen = set()
    for _ in range(300):
        values = dom0.run(look(["/dir/a", "/dir/b"]))
        if values is not None:  # else somebody was faster
            assert values["/dir/a"] == values["/dir/b"]
            seen.add(values["/dir/a"])
    stop.set()
    thread.join()
    assert len(seen) > 1


# --- transactions -----------------------------------------------------------------------------


def test_nobody_sees_a_transaction_before_its_end(
    dom0: XenStoreClient, other: XenStoreClient
) -> None:
    with dom0.transaction() as transaction:
        transaction.write("/a", b"1")
        transaction.mkdir("/b")
        assert transaction.read("/a") == b"1"
        assert not other.exists("/a")
    assert other.read("/a") == b"1"
    assert other.exists("/b")


def test_a_transaction_that_fails_has_changed_nothing(dom0: XenStoreClient) -> None:
    with pytest.raises(RuntimeError, match="changed my mind"), dom0.transaction() as transaction:
        transaction.write("/a", b"1")
        raise RuntimeError("changed my mind")
    assert not dom0.exists("/a")


def test_what_has_been_read_and_changed_since_is_a_conflict(
    dom0: XenStoreClient, other: XenStoreClient
) -> None:
    dom0.write("/a", b"1")

    def add() -> None:
        with dom0.transaction() as transaction:
            value = int(transaction.read("/a"))
            other.write("/a", b"10")
            transaction.write("/a", str(value + 1).encode())

    assert refusal(add)[0] == "EAGAIN"
    assert dom0.read("/a") == b"10"


def test_transact_runs_again_until_nobody_got_between(
    dom0: XenStoreClient, other: XenStoreClient
) -> None:
    dom0.write("/a", b"1")
    seen: list[int] = []

    def add(transaction: Transaction) -> int:
        value = int(transaction.read("/a"))
        seen.append(value)
        if len(seen) < 4:
            other.write("/a", str(value * 10).encode())
        transaction.write("/a", str(value + 1).encode())
        return value

    assert dom0.transact(add) == 1000
    assert seen == [1, 10, 100, 1000]
    assert dom0.read("/a") == b"1001"


def test_transact_does_not_repeat_what_failed_for_another_reason(dom0: XenStoreClient) -> None:
    runs: list[int] = []

    def body(transaction: Transaction) -> None:
        runs.append(1)
        transaction.write("/a", b"1")
        transaction.read("/none")

    assert refusal(lambda: dom0.transact(body)) == ("ENOENT", "/none", "READ")
    assert (len(runs), dom0.exists("/a")) == (1, False)


def test_transact_gives_up_after_a_hundred_conflicts(
    dom0: XenStoreClient, other: XenStoreClient
) -> None:
    runs: list[int] = []

    def body(transaction: Transaction) -> None:
        runs.append(1)
        transaction.exists("/a")
        other.write("/a", str(len(runs)).encode())

    assert refusal(lambda: dom0.transact(body)) == ("EAGAIN", "", "TRANSACTION_END")
    assert len(runs) == 100


def test_a_transaction_that_has_only_written_repeats_itself(
    dom0: XenStoreClient, other: XenStoreClient
) -> None:
    dom0.write("/a", b"1")
    with dom0.transaction() as transaction:
        transaction.write("/a", b"2")
        transaction.write("/b", b"2")
        other.write("/a", b"9")
        other.write("/b", b"9")
    assert (dom0.read("/a"), dom0.read("/b")) == (b"2", b"2")


def test_two_clients_that_count_up_together_lose_nothing(
    machine: Serving, dom0: XenStoreClient
) -> None:
    dom0.write("/n", b"0")

    def count() -> None:
        with XenStoreClient(machine.path) as client:
            for _ in range(25):
                client.transact(
                    lambda node: node.write("/n", str(int(node.read("/n")) + 1).encode())
                )

    threads = [threading.Thread(target=count) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dom0.read("/n") == b"50"


# --- watches ----------------------------------------------------------------------------------


def test_a_watch_tells_at_once_and_of_each_change_below(
    dom0: XenStoreClient, other: XenStoreClient
) -> None:
    dom0.watch("/a", "token")
    assert dom0.wait_event(TIMEOUT_S) == ("/a", "token")
    assert dom0.wait_event(0) is None
    other.write("/a/b", b"1")
    assert dom0.wait_event(TIMEOUT_S) == ("/a/b", "token")
    other.rm("/a")
    assert dom0.wait_event(TIMEOUT_S) == ("/a", "token")


@pytest.mark.parametrize("end", ["unwatch", "reset"])
def test_a_watch_that_is_taken_back_tells_no_more(
    dom0: XenStoreClient, other: XenStoreClient, end: str
) -> None:
    dom0.watch("/a", "token")
    assert dom0.wait_event(TIMEOUT_S) == ("/a", "token")
    if end == "unwatch":
        dom0.unwatch("/a", "token")
    else:
        dom0.reset_watches()
    other.write("/a", b"1")
    assert dom0.read("/a") == b"1"
    assert dom0.events() == []


def test_events_that_come_before_a_reply_are_kept_and_show_in_fileno(
    dom0: XenStoreClient, other: XenStoreClient
) -> None:
    dom0.watch("/a", "token")
    assert dom0.wait_event(TIMEOUT_S) == ("/a", "token")
    assert not readable(dom0)
    for value in (b"1", b"2", b"3"):
        other.write("/a", value)
        assert dom0.read("/a") == value
    dom0.mkdir("/b")
    assert readable(dom0)
    events = dom0.events()
    assert events
    assert set(events) == {("/a", "token")}
    assert not readable(dom0)


def test_fileno_is_readable_until_the_last_kept_event_is_taken(
    dom0: XenStoreClient, other: XenStoreClient
) -> None:
    for path in ("/a", "/b", "/c"):
        dom0.watch(path, "token")
    dom0.mkdir("/d")
    for path in ("/a", "/b", "/c"):
        assert readable(dom0)
        assert dom0.wait_event(0) == (path, "token")
    assert not readable(dom0)
    other.write("/b", b"")
    assert readable(dom0, TIMEOUT_S)
    assert dom0.events() == [("/b", "token")]


@pytest.mark.parametrize("token", ["", "a/b c", "51712-state", "\u00e9\u00ff"])
def test_a_token_comes_back_as_it_was_given(dom0: XenStoreClient, token: str) -> None:
    dom0.watch("/a", token)
    assert dom0.wait_event(TIMEOUT_S) == ("/a", token)
    dom0.unwatch("/a", token)


def test_a_token_that_cannot_be_sent_is_an_error_of_the_store(dom0: XenStoreClient) -> None:
    with pytest.raises(XenStoreError):
        dom0.watch("/a", "\u2192")


def test_a_guest_that_comes_and_goes_is_told_of(dom0: XenStoreClient) -> None:
    dom0.watch("@introduceDomain", "in")
    dom0.watch("@releaseDomain", "out")
    assert dom0.wait_event(TIMEOUT_S) == ("@introduceDomain", "in")
    assert dom0.wait_event(TIMEOUT_S) == ("@releaseDomain", "out")
    assert (dom0.is_domain_introduced(0), dom0.is_domain_introduced(5)) == (True, False)
    dom0.introduce(5)
    assert dom0.is_domain_introduced(5)
    assert dom0.wait_event(TIMEOUT_S) == ("@introduceDomain", "in")
    dom0.release(5)
    assert not dom0.is_domain_introduced(5)
    assert dom0.wait_event(TIMEOUT_S) == ("@releaseDomain", "out")


# --- the connection ---------------------------------------------------------------------------


def test_a_store_that_is_not_there_is_named(run_dir: str) -> None:
    path = f"{run_dir}/none"
    assert refusal(lambda: XenStoreClient(path)) == ("ENOENT", path, "connect")


def test_a_store_that_goes_away_ends_the_client(machine: Serving) -> None:
    with XenStoreClient(machine.path) as client:
        client.mkdir("/a")
        machine.stop()
        name, path, operation = refusal(lambda: client.mkdir("/b"))
        assert name in ("ECONNRESET", "EPIPE")
        assert (path, operation) == (machine.path, "MKDIR")
        assert refusal(lambda: client.mkdir("/b")) == ("EBADF", machine.path, "MKDIR")


def test_a_waiter_hears_of_the_end_of_the_store(machine: Serving) -> None:
    with XenStoreClient(machine.path) as client:
        client.mkdir("/a")
        machine.stop()
        assert readable(client, TIMEOUT_S)
        assert refusal(lambda: client.wait_event(TIMEOUT_S))[0] == "ECONNRESET"
        assert refusal(client.events)[0] == "EBADF"


def test_closing_twice_is_fine_and_gives_every_descriptor_back(machine: Serving) -> None:
    client = XenStoreClient(machine.path)
    client.mkdir("/a")
    fd = client.fileno()
    client.close()
    client.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert refusal(lambda: client.read("/a"))[0] == "EBADF"


def test_a_socket_can_be_handed_over_and_is_closed_with_the_client(machine: Serving) -> None:
    connection = machine.connection(1)
    fd = connection.fileno()
    with XenStoreClient(connection) as client:
        assert client.get_domain_path(1) == HOME
        machine.release(1)
        assert refusal(lambda: client.read("a"))[0] in ("ECONNRESET", "EPIPE")
        assert refusal(lambda: client.read("a"))[:2] == ("EBADF", "socket")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.fixture
def silence() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The two ends of a connection whose other end says what a test says, if anything."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        yield ours, theirs


def test_a_reply_that_does_not_come_in_time_is_a_timeout_and_never_no_such_node(
    silence: tuple[socket.socket, socket.socket],
) -> None:
    with XenStoreClient(silence[0], reply_timeout_s=0.05) as client:
        assert refusal(lambda: client.read_or_none("/a")) == ("ETIMEDOUT", "socket", "READ")
        assert refusal(lambda: client.exists("/a"))[0] == "EBADF"


def test_a_store_that_does_not_read_is_a_timeout_too(
    silence: tuple[socket.socket, socket.socket],
) -> None:
    silence[0].setblocking(False)
    with suppress(BlockingIOError):
        while True:
            silence[0].send(b"x" * 4096)
    with XenStoreClient(silence[0], reply_timeout_s=0.05) as client:
        assert refusal(lambda: client.write("/a", b"1")) == ("ETIMEDOUT", "socket", "WRITE")


def test_without_a_limit_a_slow_store_is_waited_for_and_its_end_is_a_reset(
    silence: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = silence
    outcome: list[object] = []

    def ask() -> None:
        outcome.append(client.read("/a"))
        outcome.append(refusal(lambda: client.read_or_none("/b"))[0])

    with XenStoreClient(ours, reply_timeout_s=None) as client:
        thread = threading.Thread(target=ask)
        thread.start()
        theirs.recv(100)
        reply = pack(Packet(MessageType.READ, 1, 0, b"late"))
        for byte in reply:
            theirs.send(bytes([byte]))
        theirs.recv(100)
        theirs.close()
        thread.join(TIMEOUT_S)
    assert outcome == [b"late", "ECONNRESET"]


@pytest.fixture
def impostor(run_dir: str) -> Iterator[Callable[[bytes], XenStoreClient]]:
    """A client of a store that answers the first request with the bytes given."""
    path = f"{run_dir}/impostor"
    threads: list[threading.Thread] = []
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(path)
        listener.listen()

        def connect(answer: bytes) -> XenStoreClient:
            client = XenStoreClient(path)

            def serve() -> None:
                with listener.accept()[0] as connection:
                    connection.recv(HEADER.size + 4096)
                    connection.sendall(answer)

            threads.append(threading.Thread(target=serve, daemon=True))
            threads[-1].start()
            return client

        yield connect
        for thread in threads:
            thread.join(TIMEOUT_S)


@pytest.mark.parametrize(
    "answer",
    [
        pack(Packet(MessageType.READ, 2, 0, b"1")),
        pack(Packet(MessageType.WRITE, 1, 0, b"1")),
        HEADER.pack(MessageType.READ, 1, 0, 4097),
        HEADER.pack(MessageType.READ, 1, 0, 2**32 - 1),
        pack(Packet(MessageType.WATCH_EVENT, 0, 0, b"no token\0")),
        b"\xff" * 64,
    ],
    ids=["another id", "another type", "too long", "far too long", "half an event", "garbage"],
)
def test_what_is_not_the_protocol_ends_the_connection(
    impostor: Callable[[bytes], XenStoreClient], answer: bytes
) -> None:
    with impostor(answer) as client:
        assert refusal(lambda: client.read("/a"))[::2] == ("EIO", "READ")
        assert refusal(lambda: client.read("/a"))[::2] == ("EBADF", "READ")


def test_a_transactions_id_must_be_a_number(
    impostor: Callable[[bytes], XenStoreClient],
) -> None:
    with impostor(pack(Packet(MessageType.TRANSACTION_START, 1, 0, b"x\0"))) as client:
        assert refusal(lambda: client.transact(lambda _: None))[0] == "EIO"


def test_an_event_before_a_reply_is_kept_and_the_reply_found(
    impostor: Callable[[bytes], XenStoreClient],
) -> None:
    event = pack(Packet(MessageType.WATCH_EVENT, 0, 0, b"/a\0token\0"))
    reply = pack(Packet(MessageType.READ, 1, 0, b"1"))
    with impostor(event + reply + event) as client:
        assert client.read("/a") == b"1"
        assert client.wait_event(TIMEOUT_S) == ("/a", "token")
        assert client.wait_event(TIMEOUT_S) == ("/a", "token")
