"""A domain's event channels: which ports there are, and whom each is bound to.

Owns: the port table and the EVTCHNOPs that change it. Rules (Xen's `event_channel.h`): port 0 is
never given out; an unbound port can be bound once, by the domain it was allocated for; closing one
end makes the other unbound again, waiting for the same domain; a new binding is pending at once,
since the far end may have sent before it was bound.
Never knows: how a waiter is woken (`common/event_channel.py`: from peer to peer).

Where the bits are: both ends' words lie with the domain that allocated the port (see
`common/event_channel.py`), its own in its shared-info page, the far end's in the page behind it, at
the allocated port's bit.
"""

import errno
from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from common.abi import (
    EVTCHN_2L_NR_CHANNELS,
    EVTCHNSTAT_CLOSED,
    EVTCHNSTAT_INTERDOMAIN,
    EVTCHNSTAT_UNBOUND,
    XEN_PAGE_SIZE,
)
from common.atomics import fetch_and, fetch_or
from common.compiled import direct, kernel
from common.event_channel import clear_mask, event_words, set_pending
from hypervisor.room import Carver

PORTS_MAX: Final = EVTCHN_2L_NR_CHANNELS

# `remote_port` is 0 while unbound; `allocated`: by us, not by the far end. A closed port is all 0.
PORT: Final = np.dtype(
    [("state", "<u2"), ("remote_dom", "<u2"), ("remote_port", "<u2"), ("allocated", "<u2")]
)
assert EVTCHNSTAT_CLOSED == 0


class Port(NamedTuple):
    """What a port is: see PORT."""

    state: int
    remote_dom: int
    remote_port: int
    allocated: bool


CLOSED: Final = Port(EVTCHNSTAT_CLOSED, 0, 0, False)


class EventChannels:
    """The ports of one domain, all closed; `event`: u8, its shared-info page and the one behind."""

    def __init__(self, memory: Carver, domid: int, event: np.ndarray) -> None:
        self.domid = domid
        self._table = memory.array(PORTS_MAX, PORT)
        # The same, by field and by port: numpy's scalars are slow.
        self._fields = tuple(self._table[name].data for name in PORT.names or ())
        self._whole = self._table.view(np.uint64).data
        self._own, self._far = (
            event_words(event[:XEN_PAGE_SIZE]),
            event_words(event[XEN_PAGE_SIZE:]),
        )
        self._reset = direct(_reset, 0, *self._own, *self._far)
        for _, mask in (self._own, self._far):
            mask[:] = np.uint64(0xFFFFFFFFFFFFFFFF)  # a port is masked until its end listens

    def get(self, port: int) -> Port:
        """What `port` is; CLOSED too if there is no such port."""
        if not 0 < port < PORTS_MAX:
            return CLOSED
        state, remote_dom, remote_port, allocated = self._fields
        return Port(state[port], remote_dom[port], remote_port[port], bool(allocated[port]))

    def ports(self) -> list[int]:
        """The ports in use."""
        ports: list[int] = np.flatnonzero(self._table["state"]).tolist()
        return ports

    def alloc_unbound(self, remote_dom: int) -> int:
        """A new port that `remote_dom` may bind to, or -ENOSPC."""
        port = self._free_port()
        if port > 0:
            self._set(port, Port(EVTCHNSTAT_UNBOUND, remote_dom, 0, allocated=True))
            self._reset(port, *self._own, *self._far)
        return port

    def bind(self, remote: "EventChannels", remote_port: int) -> int:
        """Bind a new port to `remote_port` of `remote`; the port, or -errno."""
        there = remote.get(remote_port)
        if there.state != EVTCHNSTAT_UNBOUND or there.remote_dom != self.domid:
            return -errno.EINVAL
        if not there.allocated:
            return -errno.EINVAL  # what is left of a channel whose words have gone with its owner
        port = self._free_port()
        if port < 0:
            return port
        self._set(port, Port(EVTCHNSTAT_INTERDOMAIN, remote.domid, remote_port, allocated=False))
        remote._set(remote_port, there._replace(state=EVTCHNSTAT_INTERDOMAIN, remote_port=port))
        set_pending(*remote._far, remote_port)
        return port

    def close(self, port: int, channels_of: "Callable[[int], EventChannels | None]") -> int:
        """Close a port; its far end, which `channels_of` its domain has, is unbound then.

        0 or -EINVAL.
        """
        closed = self.get(port)
        if closed.state == EVTCHNSTAT_CLOSED:
            return -errno.EINVAL
        self._whole[port] = 0
        if closed.allocated:
            self._reset(port, *self._own, *self._far)
        if closed.state == EVTCHNSTAT_INTERDOMAIN:
            remote = channels_of(closed.remote_dom)
            if remote is not None:
                remote._unbind(closed.remote_port)
        return 0

    def _unbind(self, port: int) -> None:
        """The far end has gone."""
        there = self.get(port)
        self._set(port, there._replace(state=EVTCHNSTAT_UNBOUND, remote_port=0))

    def unmask(self, port: int) -> int:
        """Let an allocated port wake its waiter. 0 or -EINVAL."""
        found = self.get(port)
        if found.state == EVTCHNSTAT_CLOSED:
            return -errno.EINVAL
        if found.allocated:
            clear_mask(self._own[1], port)
        return 0

    def _set(self, port: int, what: Port) -> None:
        for field, value in zip(self._fields, what, strict=True):
            field[port] = value

    def _free_port(self) -> int:
        port = 1 + int(np.argmin(self._table["state"][1:]))  # the first that is closed
        return -errno.ENOSPC if self._table["state"][port] else port


@kernel
def _reset(
    port: int, pending: np.ndarray, mask: np.ndarray, far_pending: np.ndarray, far_mask: np.ndarray
) -> None:
    """Nothing pending at either end, and masked: how a port begins and ends."""
    word, bit = port >> 6, np.uint64(1) << np.uint64(port & 63)
    fetch_and(pending, word, ~bit)
    fetch_and(far_pending, word, ~bit)
    fetch_or(mask, word, bit)
    fetch_or(far_mask, word, bit)
