"""The hypervisor's process: makes domains and their memory, answers hypercalls, serves xenstore.

Owns: the sockets around the sans-I/O cores, and the segments. One thread answers hypercalls, so
they are served one at a time (`hypercalls.py` needs no locks); xenstore and the memory service have
threads of their own that sleep while a load runs.
Rule: the caller of a hypercall is the socket it came in on: one REP socket for each vCPU of each
domain.
"""

import contextlib
import errno
import logging
import os
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import numpy as np
import zmq

from common.abi import DOMID_0, HYPERVISOR_DOMCTL, XEN_PAGE_SIZE
from common.hypercall import (
    DOMCTL_CREATEDOMAIN,
    DOMCTL_DESTROYDOMAIN,
    DOMCTL_DOMAIN,
    GATE_KICK,
    HYPERCALL,
    MESSAGE_MAX,
    hypercall_address,
)
from common.hypercall_gate import gate_bytes
from common.machine_memory import (
    GUESTS_MAX,
    HOST,
    MAPTRACK_HANDLES_MAX,
    STATS,
    host_of,
    whole_pages,
)
from common.memory import Segment, SharedMemoryError, create_segment
from common.process import begin_process
from hypervisor.cpus import Cpus
from hypervisor.gate_server import GateServer
from hypervisor.hypercalls import Hypervisor
from hypervisor.memory_service import MemoryService
from xenstored.server import XenStoreServer

# What a domain may be built with; 64 grant frames are Xen's default limit.
VCPUS_MAX: Final = 256
RAM_FRAMES_MAX: Final = 0xFFFFFFFF  # a frame is a u32; what fits is for shared memory to say
GRANT_FRAMES_MAX: Final = 64

NOT_A_HYPERCALL: Final = np.array([(0, 0, -errno.EINVAL, 0)], HYPERCALL).tobytes()


@dataclass(frozen=True)
class BrokerConfig:
    """What the hypervisor is told at boot."""

    run_dir: str
    topology_id: str
    store_path: str
    nr_cpus: int
    flush_policy: str
    dom0_ram_frames: int


