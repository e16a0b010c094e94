"""Attacks on the event channel to dom0: its disk is connected, and then its wake-ups are abused."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from typing import Final

from common import abi
from common.event_channel import EventChannel, set_pending
from common.wakeups import PipeCarrier
from hostile.attacker import Attacker
from machine.front_disk import FrontDisk

WAKES: Final = bytes(4096)
F_SETPIPE_SZ: Final = 1031


def _channel(vbd: FrontDisk) -> tuple[EventChannel, int, int]:
    """The channel, and its descriptors: from dom0, to dom0."""
    channel = vbd.channel
    assert channel is not None and isinstance(channel.carrier, PipeCarrier)
    return channel, channel.carrier._from_far, channel.carrier._to_far


def wakes_without_event(me: Attacker) -> Iterator[None]:
    """Wake-ups, and nothing pending (XSA-332)."""
    for vbd in me.connected():
        channel, _, _ = _channel(vbd)
        while me.wanted():
            channel.wake_far_end()
            me.stroke()
            yield


def events_without_request(me: Attacker) -> Iterator[None]:
    """Events, each with its wake-up, and nothing on the ring (XSA-332)."""
    for vbd in me.connected():
        channel, _, to_dom0 = _channel(vbd)
        while me.wanted():
            set_pending(channel.far_pending, channel.far_mask, channel.port)
            with contextlib.suppress(BlockingIOError):
                os.write(to_dom0, b"\1")
            me.stroke()
            yield


def full_pipe(me: Attacker) -> Iterator[None]:
    """Its pipe to dom0 kept full, dom0's to it never read, while there are events."""
    for vbd in me.connected():
        channel, _, to_dom0 = _channel(vbd)
        while me.wanted():
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(to_dom0, WAKES)
                    me.stroke()
            channel.notify()
            yield


def flags_and_sizes(me: Attacker) -> Iterator[None]:
    """Flags and sizes of its ends changed under dom0, as far as the seal lets it."""
    for vbd in me.connected():
        channel, from_dom0, to_dom0 = _channel(vbd)
        while me.wanted():
            for fd in (from_dom0, to_dom0):
                os.set_blocking(fd, not os.get_blocking(fd))
                for size in (4096, 1 << 20):
                    with contextlib.suppress(OSError):
                        fcntl.fcntl(fd, F_SETPIPE_SZ, size)
            os.set_blocking(to_dom0, False)
            channel.notify()
            me.stroke()
            yield


def hang_up(me: Attacker) -> Iterator[None]:
    """Both its ends closed while dom0 sleeps on them; the disk is left as it is."""
    for vbd in me.connected():
        channel, from_dom0, to_dom0 = _channel(vbd)
        os.close(from_dom0)
        os.close(to_dom0)
        me.stroke()
        while me.wanted():
            set_pending(channel.far_pending, channel.far_mask, channel.port)
            yield
        return


def port_closed(me: Attacker) -> Iterator[None]:
    """Its port closed and opened again under dom0, which is bound to it."""
    for vbd in me.connected():
        channel, _, _ = _channel(vbd)
        client = me.hypercall_client
        client.event_channel_op("close", abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=channel.port)
        _, descriptors = client.event_channel_op(
            "alloc_unbound",
            abi.EVTCHNOP_ALLOC_UNBOUND,
            abi.EVTCHN_ALLOC_UNBOUND,
            dom=abi.DOMID_SELF,
            remote_dom=0,
        )
        for fd in descriptors:
            os.close(fd)
        channel.notify()
        me.stroke()
        yield
