"""A domain's event channels: which ports there are, and whom each is bound to.

Owns: the port table and the EVTCHNOPs that change it. Rules (Xen's `event_channel.h`): port 0 is
never given out; an unbound port can be bound once, by the domain it was allocated for; closing one
end makes the other unbound again, waiting for the same domain; a new binding is pending at once,
since the far end may have sent before it was bound.
Never knows: how a waiter is woken (`common/event_channel.py`: from peer to peer).

Where the bits are: both ends' words lie with the domain that allocated the port (see
`common/event_channel.py`), its own in `own`, the far end's in `far`, at the allocated port's bit.
"""

import errno
from dataclasses import dataclass
from typing import Final

import numpy as np

from common.abi import (
    EVTCHN_2L_NR_CHANNELS,
    EVTCHNSTAT_CLOSED,
    EVTCHNSTAT_INTERDOMAIN,
    EVTCHNSTAT_UNBOUND,
)
from common.atomics import fetch_and, fetch_or
from common.event_channel import event_words

PORTS_MAX: Final = EVTCHN_2L_NR_CHANNELS


@dataclass
class Port:
    """A port in use. `remote_port` is 0 while unbound; `allocated`: by us, not by the far end."""

    state: int
    remote_dom: int
    remote_port: int
    allocated: bool


class EventChannels:
    """The ports of one domain; `own`, `far`: u8, a shared-info page each."""

    def __init__(self, domid: int, own: np.ndarray, far: np.ndarray) -> None:
        self.domid = domid
        self._ports: dict[int, Port] = {}
        self._own, self._far = event_words(own), event_words(far)
        for words in (self._own, self._far):
            words[1][:] = np.uint64(0xFFFFFFFFFFFFFFFF)  # a port is masked until its end listens

    def get(self, port: int) -> Port | None:
        """The port, or None if it is closed."""
        return self._ports.get(port)

    def ports(self) -> list[int]:
        """The ports in use."""
        return list(self._ports)

    def alloc_unbound(self, remote_dom: int) -> int:
        """A new port that `remote_dom` may bind to, or -ENOSPC."""
        port = self._free_port()
        if port > 0:
            self._ports[port] = Port(EVTCHNSTAT_UNBOUND, remote_dom, 0, allocated=True)
            for pending, mask in (self._own, self._far):
                _reset(pending, mask, port)
        return port

    def bind(self, remote: "EventChannels", remote_port: int) -> int:
        """Bind a new port to `remote_port` of `remote`; the port, or -errno."""
        there = remote.get(remote_port)
        if there is None or there.state != EVTCHNSTAT_UNBOUND or there.remote_dom != self.domid:
            return -errno.EINVAL
        if not there.allocated:
            return -errno.EINVAL  # what is left of a channel whose words have gone with its owner
        port = self._free_port()
        if port < 0:
            return port
        self._ports[port] = Port(EVTCHNSTAT_INTERDOMAIN, remote.domid, remote_port, allocated=False)
        there.state, there.remote_port = EVTCHNSTAT_INTERDOMAIN, port
        remote._set_far_pending(remote_port)
        return port

    def close(self, port: int, remote: "EventChannels | None") -> int:
        """Close a port; its far end, of `remote`, is unbound then. 0 or -EINVAL."""
        closed = self._ports.pop(port, None)
        if closed is None:
            return -errno.EINVAL
        if closed.allocated:
            for pending, mask in (self._own, self._far):
                _reset(pending, mask, port)
        there = None if remote is None else remote.get(closed.remote_port)
        if there is not None and closed.state == EVTCHNSTAT_INTERDOMAIN:
            there.state, there.remote_port = EVTCHNSTAT_UNBOUND, 0
        return 0

    def unmask(self, port: int) -> int:
        """Let an allocated port wake its waiter. 0 or -EINVAL."""
        found = self._ports.get(port)
        if found is None:
            return -errno.EINVAL
        if found.allocated:
            fetch_and(self._own[1], port >> 6, np.uint64(~(1 << (port & 63)) & (2**64 - 1)))
        return 0

    def status(self, port: int) -> tuple[int, int, int]:
        """(EVTCHNSTAT_*, remote domid, remote port) of a port; closed ones are (0, 0, 0)."""
        found = self._ports.get(port)
        if found is None:
            return EVTCHNSTAT_CLOSED, 0, 0
        return found.state, found.remote_dom, found.remote_port

    def _free_port(self) -> int:
        return next((p for p in range(1, PORTS_MAX) if p not in self._ports), -errno.ENOSPC)

    def _set_far_pending(self, port: int) -> None:
        fetch_or(self._far[0], port >> 6, np.uint64(1 << (port & 63)))


def _reset(pending: np.ndarray, mask: np.ndarray, port: int) -> None:
    """Nothing pending, and masked: how a port begins and ends."""
    bit = 1 << (port & 63)
    fetch_and(pending, port >> 6, np.uint64(~bit & (2**64 - 1)))
    fetch_or(mask, port >> 6, np.uint64(bit))
