"""The hypervisor as its process runs it, in a thread of the test's; the test is everybody else.

A test holds the toolstack's control connection, xenstored's VIRQ line, dom0's connections, and
what each guest would be born with.
"""

import errno
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from common import abi
from common.control import Control, control_pair
from common.hypercall import (
    DOMCTL_CREATEDOMAIN,
    DOMCTL_DESTROYDOMAIN,
    DOMCTL_DOMAIN,
    HYPERCALL,
    VIRQ_DOM_EXC,
    Hypercalls,
)
from common.machine_memory import DOMAIN_SEGMENTS, GUESTS_MAX, MachineMemory
from common.memory import map_segment
from common.wakeups import Events
from machine.broker import Broker, BrokerConfig

NR_CPUS: Final = 3
DOM0_RAM_FRAMES: Final = 16
ANSWER_S: Final = 60.0  # a limit for what answers at once


class Born:
    """What a guest is born with, but for the store: its hypercalls and its mapped segments."""

    def __init__(self, descriptors: list[int]) -> None:
        connection, *segments = descriptors
        self.socket = socket.socket(fileno=connection)
        self.socket.settimeout(ANSWER_S)
        self.hypercalls = Hypercalls(self.socket)
        self.segments = dict(zip(DOMAIN_SEGMENTS, map(map_segment, segments), strict=True))

    def answers(self) -> bool:
        """Is a hypercall of it answered?"""
        return answers(self.socket)


class Running:
    """A broker that serves from now to `close`."""

    def __init__(self, events: Events = "pipe", nr_cpus: int = NR_CPUS) -> None:
        self.topology_id = secrets.token_hex(4)
        self.control, control = control_pair()
        self.virq, virq = seqpacket()
        self.virq.settimeout(ANSWER_S)
        process, its = seqpacket()
        toolstack, ours = seqpacket()
        config = BrokerConfig(self.topology_id, nr_cpus, "mask", DOM0_RAM_FRAMES, events)
        self.broker = Broker(config, Control(control), virq, [its, ours])
        self._thread = threading.Thread(target=self.broker.serve, daemon=True)
        self._thread.start()
        assert self.said() == ["ok", None]
        self.dom0, self.toolstack = Hypercalls(process), Hypercalls(toolstack)
        self.memory = MachineMemory(self.dom0)
        self.guests: list[Born] = []

    def said(self) -> list[Any]:
        """The broker's next word to the toolstack."""
        message = self.control.receive(ANSWER_S)
        assert message is not None
        return message

    def domctl(self, cmd: int, domid: int, **fields: int) -> tuple[int, list[int]]:
        """Create or destroy a domain; the rc, and what came with it."""
        order = np.zeros(1, DOMCTL_DOMAIN)
        values = {"nr_vcpus": 1, "ram_frames": 8, "grant_frames": 1, **fields}
        order["domid"] = domid
        for name, value in values.items():
            order[name] = value
        return self.toolstack.call_for_descriptors(abi.HYPERVISOR_DOMCTL, cmd, order)

    def create(self, domid: int, **fields: int) -> Born:
        """A new domain, as its process would hold it."""
        rc, descriptors = self.domctl(DOMCTL_CREATEDOMAIN, domid, **fields)
        assert rc == 0
        self.guests.append(Born(descriptors))
        return self.guests[-1]

    def cannot_create(self, domid: int, **fields: int) -> int:
        """Why not: an errno."""
        rc, descriptors = self.domctl(DOMCTL_CREATEDOMAIN, domid, **fields)
        assert rc < 0 and descriptors == []
        return -rc

    def destroy(self, domid: int) -> int:
        return self.domctl(DOMCTL_DESTROYDOMAIN, domid)[0]

    def hears_of_death(self) -> int:
        """The domid of the next VIRQ_DOM_EXC."""
        domid: int = VIRQ_DOM_EXC.unpack(self.virq.recv(100))[0]
        return domid

    def releases(self, domid: int) -> None:
        """What xenstored says when it has forgotten the domain; taken before the next call is."""
        self.virq.send(VIRQ_DOM_EXC.pack(domid))

    def bury(self, domid: int) -> None:
        """Destroy a domain, and all that follows from that."""
        assert self.destroy(domid) == 0
        assert self.said() == ["died", domid]
        assert self.hears_of_death() == domid
        self.releases(domid)

    def lives(self) -> bool:
        """Is the hypervisor there, and does it answer dom0?"""
        size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
        size["dom"] = abi.DOMID_SELF
        return self.dom0.call(abi.HYPERVISOR_GRANT_TABLE_OP, abi.GNTTABOP_QUERY_SIZE, size) == 0

    def exit(self) -> None:
        """Tell it to, and wait until it has."""
        self.control.send("exit")
        while self.said() != ["ok", None]:
            pass
        self._thread.join(ANSWER_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """Nothing of it is left."""
        if self._thread.is_alive():
            self.exit()
        for born in self.guests:
            born.hypercalls.close()
        for end in (self.dom0, self.toolstack, self.control, self.virq):
            end.close()
        self.broker._control.close()
        self.broker._virq.close()
        for domid in range(GUESTS_MAX + 1):
            self.broker._segments.forget(domid)  # a process's end does that
            self.memory.forget(domid)


@contextmanager
def running(events: Events = "pipe") -> Iterator[Running]:
    """A hypervisor for the time of a block."""
    hypervisor = Running(events)
    try:
        yield hypervisor
    finally:
        hypervisor.close()


def seqpacket() -> tuple[socket.socket, socket.socket]:
    """What hypercalls go over."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def query_size(domid: int = abi.DOMID_SELF) -> bytes:
    """The message of a GNTTABOP_query_size."""
    header, args = np.zeros(1, HYPERCALL), np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    header["number"], header["cmd"] = abi.HYPERVISOR_GRANT_TABLE_OP, abi.GNTTABOP_QUERY_SIZE
    args["dom"] = domid
    return header.tobytes() + args.tobytes()


def rc_of(reply: bytes) -> int:
    """How the call went."""
    return int(np.frombuffer(reply, HYPERCALL, count=1)["rc"][0])


def status_of(reply: bytes) -> int:
    """What a query_size says."""
    op = np.frombuffer(reply, abi.GNTTAB_QUERY_SIZE, offset=HYPERCALL.itemsize)
    return int(op["status"][0])


def answers(connection: socket.socket) -> bool:
    """Is a hypercall over this connection answered? False if it has been ended."""
    try:
        connection.send(query_size())
        reply = connection.recv(1 << 16)
    except OSError as error:
        assert error.errno in (errno.EPIPE, errno.ECONNRESET), os.strerror(error.errno or 0)
        return False
    return bool(reply) and rc_of(reply) == 0
