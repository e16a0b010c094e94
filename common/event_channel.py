"""One end of an interdomain event channel: a pending bit in shared memory, and a wake-up.

Owns: how an event is sent and awaited once the broker has bound the ports. Rules (Xen's two-level
ABI): a send sets the far end's pending bit; only if it was clear, and the port is not masked, is
the far end woken. A waiter clears its bit before it looks at the ring, never after. The words lie
with the domain that allocated the port: its own in its shared-info page, the far end's in the page
behind it, at the same bit, so that a guest reaches nobody's channels but its own.

The wake-up goes straight from peer to peer, over one of two carriers (`common/wakeups.py`). At most
one is on its way for each time the waiter has cleared its bit.
"""

import itertools
import os
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from common.abi import SHARED_INFO
from common.atomics import fetch_and, fetch_or, load_acquire
from common.compiled import kernel
from common.rows import Layout
from common.wakeups import Carrier

FRUITLESS_MAX: Final = 2  # wake-ups of one wait that came without an event (XSA-332)
FRUITLESS_NAP_S: Final = 0.005


class EventWords(NamedTuple):
    """One end's words of a channel, u64 each, shape (64,), as they lie in shared-info pages.

    port: i64 (1,), the allocating domain's number of it.
    """

    pending: np.ndarray
    far_pending: np.ndarray
    far_mask: np.ndarray
    port: np.ndarray


EVENT_WORDS: Final = Layout(
    EventWords, pending=np.uint64, far_pending=np.uint64, far_mask=np.uint64, port=np.int64
)


@kernel
def become_pending(pending: np.ndarray, port: int) -> bool:
    """Mark `port` pending at the far end; False if it was."""
    word, bit = port >> 6, np.uint64(1) << np.uint64(port & 63)
    return (fetch_or(pending, word, bit) & bit) == 0


@kernel
def is_masked(mask: np.ndarray, port: int) -> bool:
    """Does the far end not want to be woken?"""
    return (load_acquire(mask, port >> 6) >> np.uint64(port & 63)) & np.uint64(1) != 0


@kernel
def set_pending(pending: np.ndarray, mask: np.ndarray, port: int) -> bool:
    """Mark `port` pending at the far end; True if it must be woken."""
    return become_pending(pending, port) and not is_masked(mask, port)


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


def events_dir(run_dir: str, domid: int) -> str:
    """The directory that `domid` has of its own, for ZeroMQ's sockets."""
    return os.path.join(run_dir, f"events-{domid}")


def channel_address(directory: str, port: int) -> str:
    """Where the channel that a domain allocated as `port` wakes its ends, with ZeroMQ."""
    return f"ipc://{directory}/{port}"


class EventChannel:
    """One bound end. `port` is the allocating domain's; `own` and `far` are shared-info pages."""

    def __init__(self, carrier: Carrier, port: int, own: np.ndarray, far: np.ndarray) -> None:
        self.port = port
        self.carrier = carrier
        self.pending, mask = event_words(own)
        self.far_pending, self.far_mask = event_words(far)
        clear_mask(mask, port)

    @property
    def words(self) -> EventWords:
        """As the steppers take them."""
        return EventWords(self.pending, self.far_pending, self.far_mask, np.array([self.port]))

    def wake_far_end(self) -> None:
        """Wake the far end, whose bit `set_pending` has just set."""
        self.carrier.wake()

    def is_pending(self) -> bool:
        """Is there an event? It is not taken."""
        return bool(int(self.pending[self.port >> 6]) >> (self.port & 63) & 1)

    def notify(self) -> None:
        """EVTCHNOP_send."""
        if set_pending(self.far_pending, self.far_mask, self.port):
            self.wake_far_end()

    def wait(self, timeout_ms: int, others: Sequence[int] = ()) -> bool:
        """Sleep until there is an event, and take it; -1: for as long as that takes.

        False if the time ran out first, or one of `others` (descriptors) became readable. A wake-up
        may be older than an event that was taken without it: it ends no wait.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        left_ms = timeout_ms
        for wake_ups in itertools.count():
            if wake_ups > FRUITLESS_MAX:  # who sends them without an event pays with its latency
                time.sleep(FRUITLESS_NAP_S)
            # Drained first: a wake-up that comes after this look ends the sleep below.
            self.carrier.drain()
            if clear_pending(self.pending, self.port):
                return True
            if timeout_ms >= 0 and left_ms < 0:
                return False
            if self.carrier.sleep(left_ms, others):
                return bool(clear_pending(self.pending, self.port))
            if timeout_ms >= 0:
                left_ms = int((deadline - time.monotonic()) * 1000) or -1
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Give the carrier up. The port itself is closed by EVTCHNOP_close."""
        self.carrier.close()
