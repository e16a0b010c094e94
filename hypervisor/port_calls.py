"""The event-channel hypercalls: who may do what to whose ports.

Owns: which domains an EVTCHNOP is about, and whether the caller may. Only domain 0 acts for others.
What becomes of the ports is in `hypervisor/event_channels.py`.
"""

import errno
from collections.abc import Callable
from typing import Final

import numpy as np

from common import abi
from hypervisor.domains import PRIVILEGED, Caller, Domain, Domains
from hypervisor.event_channels import EventChannels


class PortCalls:
    """EVTCHNOP_*; each over one struct, filled in place, and answered with 0 or -errno."""

    def __init__(self, domains: Domains) -> None:
        self._domains = domains

    def close_all(self, domain: Domain) -> None:
        """Close every port of a domain."""
        for port in domain.channels.ports():
            domain.channels.close(port, self._channels_of)

    def _alloc_unbound(self, caller: Caller, args: np.ndarray) -> int:
        owner, rc = self._owner(caller, int(args["dom"][0]))
        remote = int(args["remote_dom"][0])
        remote = caller.domain.domid if remote == abi.DOMID_SELF else remote
        if rc == -errno.ESRCH or self._domains.find(remote) is None:
            return -errno.ESRCH
        return rc or _set(args, "port", owner.channels.alloc_unbound(remote))

    def _bind_interdomain(self, caller: Caller, args: np.ndarray) -> int:
        remote = self._find(caller, int(args["remote_dom"][0]))
        if remote is None:
            return -errno.ESRCH
        port = caller.domain.channels.bind(remote.channels, int(args["remote_port"][0]))
        return _set(args, "local_port", port)

    def _close(self, caller: Caller, args: np.ndarray) -> int:
        return caller.domain.channels.close(int(args["port"][0]), self._channels_of)

    def _unmask(self, caller: Caller, args: np.ndarray) -> int:
        return caller.domain.channels.unmask(int(args["port"][0]))

    def _status(self, caller: Caller, args: np.ndarray) -> int:
        owner, rc = self._owner(caller, int(args["dom"][0]))
        if rc == 0:
            port = owner.channels.get(int(args["port"][0]))
            args["status"], args["remote_dom"], args["remote_port"], _ = port
            args["vcpu"] = 0
        return rc

    def _reset(self, caller: Caller, args: np.ndarray) -> int:
        owner, rc = self._owner(caller, int(args["dom"][0]))
        if rc == 0:
            self.close_all(owner)
        return rc

    def _owner(self, caller: Caller, domid: int) -> tuple[Domain, int]:
        """The domain a call is about, and 0; or anybody, and why the caller may not."""
        owner = self._find(caller, domid)
        if owner is None:
            return caller.domain, -errno.ESRCH
        may = owner is caller.domain or caller.domain.has_role(PRIVILEGED)
        return owner, 0 if may else -errno.EPERM

    def _find(self, caller: Caller, domid: int) -> Domain | None:
        return caller.domain if domid == abi.DOMID_SELF else self._domains.find(domid)

    def _channels_of(self, domid: int) -> EventChannels | None:
        domain = self._domains.find(domid)
        return None if domain is None else domain.channels


def _set(args: np.ndarray, field: str, port: int) -> int:
    """Answer with a new port, or with the error it is."""
    if port < 0:
        return port
    args[field] = port
    return 0


_Method = Callable[[PortCalls, Caller, np.ndarray], int]

# By command: the struct, and what to do.
# EVTCHNOP_send is not there: an event is the sender's to set (common/event_channel.py).
PORT_CALLS: Final[dict[int, tuple[np.dtype[np.void], _Method]]] = {
    abi.EVTCHNOP_ALLOC_UNBOUND: (abi.EVTCHN_ALLOC_UNBOUND, PortCalls._alloc_unbound),
    abi.EVTCHNOP_BIND_INTERDOMAIN: (abi.EVTCHN_BIND_INTERDOMAIN, PortCalls._bind_interdomain),
    abi.EVTCHNOP_CLOSE: (abi.EVTCHN_CLOSE, PortCalls._close),
    abi.EVTCHNOP_UNMASK: (abi.EVTCHN_UNMASK, PortCalls._unmask),
    abi.EVTCHNOP_STATUS: (abi.EVTCHN_STATUS, PortCalls._status),
    abi.EVTCHNOP_RESET: (abi.EVTCHN_RESET, PortCalls._reset),
}
