"""A xenstored that serves in a thread of the test's, for clients that block."""

import os
import socket
import threading
from collections.abc import Callable
from typing import TypeVar

from common.xenstore import XenStoreClient
from xenstored.quotas import Quotas
from xenstored.server import XenStoreServer

T = TypeVar("T")
TIMEOUT_S = 60.0


class Serving:
    """A server at `path`, from now to `stop`; `call` runs something in its thread."""

    def __init__(self, run_dir: str, quotas: Quotas | None = None) -> None:
        self.path = f"{run_dir}/xenstored"
        self.server = XenStoreServer(quotas)
        self.server.listen(self.path)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._calls: list[Callable[[], object]] = []
        self.server.register(self._wake, self._run)
        self._thread = threading.Thread(target=self.server.serve)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` in the server's thread, between two turns; returns what it does."""
        done = threading.Event()
        outcome: list[T | BaseException] = []

        def run() -> None:
            try:
                outcome.append(function())
            except BaseException as error:
                outcome.append(error)
            done.set()

        self._calls.append(run)
        os.eventfd_write(self._wake, 1)
        assert done.wait(TIMEOUT_S)
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def guest(self, domid: int, **options: float | None) -> XenStoreClient:
        """Introduce a domain; its client."""
        return XenStoreClient(self.connection(domid), **options)

    def connection(self, domid: int) -> socket.socket:
        """Introduce a domain; its end of the connection."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.call(lambda: self.server.introduce(domid, theirs))
        return ours

    def release(self, domid: int) -> bool:
        """The domain is gone."""
        return self.call(lambda: self.server.release(domid))

    def stop(self) -> None:
        """End it and give everything back; twice is fine."""
        if self._thread.is_alive():
            self.call(self.server.stop)
            self._thread.join(TIMEOUT_S)
            self.server.close()
            os.close(self._wake)

    def _run(self) -> None:
        os.eventfd_read(self._wake)
        while self._calls:
            self._calls.pop(0)()
