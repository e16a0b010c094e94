"""xenstored's sockets: one for each domain, all served from one thread.

Owns: listening sockets, connections, the thread. Everything else is in the cores.
Rules: the caller is whose socket it came in on. Nothing here blocks on a client: sockets are
non-blocking, each client gets a few requests a turn, and what it does not read stays in its outbox,
which is limited. The public methods may be called from any thread.
"""

import logging
import os
import selectors
import socket
import threading
import time
from contextlib import suppress
from typing import Final

from common.abi import DOMID_0
from xenstored.connection import Connection
from xenstored.quotas import Quotas
from xenstored.session import DOMAIN_RELEASED, Session
from xenstored.store import Store

BACKLOG: Final = 64
REQUESTS_A_TURN: Final = 16
RECEIVE_BYTES: Final = 16 * 1024
NO_DESCRIPTORS_PAUSE_S: Final = 0.05

log = logging.getLogger(__name__)


class XenStoreServer:
    """A machine's xenstored, from `start` to `stop`; `listen` and `forget` at any time before."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self._store = Store(quotas)
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[int, tuple[socket.socket, str]] = {}
        self._clients: dict[Session, tuple[socket.socket, Connection]] = {}
        self._unfinished: set[Session] = set()  # have requests that may be served at once
        self._lock = threading.Lock()
        self._stopping = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="xenstored", daemon=True)

    def listen(self, domid: int, path: str) -> None:
        """Make a unix socket at `path`; whoever connects to it *is* `domid`. Raises OSError."""
        with self._lock:
            assert domid not in self._listeners
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(path)
                listener.listen(BACKLOG)
            except OSError:
                listener.close()
                raise
            listener.setblocking(False)
            self._listeners[domid] = (listener, path)
            self._selector.register(listener, selectors.EVENT_READ, domid)

    def forget(self, domid: int) -> None:
        """Close and unlink the domain's socket, and end its connections."""
        with self._lock:
            self._forget(domid)
        self._notify()

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, close everything, unlink the sockets that `listen` made. Idempotent."""
        self._stopping = True
        self._notify()
        if self._thread.ident is not None:
            self._thread.join()
        self._close()

    def introduce(self, domid: int) -> None:
        """The domain exists: tell whoever watches @introduceDomain."""
        with self._lock:
            self._store.introduce(domid)
        self._notify()

    def release(self, domid: int) -> None:
        """The domain is gone: end its connections, forget its nodes, tell @releaseDomain."""
        assert domid != DOMID_0
        with self._lock:
            self._store.release(domid)
        self._notify()

    def _notify(self) -> None:
        """Make the thread look at what has changed."""
        if not self._stopped():
            os.eventfd_write(self._wake, 1)

    def _stopped(self) -> bool:
        return self._wake < 0

    def _serve(self) -> None:
        try:
            while not self._stopping:
                ready = self._selector.select(0 if self._unfinished else None)
                with self._lock:
                    for key, mask in ready:
                        self._handle(key, mask)
                    self._settle()
        finally:
            # After a bug of ours: clients see the end of the stream, and do not wait for ever.
            if not self._stopping:
                self._close()

    def _handle(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.fileobj == self._wake:
            os.eventfd_read(self._wake)
        elif isinstance(key.data, Session):
            if key.data in self._clients and mask & selectors.EVENT_READ:
                self._receive(key.data)
            self._store.touch([key.data] if key.data in self._clients else [])
        elif key.data in self._listeners and self._listeners[key.data][0] is key.fileobj:
            self._accept(key.data)

    def _accept(self, domid: int) -> None:
        try:
            client, _ = self._listeners[domid][0].accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("xenstored: domain %d cannot connect: %s", domid, error)
            time.sleep(NO_DESCRIPTORS_PAUSE_S)  # the listener stays ready: do not spin on it
            return
        session = self._store.join(domid)
        if session is None:
            client.close()
            return
        client.setblocking(False)
        self._clients[session] = (client, Connection(self._store, session))
        self._selector.register(client, selectors.EVENT_READ, session)

    def _receive(self, session: Session) -> None:
        client, connection = self._clients[session]
        try:
            data = client.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(session)
            return
        connection.feed(data)
        self._unfinished.add(session)

    def _settle(self) -> None:
        """Serve a turn of each client with requests, then send what there is to send."""
        unfinished, self._unfinished = self._unfinished, set()
        for session in unfinished:
            if session in self._clients:
                self._clients[session][1].step(REQUESTS_A_TURN)
                self._store.touch([session])
        while touched := self._store.take_touched():
            for session in touched:
                if session in self._clients:
                    self._send(session)

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
            self._unfinished.add(session)
        interest = selectors.EVENT_READ if connection.wants_input else 0
        interest |= selectors.EVENT_WRITE if connection.outgoing() else 0
        self._set_interest(client, session, interest)

    def _set_interest(self, client: socket.socket, session: Session, interest: int) -> None:
        registered = client in self._selector.get_map()
        if interest == 0:
            if registered:  # a selector takes no empty interest
                self._selector.unregister(client)
        elif not registered:
            self._selector.register(client, interest, session)
        elif self._selector.get_key(client).events != interest:
            self._selector.modify(client, interest, session)

    def _drop(self, session: Session) -> None:
        client, connection = self._clients.pop(session)
        self._unfinished.discard(session)
        self._set_interest(client, session, 0)
        client.close()
        connection.close()

    def _forget(self, domid: int) -> None:
        if domid in self._listeners:
            listener, path = self._listeners.pop(domid)
            self._selector.unregister(listener)
            listener.close()
            with suppress(FileNotFoundError):  # its directory may be gone already
                os.unlink(path)
        for session in [session for session in self._clients if session.domid == domid]:
            self._drop(session)

    def _close(self) -> None:
        with self._lock:
            if self._stopped():
                return
            for domid in list(self._listeners):
                self._forget(domid)
            self._selector.close()
            os.close(self._wake)
            self._wake = -1
