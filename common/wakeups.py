"""What carries a wake-up from one end of an event channel to the other: ZeroMQ, or two pipes.

Owns: both carriers, behind one door. A wake-up says nothing but "look at your pending bit"; when
one is sent, and what is counted, is `common/event_channel.py`'s, the same for both.

ZeroMQ: a PAIR over a unix socket that the allocating end binds. Rules: its descriptor is
edge-triggered, so what it has is drained, and ZMQ_EVENTS looked at (zmq_poll does), before each
sleep. It cannot be bounded against a peer that speaks raw ZMTP: see docs/security.md.

Pipe: made by the hypervisor, which hands each end two descriptors, one to read and one to write.
Rules: each of the four is one process's alone, so its flags are its own: what the far end does to
its descriptors (O_NONBLOCK, F_SETPIPE_SZ) can make no send or receive of ours block. (An eventfd
would be one description for both.)
"""

import contextlib
import os
import select
import time
from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol

import zmq

Events = Literal["zeromq", "pipe"]

WAKE: Final = b"\1"
WAKES_QUEUED_MAX: Final = 16
MESSAGE_MAX: Final = 256
DRAIN_BYTES: Final = 4096
DRAINS_MAX: Final = 16  # a pipe holds 64 KiB; who fills it faster than that is not waited for


class Carrier(Protocol):
    """One end's way to wake the other, and to be woken.

    polled: for `new_poller`'s; hung_up: the far end is gone, and there is nothing more to poll for.
    """

    polled: Any
    hung_up: bool

    def fileno(self) -> int:
        """For pollers: readable when something comes; ZeroMQ's is edge-triggered, see above."""

    def await_far_end(self, timeout_ms: int) -> bool:
        """For the allocating end, once: can the far end be woken from now on?"""

    def wake(self) -> None:
        """Wake the far end; never blocks."""

    def drain(self) -> None:
        """Take the wake-ups that have come: they say no more than the pending bit does."""

    def sleep(self, timeout_ms: int, others: Sequence[int]) -> bool:
        """Block until a wake-up comes, one of `others` is readable, or the time (-1: none) is up.

        True if one of `others` is.
        """

    def close(self) -> None:
        """Give it up."""


class PipeCarrier:
    """Takes over the two descriptors."""

    def __init__(self, from_far: int, to_far: int) -> None:
        self._from_far, self._to_far = from_far, to_far
        for fd in (from_far, to_far):
            os.set_blocking(fd, False)
        self.polled: Any = from_far
        self.hung_up = False

    def fileno(self) -> int:
        """The pipe that is read from."""
        return self._from_far

    def await_far_end(self, timeout_ms: int) -> bool:
        """A pipe keeps what is written before its reader comes."""
        return True

    def wake(self) -> None:
        """One byte. A full pipe has wake-ups enough; one without a reader has no far end."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._to_far, WAKE)

    def drain(self) -> None:
        """Read what is there."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(DRAINS_MAX):
                # Without a writer there will be nothing more, and poll(2) would return at once.
                read = len(os.read(self._from_far, DRAIN_BYTES))
                self.hung_up = read == 0
                if read < DRAIN_BYTES:
                    return

    def sleep(self, timeout_ms: int, others: Sequence[int]) -> bool:
        """poll(2) on the pipe and `others`."""
        poller = select.poll()
        if not self.hung_up:
            poller.register(self._from_far, select.POLLIN)
        for fd in others:
            poller.register(fd, select.POLLIN)
        ready = poller.poll(None if timeout_ms < 0 else timeout_ms)
        return any(fd != self._from_far for fd, _ in ready)

    def close(self) -> None:
        """Close both."""
        for fd in (self._from_far, self._to_far):
            os.close(fd)


class ZmqCarrier:
    """Over `address`; the allocating end binds."""

    def __init__(self, address: str, *, allocated_here: bool) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._socket.setsockopt(zmq.LINGER, 0)
        # A peer's messages cost us memory; ZeroMQ's own handshake needs some 60 bytes.
        self._socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_MAX)
        self._socket.setsockopt(zmq.RCVHWM, WAKES_QUEUED_MAX)
        self._socket.setsockopt(zmq.SNDHWM, WAKES_QUEUED_MAX)
        self._bound = address.removeprefix("ipc://") if allocated_here else ""
        if allocated_here:
            self._socket.bind(address)
        else:
            self._socket.connect(address)
            self.wake()  # which the far end waits for in `await_far_end`
        self.polled: Any = self._socket
        self.hung_up = False

    def fileno(self) -> int:
        """Look at the socket before each sleep on it."""
        return int(self._socket.getsockopt(zmq.FD))

    def await_far_end(self, timeout_ms: int) -> bool:
        """ZeroMQ connects in the background, and until it has, a wake-up sent from here is lost."""
        deadline = time.monotonic() + timeout_ms / 1000
        while not self._socket.poll(timeout_ms):
            if time.monotonic() >= deadline:
                return False
        self.drain()
        return True

    def wake(self) -> None:
        """If wake-ups are on their way to it, one more would tell it nothing.

        ZeroMQ's send counts those that have arrived, too, until it has looked whether they have:
        it does so once a millisecond, or when asked for ZMQ_EVENTS.
        """
        try:
            self._socket.send(WAKE, zmq.NOBLOCK)
        except zmq.Again:
            if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLOUT:
                with contextlib.suppress(zmq.Again):
                    self._socket.send(WAKE, zmq.NOBLOCK)

    def drain(self) -> None:
        """Receive what is there."""
        with contextlib.suppress(zmq.Again):
            for _ in range(WAKES_QUEUED_MAX):
                self._socket.recv(zmq.NOBLOCK)

    def sleep(self, timeout_ms: int, others: Sequence[int]) -> bool:
        """zmq_poll on the socket and `others`."""
        ready = zmq.zmq_poll(
            [(self._socket, zmq.POLLIN), *((fd, zmq.POLLIN) for fd in others)], timeout_ms
        )
        return any(isinstance(item, int) for item, _ in ready)

    def close(self) -> None:
        """Close the socket, and remove what it was bound to: ZeroMQ does not."""
        self._socket.close()
        if self._bound:
            with contextlib.suppress(OSError):
                os.unlink(self._bound)


def new_poller(events: Events) -> Any:
    """For a thread that sleeps on many carriers of one kind, and on descriptors besides.

    `register(polled, select.POLLIN)`, `unregister(polled)`, `poll(timeout_ms)`: those of both kinds
    of pollers; one of ZeroMQ's looks at ZMQ_EVENTS as it should.
    """
    return select.poll() if events == "pipe" else zmq.Poller()


def carrier_of(
    events: Events, descriptors: Sequence[int], address: str, *, allocated_here: bool
) -> Carrier:
    """This end's carrier. descriptors: what came with the port (none with ZeroMQ)."""
    if events == "zeromq":
        return ZmqCarrier(address, allocated_here=allocated_here)
    from_far, to_far = descriptors
    return PipeCarrier(from_far, to_far)
