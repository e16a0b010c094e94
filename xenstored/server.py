"""xenstored's sockets and its loop: one thread, the caller's.

Owns: dom0's listening socket, the clients' sockets, the loop; whose connection is whose. Everything
else is in the cores, who is served next in `schedule.py`.
Rules: whoever connects to the path is domain 0; a guest is whose socket the toolstack introduced it
with, and has no other. Nothing here blocks on a client: sockets are non-blocking, a turn reads one
chunk and serves one request or a slice of it, answers go out as they are ready, and what a client
does not read stays in its outbox, which is limited. Between turns, at most TURN_NS apart but for
one request, the loop looks who else has come.
"""

import gc
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from common.abi import DOMID_0
from xenstored.connection import Connection
from xenstored.quotas import Quotas
from xenstored.schedule import Schedule
from xenstored.session import DOMAIN_RELEASED, Session
from xenstored.store import Store, go_on

BACKLOG: Final = 64
RECEIVE_BYTES: Final = 16 * 1024
TURN_NS: Final = 2_000_000
NO_DESCRIPTORS_PAUSE_S: Final = 0.05

log = logging.getLogger(__name__)

Callback = Callable[[], None]


class XenStoreServer:
    """A machine's xenstored. Not thread-safe: all but `stop` is for the thread that serves."""

    def __init__(
        self, quotas: Quotas | None = None, clock: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._store = Store(quotas)
        self._clock, self._used = clock, time.thread_time_ns
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._path = ""
        self._clients: dict[Session, tuple[socket.socket, Connection]] = {}
        self._guests: dict[int, Session] = {}
        # None among domain 0's clients: the announcements, which no client is to go on with.
        self._schedule: Schedule[Session | None] = Schedule()
        self._pausing = False  # the listener, as there are no descriptors
        self._stopping = False
        self._closed = False

    # --- what the process's main calls ---

    def listen(self, path: str) -> None:
        """Make domain 0's unix socket at `path`. Raises OSError."""
        assert self._listener is None
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self._listener, self._path = listener, path
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def introduce(self, domid: int, sock: socket.socket) -> None:
        """The domain exists, and `sock`, which is ours from now on, is its connection.

        Raises ValueError if it has one, and closes `sock`.
        """
        assert domid != DOMID_0
        if domid in self._guests:
            sock.close()
            raise ValueError(f"domain {domid} has its connection")
        self._guests[domid] = self._join(domid, sock)
        self._store.announce(self._store.introduce(domid))
        self._announce()

    def release(self, domid: int) -> bool:
        """The domain is gone, with its connection, watches, transactions, nodes and permissions.

        False if it was not introduced. @releaseDomain has fired, unless there is so much to tell of
        its nodes that it takes more than a turn: then it comes after that.
        """
        telling = self._store.release(domid)
        self._store.announce(telling)
        self._announce()
        return telling is not None

    def register(self, fd: int, callback: Callback) -> None:
        """Call `callback` from `serve` whenever `fd` is readable."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def unregister(self, fd: int) -> None:
        """Look at `fd` no more. Before it is closed."""
        self._selector.unregister(fd)

    def serve(self) -> None:
        """Serve until `stop`."""
        # Nothing here makes cycles (a test says so), and the collector would stop everybody for as
        # long as it takes to look at every node there is.
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._serve()
        finally:
            if collecting:
                gc.enable()

    def stop(self) -> None:
        """End `serve`: from one of its callbacks."""
        self._stopping = True

    def close(self) -> None:
        """Close everything and unlink the path. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for session in list(self._clients):
            self._drop(session)
        if self._listener is not None:
            self._listener.close()
            with suppress(FileNotFoundError):  # its directory may be gone already
                os.unlink(self._path)
        self._selector.close()

    # --- the loop ---

    def _serve(self) -> None:
        while not self._stopping:
            ready = self._selector.select(self._timeout_s())
            if self._pausing and not ready:
                self._listen_again()
            for key, mask in ready:
                # An earlier one of these may have ended it.
                if self._selector.get_map().get(key.fd) is key:
                    self._handle(key, mask)
            self._turn()

    def _timeout_s(self) -> float | None:
        """How long to wait for somebody to come (None: as long as that takes)."""
        pause_ns = self._schedule.pause_ns(self._clock())
        if pause_ns is not None:
            return pause_ns / 1e9
        return NO_DESCRIPTORS_PAUSE_S if self._pausing else None

    def _handle(self, key: selectors.SelectorKey, mask: int) -> None:
        if not isinstance(key.data, Session):
            key.data()
            return
        session = key.data
        if mask & selectors.EVENT_READ:
            self._schedule.add(session.domid, session)
            if self._schedule.rests(session.domid, self._clock()):
                # Its socket stays readable all the time: it is looked at again when it is served.
                self._await(session, key.events & ~selectors.EVENT_READ)
        if mask & selectors.EVENT_WRITE:
            self._send(session)

    def _turn(self) -> None:
        """Serve whose turn it is, until it is time to look who else has come."""
        now, used = self._clock(), self._used()
        until = now + TURN_NS
        while now < until and not self._stopping and (chosen := self._schedule.next(now)):
            domid, session = chosen
            if session is None:
                self._announce()
            elif session in self._clients:
                self._step(session)
            self._flush()
            # What others had of the CPU meanwhile is not this one's to pay.
            since, now, used = used, self._clock(), self._used()
            self._schedule.charge(domid, used - since, now)

    def _step(self, session: Session) -> None:
        client, connection = self._clients[session]
        if connection.wants_input:
            try:
                data = client.recv(RECEIVE_BYTES)
            except BlockingIOError:
                self._store.touch([session])
                return
            except OSError:
                data = b""
            if not data:
                self._drop(session)
                return
            connection.feed(data)
        connection.step(self._in_time())
        self._store.touch([session])

    def _in_time(self) -> Callable[[], bool]:
        until = self._clock() + TURN_NS
        return lambda: self._clock() < until

    def _announce(self) -> None:
        """Tell what no client is to go on with, for a turn."""
        in_time = self._in_time()
        announcements = self._store.announcements
        while announcements and go_on(announcements[0], in_time):
            announcements.popleft()
        self._flush()

    def _flush(self) -> None:
        """Send what there is to send."""
        while touched := self._store.take_touched():
            for session in touched:
                if session in self._clients:
                    self._send(session)
        if self._store.announcements:
            self._schedule.add(DOMID_0, None)

    def _send(self, session: Session) -> None:
        client, connection = self._clients[session]
        try:
            while data := connection.outgoing():
                connection.sent(client.send(data))
        except BlockingIOError:
            pass  # the rest when the socket has room
        except OSError:
            self._drop(session)
            return
        if connection.finished is not None:
            level = logging.INFO if connection.finished == DOMAIN_RELEASED else logging.WARNING
            log.log(level, "xenstored: domain %d: %s", session.domid, connection.finished)
            self._drop(session)
            return
        if connection.runnable:
            self._schedule.add(session.domid, session)
        interest = 0 if connection.paused else selectors.EVENT_READ
        interest |= selectors.EVENT_WRITE if session.outbox.size else 0
        self._await(session, interest)

    def _await(self, session: Session, interest: int) -> None:
        """Look whether the client's socket is ready for these (0: not at all)."""
        client, _ = self._clients[session]
        key = self._selector.get_map().get(client.fileno())
        if key is None:
            if interest:
                self._selector.register(client, interest, session)
        elif not interest:
            self._selector.unregister(client)
        elif key.events != interest:
            self._selector.modify(client, interest, session)

    # --- clients ---

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("xenstored: domain 0 cannot connect: %s", error)
            self._selector.unregister(self._listener)  # it stays ready: do not spin on it
            self._pausing = True
            return
        self._join(DOMID_0, client)

    def _listen_again(self) -> None:
        assert self._listener is not None
        self._pausing = False
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _join(self, domid: int, client: socket.socket) -> Session:
        client.setblocking(False)
        session = self._store.join(domid)
        self._clients[session] = (client, Connection(self._store, session))
        self._selector.register(client, selectors.EVENT_READ, session)
        return session

    def _drop(self, session: Session) -> None:
        self._await(session, 0)
        client, connection = self._clients.pop(session)
        self._schedule.remove(session.domid, session)
        if self._guests.get(session.domid) is session:
            del self._guests[session.domid]
            self._schedule.forget(session.domid)
        client.close()
        connection.close()
        if self._pausing:
            self._listen_again()
