"""The xenstore client: what the xenbus drivers and the toolstack ask the store with.

Owns: the operations, transactions and watches, over one connection.
Rules: one thread at a time; all but `hold` wait for their answer. Events that arrive while a reply
is awaited are kept; `fileno` is readable while any event waits, kept or still in the socket, so a
poller misses none.
Paths and tokens are `str`, values `bytes`. All errors are XenStoreError; its name is "ECONNRESET",
"ETIMEDOUT" or the like when it is the connection that failed, and the client can only be closed
then. A store that is slow, or gone, is never taken for one that has no such node.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal, Self, TypeVar

from common import xenstore_talks as talks
from common.xenstore_connection import REPLY_TIMEOUT_S, Connection
from common.xenstore_exchange import Request, Talk, WatchEvent, XenStoreError
from common.xenstore_wire import MessageType, pack_strings, unpack_strings

__all__ = ["Transaction", "WatchEvent", "XenStoreClient", "XenStoreError"]

ATTEMPTS_MAX: Final = 100  # of a transaction; each failed one means that another got through

T = TypeVar("T")


class _Nodes:
    """What can be done to nodes, in a transaction (`tx_id`) or without (0)."""

    def __init__(self, connection: Connection, tx_id: int) -> None:
        self._connection = connection
        self._tx_id = tx_id

    def read(self, path: str) -> bytes:
        """The value at `path`. Raises XenStoreError, as all of these do."""
        return self._ask(MessageType.READ, path)

    def read_or_none(self, path: str) -> bytes | None:
        """The value at `path`, None if there is no such node; every other error is raised."""
        try:
            return self._ask(MessageType.READ, path)
        except XenStoreError as error:
            if error.name != "ENOENT":
                raise
            return None

    def write(self, path: str, value: bytes) -> None:
        """Set the value at `path`; it and missing parents are made."""
        self._change(MessageType.WRITE, path, value)

    def mkdir(self, path: str) -> None:
        """Make `path` and missing parents, unless it is there."""
        self._change(MessageType.MKDIR, path, b"")

    def rm(self, path: str) -> None:
        """Remove `path` and all below it; only its parent must exist."""
        self._change(MessageType.RM, path, b"")

    def directory(self, path: str) -> list[str]:
        """The names right under `path`."""
        return self._connection.run(talks.directory(path, self._tx_id))

    def get_perms(self, path: str) -> list[str]:
        """The permissions of `path`: `["n0", "r1"]`, owner first."""
        perms = unpack_strings(self._ask(MessageType.GET_PERMS, path))
        return [entry.decode("latin-1") for entry in perms]

    def set_perms(self, path: str, perms: list[str]) -> None:
        """Replace the permissions of `path`."""
        entries = pack_strings(*(entry.encode() for entry in perms))
        self._change(MessageType.SET_PERMS, path, entries)

    def exists(self, path: str) -> bool:
        """Is there a node at `path` that we may read?"""
        return self.read_or_none(path) is not None

    def _ask(self, kind: MessageType, path: str, rest: bytes = b"") -> bytes:
        return self._connection.call(Request(kind, path, rest, self._tx_id))

    def _change(self, kind: MessageType, path: str, rest: bytes) -> None:
        self._connection.call(Request(kind, path, rest, self._tx_id))


def begin(connection: Connection) -> int:
    """Open a transaction; returns its id."""

    def talk() -> Talk[int]:
        return talks.transaction_id((yield [talks.BEGIN])[0])

    return connection.run(talk())


class Transaction(_Nodes):
    """An open transaction; see `XenStoreClient.transaction`."""

    def __init__(self, connection: Connection, tx_id: int) -> None:
        super().__init__(connection, tx_id)
        self._changes: list[tuple[MessageType, str, bytes]] = []
        self._asked = False

    def _ask(self, kind: MessageType, path: str, rest: bytes = b"") -> bytes:
        self._asked = True
        return super()._ask(kind, path, rest)

    def _change(self, kind: MessageType, path: str, rest: bytes) -> None:
        super()._change(kind, path, rest)
        self._changes.append((kind, path, rest))

    def commit(self) -> None:
        """End it. On a conflict: EAGAIN, or again from the start if it has read nothing."""
        for _ in range(ATTEMPTS_MAX):
            if self._end("T"):
                return
            if self._asked:
                break
            self._replay()
        raise XenStoreError("EAGAIN", "", "TRANSACTION_END")

    def abort(self) -> None:
        """End it, and nothing has happened."""
        self._end("F")

    def _replay(self) -> None:
        self._tx_id = begin(self._connection)
        try:
            for kind, path, rest in self._changes:
                super()._change(kind, path, rest)
        except XenStoreError:
            self.abort()
            raise

    def _end(self, verdict: Literal["T", "F"]) -> bool:
        """True if it ended as `verdict` says, False on a conflict."""
        tx_id, self._tx_id = self._tx_id, 0
        try:
            self._connection.call(talks.end(tx_id, verdict))
        except XenStoreError as error:
            if error.name != "EAGAIN":
                raise
            return False
        return True


class XenStoreClient(_Nodes):
    """A client of the xenstored at a path, as domain 0, or at the other end of a connected socket
    (which is then the client's), as the domain whose it is.

    A reply that does not come within `reply_timeout_s` seconds is ETIMEDOUT; with None a slow store
    is waited for, as only its end (ECONNRESET) is an error.
    """

    def __init__(
        self, where: str | socket.socket, reply_timeout_s: float | None = REPLY_TIMEOUT_S
    ) -> None:
        super().__init__(Connection(where, reply_timeout_s), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """`with client.transaction() as transaction:`; committed at the end, discarded on errors.

        Raises XenStoreError EAGAIN when others changed what it has read; `transact` tries again. A
        transaction that has read nothing is repeated by itself.
        """
        transaction = Transaction(self._connection, begin(self._connection))
        try:
            yield transaction
        except BaseException:
            with suppress(XenStoreError):
                transaction.abort()
            raise
        transaction.commit()

    def transact(self, body: Callable[[Transaction], T]) -> T:
        """Run `body` in a transaction, and again while that conflicts with others."""
        for _ in range(ATTEMPTS_MAX):
            committing = False
            try:
                with self.transaction() as transaction:
                    result = body(transaction)
                    committing = True
            except XenStoreError as error:
                if not committing or error.name != "EAGAIN":
                    raise
            else:
                return result
        raise XenStoreError("EAGAIN", "", "TRANSACTION_END")

    def run(self, talk: Talk[T]) -> T:
        """Have a conversation (`common/xenstore_talks.py`), and wait for what comes of it."""
        return self._connection.run(talk)

    def hold(self, talk: Talk[T], then: Callable[[T], None]) -> None:
        """Have a conversation and wait for nothing: `then` is told what came of it, by `receive`,
        or while something else is waited for."""
        self._connection.hold(talk, then)

    def receive(self, timeout_s: float | None) -> None:
        """Take in what comes within `timeout_s` seconds (None: wait), and tell whom it is for."""
        self._connection.receive(timeout_s, "receive")

    def watch(self, path: str, token: str) -> None:
        """Ask to be told of changes at `path` and below; the first event comes at once."""
        self._connection.call(talks.watch(path, token))

    def unwatch(self, path: str, token: str) -> None:
        """Take a watch back. Events of it may be on their way still."""
        self._connection.call(talks.unwatch(path, token))

    def reset_watches(self) -> None:
        """Take all watches back, and discard all open transactions."""
        self._change(MessageType.RESET_WATCHES, "", b"")

    def fileno(self) -> int:
        """For pollers: readable while `events` may have something."""
        return self._connection.poller.fileno()

    def events(self) -> list[WatchEvent]:
        """The events that have come, oldest first; does not wait."""
        self._connection.receive(0, "events")
        return [self._connection.take_event() for _ in range(len(self._connection.events))]

    def wait_event(self, timeout: float) -> WatchEvent | None:
        """The next event, or None if `timeout` seconds bring none."""
        deadline = time.monotonic() + timeout
        while not self._connection.events:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._connection.receive(left, "wait_event")
        return self._connection.take_event()

    def get_domain_path(self, domid: int) -> str:
        """Where the relative paths of `domid` begin."""
        reply = self._connection.call(Request(MessageType.GET_DOMAIN_PATH, str(domid)))
        return reply.rstrip(b"\0").decode("latin-1")

    def is_domain_introduced(self, domid: int) -> bool:
        """Is the domain known to the store? For domain 0."""
        reply = self._connection.call(Request(MessageType.IS_DOMAIN_INTRODUCED, str(domid)))
        return reply == b"T\0"

    def introduce(self, domid: int) -> None:
        """Tell the store of a new domain. For domain 0."""
        page_and_port = pack_strings(b"0", b"0")  # the domain has a socket instead
        self._connection.call(Request(MessageType.INTRODUCE, str(domid), page_and_port))

    def release(self, domid: int) -> None:
        """Tell the store that a domain is gone. For domain 0."""
        self._connection.call(Request(MessageType.RELEASE, str(domid)))

    def close(self) -> None:
        """Close the connection; its watches and transactions go with it."""
        self._connection.close()
