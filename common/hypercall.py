"""The hypercall client: one packet with an array of Xen's own argument structs, and back.

Owns: the message's form, and the client's end of it. Who calls is told by the connection, a
SOCK_SEQPACKET pair that the hypervisor made for one vCPU of one domain, never by what the message
says. One call at a time: who sends a second before it has read the answer to its first may lose the
connection.

A request is HYPERCALL, then the array; the reply is the same with `rc` and the status fields
filled. Some replies bring descriptors with them.
"""

import errno
import os
import socket
import struct
from typing import Final

import numpy as np

from common.abi import (
    HYPERVISOR_DOMCTL,
    HYPERVISOR_EVENT_CHANNEL_OP,
    HYPERVISOR_GRANT_TABLE_OP,
)
from common.descriptors import receive_with_descriptors

HYPERCALL: Final = np.dtype([("number", "<u4"), ("cmd", "<u4"), ("rc", "<i4"), ("pad", "<u4")])
MESSAGE_MAX: Final = 32 << 10  # a full ring's 352 maps take 11 KiB; calls are served one at a time
DESCRIPTORS_MAX: Final = 8
REPLY_TIMEOUT_S: Final = 10.0

GATE_KICK: Final = 0xFFFFFFFF  # no hypercall of Xen's: see common/hypercall_gate.py

# XEN_DOMCTL_*, with payloads of our own: Xen's is 128 bytes of things we have not. The last three
# are not Xen's: another vCPU's hypercall connection (`domid` 0), a segment's descriptor, and a soft
# reset of a domain's backend alone.
DOMCTL_CREATEDOMAIN: Final = 1
DOMCTL_DESTROYDOMAIN: Final = 2
DOMCTL_GET_VCPU: Final = 0x10001
DOMCTL_GET_MEMORY: Final = 0x10002
DOMCTL_RESET_BACKEND: Final = 0x10003
DOMCTL_DOMAIN: Final = np.dtype(
    [("domid", "<u2"), ("nr_vcpus", "<u2"), ("ram_frames", "<u4"), ("grant_frames", "<u4")]
)
DOMCTL_VCPU: Final = np.dtype([("vcpu", "<u4")])
DOMCTL_MEMORY: Final = np.dtype([("domid", "<u2"), ("pad", "<u2"), ("segment", "S12")])
DOMCTL_BACKEND: Final = np.dtype([("domid", "<u2"), ("pad", "<u2")])

# VIRQ_DOM_EXC, in effect: one packet a domid between hypervisor and xenstored. One way it says that
# the domain has died, and back that it is forgotten there.
VIRQ_DOM_EXC: Final = struct.Struct("<H")


class HypercallError(Exception):
    """A hypercall was refused, or the hypervisor did not answer."""


class Hypercalls:
    """A vCPU's way into the hypervisor, over its connection. One thread at a time.

    `sock` is this object's from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.calls = 0
        self._socket = sock
        sock.settimeout(REPLY_TIMEOUT_S)
        self._header = np.zeros(1, HYPERCALL)

    def fileno(self) -> int:
        """For who lists what it holds."""
        return self._socket.fileno()

    def call(self, number: int, cmd: int, args: np.ndarray) -> int:
        """Make one hypercall over `args` (a structured array), filled in place; returns its rc.

        Raises HypercallError if the hypervisor is gone. Descriptors that came with the reply are
        dropped by the kernel.
        """
        try:
            self._send(number, cmd, args)
            reply = self._socket.recv(MESSAGE_MAX + 1)
        except OSError as error:
            raise self._lost(error) from error
        return self._filled(args, reply)

    def call_for_descriptors(
        self, number: int, cmd: int, args: np.ndarray
    ) -> tuple[int, list[int]]:
        """The same, and what came with the reply (close-on-exec, the caller's to close)."""
        try:
            self._send(number, cmd, args)
            reply, descriptors = receive_with_descriptors(
                self._socket, MESSAGE_MAX + 1, DESCRIPTORS_MAX
            )
        except OSError as error:
            raise self._lost(error) from error
        return self._filled(args, reply), descriptors

    def _lost(self, error: OSError) -> HypercallError:
        """Nothing is asked here again: an answer that comes late would be taken for another's."""
        self._socket.close()
        return HypercallError(f"the hypervisor does not answer: {error}")

    def _send(self, number: int, cmd: int, args: np.ndarray) -> None:
        self._header["number"], self._header["cmd"] = number, cmd
        self._socket.send(self._header.tobytes() + args.tobytes())

    def _filled(self, args: np.ndarray, reply: bytes) -> int:
        if len(reply) < HYPERCALL.itemsize:
            raise HypercallError("the hypervisor does not answer: it is gone")
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
        _check(what, self.call(number, cmd, args))
        return args

    def grant_table_op(self, cmd: int, args: np.ndarray) -> np.ndarray:
        """GNTTABOP_*: each entry's own `status` says how it went."""
        return self.checked(f"grant_table_op {cmd}", HYPERVISOR_GRANT_TABLE_OP, cmd, args)

    def event_channel_op(
        self, what: str, cmd: int, dtype: np.dtype, **fields: int
    ) -> tuple[np.ndarray, list[int]]:
        """EVTCHNOP_*: one struct with `fields` set; returns it as filled by the hypervisor, and the
        descriptors that came with it (see `common/wakeups.py`)."""
        args = np.zeros(1, dtype)
        for name, value in fields.items():
            args[name] = value
        rc, descriptors = self.call_for_descriptors(HYPERVISOR_EVENT_CHANNEL_OP, cmd, args)
        _check(what, rc)
        return args, descriptors

    # --- for domain 0 ---

    def get_vcpu(self, vcpu: int) -> "Hypercalls":
        """Another of this domain's vCPUs' connections. Raises HypercallError."""
        args = np.zeros(1, DOMCTL_VCPU)
        args["vcpu"] = vcpu
        fd = self._descriptor(f"vCPU {vcpu}", DOMCTL_GET_VCPU, args)
        return Hypercalls(socket.socket(fileno=fd))

    def get_memory(self, domid: int, segment: str) -> int:
        """A descriptor of `segment` of `domid` (0: the machine's). Raises HypercallError."""
        args = np.zeros(1, DOMCTL_MEMORY)
        args["domid"], args["segment"] = domid, segment.encode()
        return self._descriptor(f"segment '{segment}' of domain {domid}", DOMCTL_GET_MEMORY, args)

    def reset_backend(self, domid: int) -> int:
        """A backend's process is dead: empty its gate, unmap all it had mapped, close its ports and
        connections; ours stays. A new process's connection, of vCPU 0. Raises HypercallError."""
        args = np.zeros(1, DOMCTL_BACKEND)
        args["domid"] = domid
        return self._descriptor(f"reset of domain {domid}'s backend", DOMCTL_RESET_BACKEND, args)

    def _descriptor(self, what: str, cmd: int, args: np.ndarray) -> int:
        rc, descriptors = self.call_for_descriptors(HYPERVISOR_DOMCTL, cmd, args)
        _check(what, rc)
        (fd,) = descriptors
        return fd

    def close(self) -> None:
        """Give the connection up."""
        self._socket.close()


def _check(what: str, rc: int) -> None:
    if rc < 0:
        raise HypercallError(f"{what}: {errno.errorcode.get(-rc, rc)} ({os.strerror(-rc)})")
