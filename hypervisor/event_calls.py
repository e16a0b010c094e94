"""Event-channel hypercalls with `--events pipe`: who allocates or binds a port also gets its line.

Owns: what has to happen around `Hypervisor.hypercall` so that a port and its wake-up lines come and
go together. With ZeroMQ there are no lines, and nothing to do.
Rules: lines are made before the port, and a bind that finds none (they went to an earlier binding)
has not happened.
"""

import errno
from typing import Final

import numpy as np

from common import abi
from hypervisor.cpus import NO_CPU
from hypervisor.hypercalls import Hypervisor
from hypervisor.wake_lines import WakeLines

# The ops that concern lines, and their structs.
OPS: Final = {
    abi.EVTCHNOP_ALLOC_UNBOUND: abi.EVTCHN_ALLOC_UNBOUND,
    abi.EVTCHNOP_BIND_INTERDOMAIN: abi.EVTCHN_BIND_INTERDOMAIN,
    abi.EVTCHNOP_CLOSE: abi.EVTCHN_CLOSE,
    abi.EVTCHNOP_RESET: abi.EVTCHN_RESET,
}


class EventCalls:
    """In front of `hypervisor`, for the event-channel operations that need it."""

    def __init__(self, hypervisor: Hypervisor, *, with_lines: bool) -> None:
        self._hypervisor = hypervisor
        self._lines = WakeLines() if with_lines else None

    def call(
        self, caller: int, number: int, cmd: int, payload: bytearray, spent: list[int]
    ) -> int | None:
        """Make the call, and put the descriptors that go with its answer into `spent`.

        None if this call has nothing to do with lines, and is still to be made.
        """
        dtype = OPS.get(cmd)
        if self._lines is None or number != abi.HYPERVISOR_EVENT_CHANNEL_OP or dtype is None:
            return None
        if len(payload) != dtype.itemsize:
            return -errno.EINVAL
        args = np.frombuffer(payload, dtype)
        if cmd == abi.EVTCHNOP_ALLOC_UNBOUND:
            return self._allocate(self._lines, caller, payload, args, spent)
        rc = self._make(caller, cmd, payload)
        if rc == 0 and cmd == abi.EVTCHNOP_BIND_INTERDOMAIN:
            return self._bound(self._lines, caller, args, spent)
        if rc == 0 and cmd == abi.EVTCHNOP_CLOSE:
            self._lines.close(caller, int(args["port"][0]))
        elif rc == 0:
            self._lines.forget(_owner(caller, int(args["dom"][0])))
        return rc

    def forget(self, domid: int) -> None:
        """The domain is gone, and its ports."""
        if self._lines is not None:
            self._lines.forget(domid)

    def _make(self, caller: int, cmd: int, payload: bytearray) -> int:
        number = abi.HYPERVISOR_EVENT_CHANNEL_OP
        return self._hypervisor.hypercall(caller, NO_CPU, number, cmd, payload, False)

    def _allocate(
        self,
        lines: WakeLines,
        caller: int,
        payload: bytearray,
        args: np.ndarray,
        spent: list[int],
    ) -> int:
        owner = _owner(caller, int(args["dom"][0]))
        if not lines.room(owner):
            return -errno.ENOSPC
        try:
            near, far = lines.make()
        except OSError:
            return -errno.ENOMEM
        spent += near
        rc = self._make(caller, abi.EVTCHNOP_ALLOC_UNBOUND, payload)
        if rc == 0:
            lines.keep(owner, int(args["port"][0]), far)
        else:
            spent += far
        return rc

    def _bound(self, lines: WakeLines, caller: int, args: np.ndarray, spent: list[int]) -> int:
        remote = _owner(caller, int(args["remote_dom"][0]))
        far = lines.take(remote, int(args["remote_port"][0]))
        if far is not None:
            spent += far
            return 0
        port = np.zeros(1, abi.EVTCHN_CLOSE)
        port["port"] = args["local_port"]
        self._make(caller, abi.EVTCHNOP_CLOSE, bytearray(port.tobytes()))
        return -errno.EINVAL


def _owner(caller: int, domid: int) -> int:
    return caller if domid == abi.DOMID_SELF else domid
