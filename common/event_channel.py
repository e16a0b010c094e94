"""One end of an interdomain event channel: a pending bit in shared memory, a wake-up by ZeroMQ.

Owns: how an event is sent and awaited once the broker has bound the ports. Rules (Xen's two-level
ABI): a send sets the far end's pending bit; only if it was clear, and the port is not masked, is
the far end woken. A waiter clears its bit before it looks at the ring, never after. The words lie
with the domain that allocated the port: its own in its shared-info page, the far end's in the page
behind it, at the same bit, so that a guest reaches nobody's channels but its own.

The wake-up goes straight from peer to peer, over a ZeroMQ PAIR that the allocating end binds. At
most one is on its way for each time the waiter has cleared its bit.
"""

import contextlib
import time
from typing import Final

import numpy as np
import zmq

from common.abi import SHARED_INFO
from common.atomics import fetch_and, fetch_or, load_acquire
from common.compiled import kernel

WAKE: Final = b"\1"
WAKES_QUEUED_MAX: Final = 16
MESSAGE_MAX: Final = 256


@kernel
def set_pending(pending: np.ndarray, mask: np.ndarray, port: int) -> bool:
    """Mark `port` pending at the far end; True if it must be woken."""
    word, bit = port >> 6, np.uint64(1) << np.uint64(port & 63)
    if fetch_or(pending, word, bit) & bit:
        return False
    return (load_acquire(mask, word) & bit) == 0


@kernel
def clear_pending(pending: np.ndarray, port: int) -> bool:
    """Take `port`'s event; True if there was one."""
    word, bit = port >> 6, np.uint64(1) << np.uint64(port & 63)
    return (fetch_and(pending, word, ~bit) & bit) != 0


@kernel
def clear_mask(mask: np.ndarray, port: int) -> None:
    """Let `port` wake its waiter."""
    fetch_and(mask, port >> 6, ~(np.uint64(1) << np.uint64(port & 63)))


def event_words(page: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pending and mask words (u64, shape (64,)) of a shared-info `page` (u8)."""
    info = page.view(SHARED_INFO)
    return info["evtchn_pending"][0], info["evtchn_mask"][0]


def channel_address(run_dir: str, domid: int, port: int) -> str:
    """Where the channel that `domid` allocated as `port` wakes its ends."""
    return f"ipc://{run_dir}/evtchn-{domid}-{port}"


class EventChannel:
    """One bound end. `port` is the allocating domain's; `own` and `far` are shared-info pages."""

    def __init__(
        self, address: str, port: int, own: np.ndarray, far: np.ndarray, *, allocated_here: bool
    ) -> None:
        self.port = port
        self.pending, self._mask = event_words(own)
        self.far_pending, self.far_mask = event_words(far)
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self.socket.setsockopt(zmq.LINGER, 0)
        # A peer's messages cost us memory; ZeroMQ's own handshake needs some 60 bytes.
        self.socket.setsockopt(zmq.MAXMSGSIZE, MESSAGE_MAX)
        self.socket.setsockopt(zmq.RCVHWM, WAKES_QUEUED_MAX)
        self.socket.setsockopt(zmq.SNDHWM, WAKES_QUEUED_MAX)
        self._timeout_ms = -1
        if allocated_here:
            self.socket.bind(address)
        else:
            self.socket.connect(address)
            self.wake_far_end()  # which waits for it in `await_far_end`
        clear_mask(self._mask, port)

    def await_far_end(self, timeout_ms: int) -> bool:
        """For the allocating end, once: wait until the far end is connected.

        ZeroMQ connects in the background, and until it has, a wake-up sent from here is lost.
        """
        return self._receive(timeout_ms)

    def wake_far_end(self) -> None:
        """Wake the far end, whose bit `set_pending` has just set."""
        # If it has wake-ups that it has not read, one more would tell it nothing.
        with contextlib.suppress(zmq.Again):
            self.socket.send(WAKE, zmq.NOBLOCK)

    def notify(self) -> None:
        """EVTCHNOP_send."""
        if set_pending(self.far_pending, self.far_mask, self.port):
            self.wake_far_end()

    def wait(self, timeout_ms: int) -> bool:
        """Sleep until there is an event, and take it; False if the time ran out first.

        A wake-up may be older than an event that was taken without it: it ends no wait.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        while not clear_pending(self.pending, self.port):
            left_ms = int((deadline - time.monotonic()) * 1000)
            if left_ms < 0 or not self._receive(left_ms):
                return bool(clear_pending(self.pending, self.port))
        return True

    def _receive(self, timeout_ms: int) -> bool:
        """Read one wake-up; it says no more than the pending bit does."""
        if timeout_ms != self._timeout_ms:
            self._timeout_ms = timeout_ms
            self.socket.setsockopt(zmq.RCVTIMEO, timeout_ms)
        try:
            self.socket.recv()
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Give the socket up. The port itself is closed by EVTCHNOP_close."""
        self.socket.close()
