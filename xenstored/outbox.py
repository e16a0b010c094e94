"""What is still to be sent on one connection, and who pays for it.

Rules: an event that still waits here in the same words is not queued twice: the reader will look
after it anyway. An event may be charged to the domain that caused it, until it is sent.

Source: XSA-326 (a guest that never reads, or makes others' queues grow, must not eat the server).
"""

from collections import deque
from dataclasses import dataclass

from xenstored.quotas import Usage


@dataclass(frozen=True, slots=True)
class _Message:
    data: bytes
    is_event: bool
    charged: Usage | None


class Outbox:
    """Messages in order; `size` is their bytes."""

    def __init__(self) -> None:
        self.size = 0
        self._messages: deque[_Message] = deque()
        self._sent = 0  # bytes of the first message
        self._waiting: set[bytes] = set()  # events of which no byte is sent

    def reply(self, data: bytes) -> None:
        """Queue the answer to a request."""
        self._queue(_Message(data, False, None))

    def event(self, data: bytes, charged: Usage | None) -> None:
        """Queue a watch event, and charge it to `charged` for as long as it waits here."""
        if data in self._waiting:
            return
        self._waiting.add(data)
        if charged is not None:
            charged.outstanding_events += 1
        self._queue(_Message(data, True, charged))

    def pending(self, nbytes: int) -> bytes:
        """What to send next: `nbytes`, or a message more, or all there is."""
        chunks: list[bytes] = []
        total = -self._sent
        for message in self._messages:
            chunks.append(message.data)
            total += len(message.data)
            if total >= nbytes:
                break
        return b"".join(chunks)[self._sent :]

    def sent(self, nbytes: int) -> set[Usage]:
        """`nbytes` of `pending` are sent; returns whose charges have been lowered."""
        relieved: set[Usage] = set()
        self.size -= nbytes
        self._sent += nbytes
        while self._messages:
            first = self._messages[0]
            if self._sent > 0 and first.is_event:
                self._waiting.discard(first.data)
            if self._sent < len(first.data):
                break
            self._messages.popleft()
            self._sent -= len(first.data)
            if first.charged is not None:
                first.charged.outstanding_events -= 1
                relieved.add(first.charged)
        return relieved

    def clear(self) -> set[Usage]:
        """Forget everything, as the reader is gone; returns what `sent` returns."""
        return self.sent(self.size)

    def _queue(self, message: _Message) -> None:
        self._messages.append(message)
        self.size += len(message.data)
