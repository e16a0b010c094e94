"""Between a client and its xenstored: answers go through, but for those that are held back."""

import os
import select
import socket
import threading
from collections.abc import Callable

from common.xenstore_wire import MessageType, Packet, Parser, pack


class SlowStore:
    """A store at `path` before the one at `behind`, for one client. slow: is this request's answer
    held back, until `hurry`?
    """

    def __init__(self, path: str, behind: str, slow: Callable[[Packet], bool]) -> None:
        self.held = 0
        self._slow, self._hurried = slow, False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen()
        self._store = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._store.connect(behind)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopping = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def hurry(self) -> None:
        """Let go of what is held back, and hold nothing back any more."""
        self._hurried = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for end in (self._listener, self._store):
            end.close()
        os.close(self._wake)

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        asked, answered = Parser(), Parser()
        slow: set[int] = set()
        kept: list[Packet] = []
        with client:
            while not self._stopping:
                ready, _, _ = select.select([client, self._store, self._wake], [], [])
                if client in ready:
                    data = client.recv(1 << 16)
                    if not data:
                        return
                    slow |= {p.req_id for p in asked.feed(data) if self._slow(p)}
                    self._store.sendall(data)
                if self._store in ready:
                    for packet in answered.feed(self._store.recv(1 << 16)):
                        event = packet.type == MessageType.WATCH_EVENT
                        if not event and packet.req_id in slow and not self._hurried:
                            kept.append(packet)
                            self.held += 1
                        else:
                            client.sendall(pack(packet))
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                    client.sendall(b"".join(pack(kept.pop(0)) for _ in list(kept)))
