"""The hypercall client: one ZeroMQ message with an array of Xen's own argument structs, and back.

Owns: the message's form, and the client's end of it. Who calls is told by the socket, one for each
vCPU of each domain, never by what the message says.

A request is HYPERCALL, then the array; the reply is the same with `rc` and the status fields
filled.
"""

import errno
import os
from typing import Final

import numpy as np
import zmq

from common.abi import HYPERVISOR_EVENT_CHANNEL_OP, HYPERVISOR_GRANT_TABLE_OP

HYPERCALL: Final = np.dtype([("number", "<u4"), ("cmd", "<u4"), ("rc", "<i4"), ("pad", "<u4")])
MESSAGE_MAX: Final = 32 << 10  # a full ring's 352 maps take 11 KiB; calls are served one at a time
REPLY_TIMEOUT_MS: Final = 10_000

GATE_KICK: Final = 0xFFFFFFFF  # no hypercall of Xen's: see common/hypercall_gate.py

# XEN_DOMCTL_*, with a payload of our own: Xen's is 128 bytes of things we have not.
DOMCTL_CREATEDOMAIN: Final = 1
DOMCTL_DESTROYDOMAIN: Final = 2
DOMCTL_DOMAIN: Final = np.dtype(
    [("domid", "<u2"), ("nr_vcpus", "<u2"), ("ram_frames", "<u4"), ("grant_frames", "<u4")]
)


class HypercallError(Exception):
    """A hypercall was refused, or the hypervisor did not answer."""


def hypercall_address(run_dir: str, domid: int, vcpu: int) -> str:
    """The socket of one vCPU: whoever is connected to it *is* that vCPU."""
    return f"ipc://{run_dir}/hypercall-{domid}-{vcpu}"


class Hypercalls:
    """A vCPU's way into the hypervisor. One thread at a time."""

    def __init__(self, run_dir: str, domid: int, vcpu: int = 0) -> None:
        self.calls = 0
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, REPLY_TIMEOUT_MS)
        self._socket.connect(hypercall_address(run_dir, domid, vcpu))
        self._header = np.zeros(1, HYPERCALL)

    def call(self, number: int, cmd: int, args: np.ndarray) -> int:
        """Make one hypercall over `args` (a structured array), filled in place; returns its rc.

        Raises HypercallError if the hypervisor is gone.
        """
        self._header["number"], self._header["cmd"] = number, cmd
        try:
            self._socket.send(self._header.tobytes() + args.tobytes())
            reply = self._socket.recv()
        except zmq.ZMQError as error:
            raise HypercallError(f"the hypervisor does not answer: {error}") from error
        self.calls += 1
        header = np.frombuffer(reply, HYPERCALL, count=1)
        if len(reply) == HYPERCALL.itemsize + args.nbytes:
            args[:] = np.frombuffer(reply, args.dtype, offset=HYPERCALL.itemsize)
        return int(header["rc"][0])

    def kick(self) -> None:
        """Wake the hypervisor for the call posted in this vCPU's gate, and wait until it is made.

        Raises HypercallError if the hypervisor is gone.
        """
        self.call(GATE_KICK, 0, np.zeros(0, np.uint8))

    def checked(self, what: str, number: int, cmd: int, args: np.ndarray) -> np.ndarray:
        """`call`, for cold paths: a refusal is a HypercallError that says `what` was refused."""
        rc = self.call(number, cmd, args)
        if rc < 0:
            raise HypercallError(f"{what}: {errno.errorcode.get(-rc, rc)} ({os.strerror(-rc)})")
        return args

    def grant_table_op(self, cmd: int, args: np.ndarray) -> np.ndarray:
        """GNTTABOP_*: each entry's own `status` says how it went."""
        return self.checked(f"grant_table_op {cmd}", HYPERVISOR_GRANT_TABLE_OP, cmd, args)

    def event_channel_op(self, what: str, cmd: int, dtype: np.dtype, **fields: int) -> np.ndarray:
        """EVTCHNOP_*: one struct with `fields` set; returns it as filled by the hypervisor."""
        args = np.zeros(1, dtype)
        for name, value in fields.items():
            args[name] = value
        return self.checked(what, HYPERVISOR_EVENT_CHANNEL_OP, cmd, args)

    def close(self) -> None:
        """Give the socket up."""
        self._socket.close()
