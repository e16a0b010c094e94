"""Two ends of each carrier of wake-ups, and what can be seen of one from outside."""

import os
import select
import threading
from typing import Final, get_args

from common.process import open_descriptors
from common.wakeups import Carrier, Events, PipeCarrier, ZmqCarrier, carrier_of

CARRIERS: Final[tuple[Events, ...]] = get_args(Events)
PATIENCE_S: Final = 5.0  # a wake-up that has not come by then is lost


def connected(events: Events, address: str) -> tuple[Carrier, Carrier]:
    """The allocating end and the far one, as hypervisor, frontend and backend bring them about."""
    lines: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    if events == "pipe":
        (near_reads, far_writes), (far_reads, near_writes) = os.pipe(), os.pipe()
        lines = (near_reads, near_writes), (far_reads, far_writes)
    near = carrier_of(events, lines[0], address, allocated_here=True)
    far = carrier_of(events, lines[1], address, allocated_here=False)
    assert near.await_far_end(60_000)
    return near, far


def wake_up_is_there(carrier: Carrier, within_ms: int) -> bool:
    """Is a wake-up waiting to be drained, or will one be?"""
    if isinstance(carrier, PipeCarrier):
        poller = select.poll()
        poller.register(carrier._from_far, select.POLLIN)
        return bool(poller.poll(within_ms))
    assert isinstance(carrier, ZmqCarrier)
    return bool(carrier._socket.poll(within_ms))


def is_closed(carrier: Carrier) -> bool:
    """Has it been given up?"""
    if isinstance(carrier, PipeCarrier):
        return carrier._from_far not in open_descriptors()
    assert isinstance(carrier, ZmqCarrier)
    return bool(carrier._socket.closed)


def woken(carrier: Carrier) -> bool:
    """Sleep; True if a wake-up ended that, False if none came for a long while."""
    watchdog, ring = os.pipe()
    alarm = threading.Timer(PATIENCE_S, lambda: os.write(ring, b"!"))
    alarm.start()
    try:
        return not carrier.sleep(-1, (watchdog,))
    finally:
        alarm.cancel()
        alarm.join()
        os.close(watchdog)
        os.close(ring)
