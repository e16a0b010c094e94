"""Hands out the machine's memory: file descriptors, over a unix socket for each domain.

Owns: who may have which segment. A domain gets its own; dom0 (and the toolstack in it) any, but for
the grant tables of others, which are between a domain and the hypervisor.
Rule: the caller is whose socket it came in on. A malformed or forbidden request is refused, a
silent caller is dropped: neither delays anybody else.
"""

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from typing import Final

import numpy as np

from common.abi import DOMID_0
from common.machine_memory import (
    DOMAIN_SEGMENTS,
    GRANTED,
    MACHINE_SEGMENTS,
    REFUSED,
    REQUEST,
    memory_address,
)

CALLERS_MAX: Final = 64  # connections waiting for their caller to speak, of one domain
POLL_S: Final = 0.2
NO_DESCRIPTORS_PAUSE_S: Final = 0.05

log = logging.getLogger(__name__)


def may_have(caller: int, name: str, domid: int) -> bool:
    """May domain `caller` have segment `name` of `domid`?"""
    if name in MACHINE_SEGMENTS:
        return caller == DOMID_0
    if name not in DOMAIN_SEGMENTS:
        return False
    return caller == domid or (caller == DOMID_0 and name != "grant")


class MemoryService:
    """Serves from a thread of its own. `segments`: fd by (domid, name), as the broker adds them."""

    def __init__(self, run_dir: str) -> None:
        self._run_dir = run_dir
        self._fds: dict[tuple[int, str], int] = {}
        self._selector = selectors.DefaultSelector()
        self._listeners: dict[int, socket.socket] = {}
        self._waiting: dict[int, list[socket.socket]] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name="memory-service", daemon=True)
        self._thread.start()

    def add(self, domid: int, name: str, fd: int) -> None:
        """Segment `name` of `domid` (0 for the machine's) can be had from now on."""
        with self._lock:
            self._fds[domid, name] = fd

    def listen(self, domid: int) -> None:
        """Open the socket of `domid`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(memory_address(self._run_dir, domid))
        listener.listen(CALLERS_MAX)
        listener.setblocking(False)
        with self._lock:
            self._listeners[domid] = listener
            self._waiting[domid] = []
            self._selector.register(listener, selectors.EVENT_READ, domid)

    def forget(self, domid: int) -> None:
        """The domain is gone: its socket and its segments with it."""
        with self._lock:
            listener = self._listeners.pop(domid, None)
            if listener is not None:
                self._selector.unregister(listener)
                listener.close()
                with contextlib.suppress(FileNotFoundError):  # its directory may be gone already
                    os.unlink(memory_address(self._run_dir, domid))
            for connection in self._waiting.pop(domid, []):
                self._selector.unregister(connection)
                connection.close()
            for key in [key for key in self._fds if key[0] == domid]:
                os.close(self._fds.pop(key))

    def stop(self) -> None:
        """End the thread and close everything."""
        self._stopping = True
        self._thread.join()
        for domid in list(self._listeners):
            self.forget(domid)
        self._selector.close()

    def _serve(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(POLL_S):
                with self._lock:
                    caller = key.data
                    if key.fileobj is self._listeners.get(caller):
                        self._accept(caller)
                    elif isinstance(key.fileobj, socket.socket):
                        self._answer(caller, key.fileobj)

    def _accept(self, caller: int) -> None:
        try:
            connection, _ = self._listeners[caller].accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # it has gone away again
        except OSError as error:
            log.warning("memory service: domain %d cannot connect: %s", caller, error)
            time.sleep(NO_DESCRIPTORS_PAUSE_S)  # the listener stays ready: do not spin on it
            return
        connection.setblocking(False)
        waiting = self._waiting[caller]
        if len(waiting) >= CALLERS_MAX:
            self._drop(caller, waiting[0])
        waiting.append(connection)
        self._selector.register(connection, selectors.EVENT_READ, caller)

    def _drop(self, caller: int, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        self._waiting[caller].remove(connection)
        connection.close()

    def _answer(self, caller: int, connection: socket.socket) -> None:
        if connection not in self._waiting.get(caller, []):
            return  # dropped while its event was on its way
        try:
            message = connection.recv(REQUEST.itemsize + 1)
            fd = self._lookup(caller, message)
            if fd is None:
                connection.send(REFUSED)
            else:
                socket.send_fds(connection, [GRANTED], [fd])
        except OSError:
            pass  # the caller has gone away; there is nobody to tell
        self._drop(caller, connection)

    def _lookup(self, caller: int, message: bytes) -> int | None:
        if len(message) != REQUEST.itemsize:
            return None
        request = np.frombuffer(message, REQUEST)[0]
        name = request["segment"].decode("ascii", "replace")
        domid = 0 if name in MACHINE_SEGMENTS else int(request["domid"])
        if not may_have(caller, name, domid):
            return None
        return self._fds.get((domid, name))
