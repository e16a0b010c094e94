"""The hypervisor's process: makes domains and their memory, and answers hypercalls.

Owns: what surrounds the sans-I/O cores: connections, segments, the lines to the toolstack and to
xenstored, a domain's birth and death. One thread answers hypercalls, so they are served one at a
time (`hypercalls.py` needs no locks).
Rules: the caller of a hypercall is the connection it came in on. A guest whose connection ends has
died: the hypervisor ends the domain, says so to xenstored (VIRQ_DOM_EXC, in effect) and to the
toolstack, and its domid is free when xenstored and dom0 have let go of it.
"""

import contextlib
import errno
import socket
import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from common.abi import DOMID_0, GRANT_ENTRY_V1, GTF_TYPE_MASK, HYPERVISOR_DOMCTL
from common.arena import Arena
from common.control import CommandTable, Control, answer, carry_out
from common.hypercall import GATE_KICK, HYPERCALL, MESSAGE_MAX, VIRQ_DOM_EXC
from common.hypercall_gate import gate_bytes
from common.log_limit import log_to_terminal
from common.machine_memory import HOST, MAPTRACK_HANDLES_MAX, host_of
from common.memory import SharedMemoryError
from common.shares import Shares
from common.wakeups import Events
from hypervisor.connections import Caller, Connections, close_all
from hypervisor.domains import BACKEND, GUEST
from hypervisor.domctl import Domctl, Handed
from hypervisor.event_calls import EventCalls
from hypervisor.gate_server import GateServer
from hypervisor.segments import Segments
from machine.hypervisor import HostMemory, build_hypervisor

CALLS_BURST_NS: Final = 2_000_000  # a handshake's and more
NOT_A_HYPERCALL: Final = np.array([(0, 0, -errno.EINVAL, 0)], HYPERCALL).tobytes()

ENTRIES_A_LOOK: Final = 2048  # what an answer has room for


@dataclass(frozen=True)
class BrokerConfig:
    """What the hypervisor is told at boot."""

    topology_id: str
    nr_cpus: int
    flush_policy: str
    dom0_ram_frames: int
    events: Events
    threads: int = 1  # see common/spinning.py


