"""What a handshake's drivers want of the hypervisor, in virtual time: both ends' hands.

Owns: the hypercalls of a handshake on the real core, made at once.
"""

import errno
from collections.abc import Callable
from typing import cast

import numpy as np

from common import abi
from common.faults import PeerFault
from common.handshake import Op
from hypervisor.hypercalls import Hypervisor
from machine.ring_ops import map_ring_op, unmap_ring_op


class Caller:
    """Hypercalls of domain `domid`'s `vcpu`."""

    def __init__(self, hypervisor: Hypervisor, domid: int, vcpu: int = 0) -> None:
        self._hypervisor, self._domid, self._vcpu = hypervisor, domid, vcpu

    def event_op(self, cmd: int, dtype: np.dtype, **fields: int) -> np.ndarray:
        """EVTCHNOP_*. Raises PeerFault if it is refused."""
        args = np.zeros(1, dtype)
        for name, value in fields.items():
            args[name] = value
        if (rc := self._call(abi.HYPERVISOR_EVENT_CHANNEL_OP, cmd, args)) != 0:
            raise PeerFault(f"event channel op {cmd}: {errno.errorcode[-rc]}")
        return args

    def grant_op(self, cmd: int, ops: np.ndarray) -> None:
        """GNTTABOP_*: each entry's own status says how it went."""
        rc = self._call(abi.HYPERVISOR_GRANT_TABLE_OP, cmd, ops)
        assert rc == 0, f"hypercall {cmd}: {rc}"

    def _call(self, number: int, cmd: int, args: np.ndarray) -> int:
        payload = cast(bytearray, args.view(np.uint8).data)
        return self._hypervisor.hypercall(self._domid, self._vcpu, number, cmd, payload, False)


class FrontHands:
    """A guest's: its channel."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._ended: Callable[[str], None] | None = None

    def call(self, op: Op, argument: int) -> int:
        """See Hands."""
        if op == Op.ALLOC_UNBOUND:
            dtype = abi.EVTCHN_ALLOC_UNBOUND
            named = {"dom": abi.DOMID_SELF, "remote_dom": argument}
            args = self._caller.event_op(abi.EVTCHNOP_ALLOC_UNBOUND, dtype, **named)
            return int(args["port"][0])
        assert op == Op.CLOSE
        self._caller.event_op(abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, port=argument)
        return 0

    def start(self, keeps: bool, ended: Callable[[str], None]) -> None:
        """See Hands."""
        self._ended = ended

    def stop(self) -> None:
        """See Hands."""
        self.end("")

    def end(self, why: str) -> None:
        """The disk is used no more."""
        assert self._ended is not None
        ended, self._ended = self._ended, None
        ended(why)

    def fail(self, reason: str) -> None:
        """See Hands: the seat keeps it."""


class BackHands(FrontHands):
    """dom0's. let_go: unmaps what the ring's thread has kept."""

    def __init__(self, caller: Caller, frontend_domid: int, let_go: Callable[[], None]) -> None:
        super().__init__(caller)
        self._frontend_domid, self._let_go = frontend_domid, let_go

    def call(self, op: Op, argument: int) -> int:
        """See Hands."""
        caller = self._caller
        if op == Op.BIND_INTERDOMAIN:
            dtype = abi.EVTCHN_BIND_INTERDOMAIN
            named = {"remote_dom": self._frontend_domid, "remote_port": argument}
            args = caller.event_op(abi.EVTCHNOP_BIND_INTERDOMAIN, dtype, **named)
            return int(args["local_port"][0])
        if op == Op.MAP_RING:
            self._ring = map_ring_op(abi.XEN_PAGE_SIZE, argument, self._frontend_domid)
            caller.grant_op(abi.GNTTABOP_MAP_GRANT_REF, self._ring)
            if (status := int(self._ring["status"][0])) != abi.GNTST_OKAY:
                raise PeerFault(f"ring-ref {argument} cannot be mapped: GNTST {status}")
            return 0
        if op == Op.UNMAP_RING:
            unmapped = unmap_ring_op(self._ring)
            caller.grant_op(abi.GNTTABOP_UNMAP_GRANT_REF, unmapped)
            assert unmapped["status"][0] == abi.GNTST_OKAY
            return 0
        return super().call(op, argument)

    def stop(self) -> None:
        """See Hands."""
        self._let_go()
        super().stop()
