"""What is still to be sent on one connection, and who caused it.

Rules: an event that still waits here in the same words is not queued twice: the reader will look
after it anyway. Events are counted for the domain that caused them, until they are sent; a watch
may be folded (`session.py`): an event of its own path waits and stands for all others.

Source: XSA-326 (a guest that never reads, or makes others' queues grow, must not eat the server).
"""

from collections import Counter, deque
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Message:
    data: bytes
    is_event: bool = False
    cause: int | None = None
    folded: Hashable = None


class Outbox:
    """Messages in order; `size` is their bytes, `caused` the events by the domain behind them."""

    def __init__(self) -> None:
        self.size = 0
        self.caused: Counter[int] = Counter()
        self.folded: set[Hashable] = set()  # watches of which a folded event is unsent
        self._messages: deque[_Message] = deque()
        self._sent = 0  # bytes of the first message
        self._waiting: set[bytes] = set()  # events of which no byte is sent

    def reply(self, data: bytes) -> None:
        """Queue the answer to a request."""
        self._queue(_Message(data))

    def event(self, data: bytes, cause: int | None) -> None:
        """Queue a watch event that `cause` is counted for, as long as it waits here."""
        if data in self._waiting:
            return
        if cause is not None:
            self.caused[cause] += 1
        self._queue(_Message(data, True, cause))

    def fold(self, data: bytes, watch: Hashable) -> None:
        """Queue the event that stands for all others of `watch`."""
        if data in self._waiting:
            return
        self.folded.add(watch)
        self._queue(_Message(data, True, None, watch))

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

    def sent(self, nbytes: int) -> None:
        """`nbytes` of `pending` are sent."""
        self.size -= nbytes
        self._sent += nbytes
        while self._messages:
            first = self._messages[0]
            if self._sent > 0 and first.is_event:
                self._waiting.discard(first.data)
                self.folded.discard(first.folded)
            if self._sent < len(first.data):
                break
            self._messages.popleft()
            self._sent -= len(first.data)
            if first.cause is not None:
                self.caused[first.cause] -= 1
                if not self.caused[first.cause]:
                    del self.caused[first.cause]

    def clear(self) -> None:
        """Forget everything, as the reader is gone."""
        self.sent(self.size)

    def _queue(self, message: _Message) -> None:
        if message.is_event:
            self._waiting.add(message.data)
        self._messages.append(message)
        self.size += len(message.data)