class Broker:
    """The machine below the domains; `serve` runs until the control connection says exit.

    control: the toolstack's line; virq: xenstored's (VIRQ_DOM_EXC packets); dom0: connections of
    dom0's first vCPU, the process's and the toolstack's. Raises SharedMemoryError, OSError.
    """

    def __init__(
        self,
        config: BrokerConfig,
        control: Control,
        virq: socket.socket,
        dom0: list[socket.socket],
    ) -> None:
        self._control, self._virq = control, virq
        self._connections = Connections()
        self._shares = Shares(CALLS_BURST_NS)
        self._segments = Segments(config.topology_id)
        host = host_of(self._segments.make(DOMID_0, "host", HOST.itemsize))
        gate = self._segments.make(DOMID_0, "gate", gate_bytes(config.nr_cpus))
        accessed = self._segments.make(DOMID_0, "accessed", MAPTRACK_HANDLES_MAX * 32)
        self._hypervisor = build_hypervisor(
            Arena(),
            HostMemory(host, accessed.view(np.uint64)),
            self._segments.make_domain(DOMID_0, config.dom0_ram_frames, 1, counts=False),
            nr_cpus=config.nr_cpus,
            policy=config.flush_policy,
        )
        self._gate = GateServer(self._hypervisor, gate, config.nr_cpus, config.threads)
        self._events = EventCalls(self._hypervisor, with_lines=config.events == "pipe")
        self._domctl = Domctl(
            self._hypervisor,
            self._segments,
            self._connections,
            self._events,
            host["hypervisor"][0],
            self._gate.empty,
            self._say_dead,
            lambda why: control.send("error", why),
        )
        self._exiting = False
        for sock in dom0:
            self._connections.add(DOMID_0, 0, sock)
        self._connections.watch(control.fileno(), self._obey)
        self._connections.watch(virq.fileno(), self._hear_of_release)

    def serve(self) -> None:
        """Answer hypercalls, in the order their connections are found ready."""
        self._control.send("ok", None)
        busy = False
        while not self._exiting:
            asleep = not busy and self._gate.fall_asleep()
            ready = self._connections.ready(None if asleep else 0)
            if asleep:
                self._gate.wake_up()
            waited = False
            for caller in ready:
                # Who is found ready behind another's flush has queued on the flush lock.
                waited = self._answer(caller, waited) or waited
            busy = self._gate.serve()  # after the connections: a kicker waits for its answer
        self._connections.close()

    def _answer(self, caller: Caller, waited: bool) -> bool:
        """Answer one call; True if it ended in a flush."""
        message = caller.receive()
        if message is None:
            return False
        if not message:
            self._hang_up(caller)
            return False
        flushes, began_ns = self._hypervisor.flushes, time.thread_time_ns()
        reply, stays, spent = NOT_A_HYPERCALL, list[int](), list[int]()
        if HYPERCALL.itemsize <= len(message) <= MESSAGE_MAX:
            header = np.frombuffer(message, HYPERCALL, count=1).copy()
            payload = bytearray(message[HYPERCALL.itemsize :])
            header["rc"] = self._call(caller, header, payload, waited, (stays, spent))
            reply = header.tobytes() + payload
        done = not np.frombuffer(reply, HYPERCALL, count=1)["rc"][0]
        if not caller.send(reply, [*spent, *stays] if done else []):
            self._hang_up(caller)
        elif self._hypervisor.domains.has_role(caller.domid, GUEST):
            self._charge(caller, began_ns)
        close_all(spent)
        return self._hypervisor.flushes != flushes

    def _charge(self, caller: Caller, began_ns: int) -> None:
        used_ns = time.thread_time_ns() - began_ns  # what others had of the CPU is not its to pay
        if rest_ns := self._shares.charge(caller.domid, used_ns, time.monotonic_ns()):
            self._connections.rest(caller, rest_ns)

    def _call(
        self,
        caller: Caller,
        header: np.ndarray,
        payload: bytearray,
        waited: bool,
        handed: Handed,
    ) -> int:
        number, cmd = int(header["number"][0]), int(header["cmd"][0])
        if number == GATE_KICK and self._hypervisor.domains.has_role(caller.domid, BACKEND):
            self._gate.make_call(caller.vcpu, waited)
            return 0
        if number == HYPERVISOR_DOMCTL:
            return self._domctl.call(caller, cmd, payload, handed)
        made = self._events.call(caller.domid, number, cmd, payload, handed[1])
        if made is not None:
            return made
        return self._hypervisor.hypercall(caller.domid, caller.vcpu, number, cmd, payload, waited)

    def _hang_up(self, caller: Caller) -> None:
        """A caller has gone; a guest has one connection, and has died."""
        self._connections.drop(caller)
        if self._hypervisor.domains.has_role(caller.domid, GUEST):
            self._domctl.destroy(caller.domid)

    def _say_dead(self, domid: int) -> None:
        self._shares.forget(domid)
        self._control.send("died", domid)
        with contextlib.suppress(OSError):  # xenstored is gone, and the machine with it
            self._virq.send(VIRQ_DOM_EXC.pack(domid))

    def _hear_of_release(self) -> None:
        try:
            packet = self._virq.recv(VIRQ_DOM_EXC.size)
        except OSError:  # with a death unread, which is a reset
            packet = b""
        if len(packet) == VIRQ_DOM_EXC.size:
            self._hypervisor.released(VIRQ_DOM_EXC.unpack(packet)[0])
        else:
            self._connections.unwatch(self._virq.fileno())  # xenstored is gone, and soon all

    def _obey(self) -> None:
        message = self._control.receive(0)
        if message is not None:
            commands: CommandTable = {
                "exit": self._exit,
                "grants": self._grants,
                "maptrack": self._maptrack,
            }
            if not carry_out(self._control, message, commands):
                answer(self._control, message, commands)

    def _exit(self) -> None:
        self._exiting = True

    def _grants(self, domid: int, first: int) -> list[Any]:
        """For who looks in: how many entries a domain's grant table has, and of those that are not
        invalid some, from `first` on: grefs and entries."""
        domain = self._hypervisor.domains.find(domid)
        frames = np.zeros(0, np.uint8) if domain is None else domain.memory.grant
        entries = frames.view(GRANT_ENTRY_V1).copy()
        return [len(entries), *_some(entries, entries["flags"] & GTF_TYPE_MASK, first)]

    def _maptrack(self, domid: int, first: int) -> list[bytes]:
        """The same of its maptrack: handles and entries of what is mapped."""
        domain = self._hypervisor.domains.find(domid)
        if domain is None:
            return [b"", b""]
        entries = domain.maptrack.entries
        return _some(entries, entries["flags"], first)


def _some(entries: np.ndarray, there: np.ndarray, first: int) -> list[bytes]:
    """The places from `first` on where something is `there`, as many as go into an answer; u32, and
    what is in `entries` at them."""
    (places,) = np.nonzero(there)
    chosen = places[places >= first][:ENTRIES_A_LOOK].astype("<u4")
    return [chosen.tobytes(), entries[chosen].tobytes()]


def main(config: dict[str, Any], descriptors: list[int]) -> None:
    """The process's entry. descriptors: control, virq, then dom0's first vCPU, twice."""
    log_to_terminal("hypervisor: %(message)s")
    control = Control.of_descriptor(descriptors[0])
    virq, *dom0 = (socket.socket(fileno=fd) for fd in descriptors[1:])
    try:
        broker = Broker(BrokerConfig(**config), control, virq, dom0)
    except (SharedMemoryError, OSError) as error:
        control.send("error", f"hypervisor: {error}")
        raise SystemExit(1) from error
    broker.serve()