class Broker:
    """The machine below the domains; `serve` runs until the control pipe says exit."""

    def __init__(self, config: BrokerConfig, control: Connection) -> None:
        self._config, self._control = config, control
        self._memory = MemoryService(config.run_dir)
        self._store = XenStoreServer()
        self._store.start()
        self._segments: dict[tuple[int, str], Segment] = {}
        self._sockets: dict[zmq.Socket[bytes], tuple[int, int]] = {}
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        host = host_of(self._make(DOMID_0, "host", HOST.itemsize))
        gate = self._make(DOMID_0, "gate", gate_bytes(config.nr_cpus))
        accessed = self._make(DOMID_0, "accessed", MAPTRACK_HANDLES_MAX * 32)
        cpus = Cpus(
            config.nr_cpus,
            config.flush_policy,
            dirty=host["dirty"][0, : config.nr_cpus],
            running=host["running"][0, : config.nr_cpus],
            counters=host["cpus"][0, : config.nr_cpus],
            accessed=accessed.bytes.view(np.uint64),
        )
        self._counters = host["hypervisor"][0]
        self._hypervisor = Hypervisor(cpus)
        self._gate = GateServer(self._hypervisor, gate.bytes, config.nr_cpus)
        self._create(DOMID_0, config.nr_cpus, config.dom0_ram_frames, 1)
        self._store.listen(DOMID_0, config.store_path)
        self._poller.register(control.fileno(), zmq.POLLIN)

    def serve(self) -> None:
        """Answer hypercalls, in the order their sockets are found ready."""
        self._control.send(("ok", None))
        busy = False
        while True:
            if not busy and self._gate.fall_asleep():
                ready = dict(self._poller.poll())
                self._gate.wake_up()
            else:
                ready = dict(self._poller.poll(0))
            if self._control.fileno() in ready:
                break
            waited = False
            for sock in [sock for sock in ready if isinstance(sock, zmq.Socket)]:
                # Who is found ready behind another's flush has queued on the flush lock.
                waited = self._answer(sock, waited) or waited
            busy = self._gate.serve()  # after the sockets: a kicker waits for its answer
        self._close()

    def _answer(self, sock: "zmq.Socket[bytes]", waited: bool) -> bool:
        """Answer one message; True if it ended in a flush."""
        if sock not in self._sockets:
            return False  # its domain was destroyed since the poll
        domid, vcpu = self._sockets[sock]
        try:
            message, *more = sock.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return False  # what made the socket ready was no request, and ZeroMQ has dropped it
        if more or len(message) < HYPERCALL.itemsize:
            sock.send(NOT_A_HYPERCALL)
            return False
        header = np.frombuffer(message, HYPERCALL, count=1).copy()
        payload = bytearray(message[HYPERCALL.itemsize :])
        number, cmd = int(header["number"][0]), int(header["cmd"][0])
        flushes = self._hypervisor.flushes
        if number == GATE_KICK and domid == DOMID_0:
            self._gate.make_call(vcpu, waited)
            header["rc"] = 0
        elif number == HYPERVISOR_DOMCTL:
            header["rc"] = self._domctl(domid, cmd, payload)
        else:
            header["rc"] = self._hypervisor.hypercall(domid, vcpu, number, cmd, payload, waited)
        sock.send(header.tobytes() + payload)
        return self._hypervisor.flushes != flushes

    def _domctl(self, caller: int, cmd: int, payload: bytearray) -> int:
        """Create or destroy a domain: for the toolstack, which lives in dom0."""
        if caller != DOMID_0:
            return -errno.EPERM
        if len(payload) != DOMCTL_DOMAIN.itemsize:
            return -errno.EINVAL
        order = np.frombuffer(bytes(payload), DOMCTL_DOMAIN)[0]
        domid = int(order["domid"])
        if not 1 <= domid <= GUESTS_MAX:
            return -errno.EINVAL
        if cmd == DOMCTL_CREATEDOMAIN:
            return self._create_guest(domid, order)
        if cmd == DOMCTL_DESTROYDOMAIN:
            return self._destroy_guest(domid)
        return -errno.ENOSYS

    def _create_guest(self, domid: int, order: np.void) -> int:
        if domid in self._hypervisor.domains:  # dying ones too
            return -errno.EEXIST
        for field, most in (
            ("nr_vcpus", VCPUS_MAX),
            ("ram_frames", RAM_FRAMES_MAX),
            ("grant_frames", GRANT_FRAMES_MAX),
        ):
            if not 1 <= int(order[field]) <= most:
                return -errno.EINVAL
        try:
            self._create(
                domid, int(order["nr_vcpus"]), int(order["ram_frames"]), int(order["grant_frames"])
            )
            self._store.listen(domid, os.path.join(self._config.run_dir, f"xenstored-{domid}"))
        except (SharedMemoryError, OSError) as error:
            self._undo(domid)
            self._control.send(("error", str(error)))  # the toolstack reads it when it sees ENOMEM
            return -errno.ENOMEM
        self._store.introduce(domid)
        return 0

    def _destroy_guest(self, domid: int) -> int:
        if self._hypervisor.domains.find(domid) is None:
            return -errno.ESRCH
        self._store.release(domid)
        self._undo(domid)
        return 0

    def _undo(self, domid: int) -> None:
        """Take everything away that was made for a domain, as far as it was made."""
        if self._hypervisor.domains.find(domid) is not None:
            self._hypervisor.destroy_domain(domid)
        self._store.forget(domid)
        self._memory.forget(domid)
        for sock in [sock for sock, (owner, _) in self._sockets.items() if owner == domid]:
            self._poller.unregister(sock)
            sock.close(linger=0)
            del self._sockets[sock]
        for key in [key for key in self._segments if key[0] == domid]:
            del self._segments[key]  # the memory service has closed its descriptor

    def _create(self, domid: int, nr_vcpus: int, ram_frames: int, grant_frames: int) -> None:
        ram = self._make(domid, "ram", ram_frames * XEN_PAGE_SIZE)
        grant = self._make(domid, "grant", grant_frames * XEN_PAGE_SIZE)
        event = self._make(domid, "event", 2 * XEN_PAGE_SIZE)
        if domid != DOMID_0:
            self._make(domid, "stats", STATS.itemsize)
        self._hypervisor.create_domain(
            domid,
            nr_vcpus=nr_vcpus,
            ram=ram.bytes,
            grant_frames=grant.bytes,
            shared_info=event.bytes[:XEN_PAGE_SIZE],
            far_events=event.bytes[XEN_PAGE_SIZE:],
            counters=self._counters[domid : domid + 1],
        )
        self._memory.listen(domid)
        for vcpu in range(nr_vcpus):
            sock: zmq.Socket[bytes] = self._context.socket(zmq.REP)
            sock.setsockopt(zmq.MAXMSGSIZE, MESSAGE_MAX)
            sock.bind(hypercall_address(self._config.run_dir, domid, vcpu))
            self._sockets[sock] = (domid, vcpu)
            self._poller.register(sock, zmq.POLLIN)

    def _make(self, domid: int, name: str, nbytes: int) -> Segment:
        fd = create_segment(
            f"grantlab-{self._config.topology_id}-{domid}-{name}", whole_pages(nbytes)
        )
        segment = Segment(fd)
        self._segments[domid, name] = segment
        self._memory.add(domid, name, fd)
        return segment

    def _close(self) -> None:
        self._store.stop()
        self._memory.stop()
        self._context.destroy(linger=0)
        self._control.send(("ok", None))


def main(config: BrokerConfig, control: Connection) -> None:
    """The process's entry."""
    begin_process("gl-hypervisor")
    logging.basicConfig(level=logging.WARNING, format="hypervisor: %(message)s")
    try:
        broker = Broker(config, control)
    except (SharedMemoryError, OSError, zmq.ZMQError) as error:
        with contextlib.suppress(OSError):  # the supervisor is gone: this process goes with it
            control.send(("error", f"hypervisor: {error}"))
        raise SystemExit(1) from error
    broker.serve()
