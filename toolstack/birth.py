"""How a machine's processes are born, in Xen's order.

Owns: which descriptors each process is born with, and the order of a domain's birth: the hypervisor
makes it; the toolstack introduces it to xenstored with one end of a socket pair, and gives the
guest the other; then the guest is forked with what is its own.
"""

import errno
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Final

import numpy as np

from common.abi import BLKIF_RING_SIZE, DOMID_0, HYPERVISOR_DOMCTL
from common.event_channel import events_dir
from common.hypercall import DOMCTL_CREATEDOMAIN, DOMCTL_DOMAIN, Hypercalls
from common.machine_memory import DISKS_MAX, MachineMemory, stats_of
from common.xenstore import XenStoreClient
from frontend.frames import grant_frames, ram_frames
from machine.broker import BrokerConfig
from machine.connection import BackendOptions, dom0_frames
from machine.guest_config import GuestConfig
from machine.plug import own_directory
from toolstack.disks import Disk
from toolstack.failures import MachineError
from toolstack.guest_stats import GuestStats
from toolstack.settings import Settings
from toolstack.supervisor import Supervisor
from toolstack.verify_state import is_fresh

ANSWER_TIMEOUT_S: Final = 60.0


class DomidTaken(MachineError):
    """There is such a domain, or what is left of it."""


class Builder:
    """Starts the hypervisor and xenstored, and then domains. Raises MachineError, and what its
    clients raise.

    memory, store: the toolstack's, which is in domain 0.
    """

    def __init__(self, topology: Settings, supervisor: Supervisor, store_path: str) -> None:
        self._topology, self._supervisor = topology, supervisor
        self._store_path = store_path
        here, ours = _pair()
        dom0, self._dom0 = _pair()
        virq, store_virq = _pair()
        self._hypercalls = Hypercalls(here)
        supervisor.start(
            "hypervisor", "hypervisor", asdict(self._broker_config()), _given(virq, dom0, ours)
        )
        supervisor.start("xenstored", "xenstored", {"store_path": store_path}, _given(store_virq))
        for name in ("hypervisor", "xenstored"):
            supervisor.expect(name, ANSWER_TIMEOUT_S)
        self.memory = MachineMemory(self._hypercalls)
        self.store = XenStoreClient(store_path)

    def _broker_config(self) -> BrokerConfig:
        topology = self._topology
        return BrokerConfig(
            self._supervisor.topology_id,
            topology.dom0_vcpus,
            topology.flush_policy,
            dom0_frames(sum(map(topology.places_of, topology.domids)) * topology.grant_copy),
            topology.events,
            topology.threads,
        )

    def create_domain(self, domid: int, nr_disks: int = 1) -> list[int]:
        """Make a domain with room for so many disks, and have xenstored know it; what its process
        is to be born with."""
        order = np.zeros(1, DOMCTL_DOMAIN)
        order["domid"], order["nr_vcpus"], order["grant_frames"] = domid, 1, grant_frames(nr_disks)
        order["ram_frames"] = ram_frames(nr_disks, self._topology.buffer_frames)
        rc, descriptors = self._hypercalls.call_for_descriptors(
            HYPERVISOR_DOMCTL, DOMCTL_CREATEDOMAIN, order
        )
        if rc == -errno.ENOMEM:
            self._supervisor.expect("hypervisor", ANSWER_TIMEOUT_S)  # says which segment, and why
        if rc == -errno.EEXIST:
            raise DomidTaken(f"domain {domid} is there, or not wholly gone yet")
        if rc < 0:
            raise MachineError(f"domain {domid} cannot be created: {os.strerror(-rc)}")
        hypercalls, *segments = descriptors
        theirs, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._supervisor.send("xenstored", "introduce", domid, descriptors=[theirs.fileno()])
        self._supervisor.expect("xenstored", ANSWER_TIMEOUT_S)
        if self._topology.events == "zeromq":
            os.mkdir(events_dir(self._supervisor.run_dir, domid), 0o700)
        self.store.run(own_directory(domid))
        return [hypercalls, its.detach(), *segments]

    def stats(self, domid: int, disks: int = DISKS_MAX) -> GuestStats:
        """What the domain will count, mapped now: it may be gone before it is looked at."""
        return GuestStats(stats_of(self.memory.segment("stats", domid)), disks)

    def forget(self, domid: int) -> None:
        """The domain is gone, and we map nothing of it any more."""
        self.memory.forget(domid)

    def reset_dom0(self) -> None:
        """dom0's backend is dead: the hypervisor lets go of all it had, and has a connection for
        the next."""
        self._dom0 = socket.socket(fileno=self._hypercalls.reset_backend(DOMID_0))

    def start_dom0(self) -> None:
        """Fork dom0's backend, which follows the store once it is told to `begin`."""
        topology = self._topology
        options = BackendOptions(
            persistent=topology.backend_persistent,
            max_persistent_grants=topology.max_persistent_grants,
            gather_max=BLKIF_RING_SIZE if topology.batching == "drain" else 1,
            grant_copy=topology.grant_copy,
            adaptive_spin=topology.spin == "adaptive",
            nr_vcpus=topology.dom0_vcpus,
            events=topology.events,
            threads=topology.threads,
        )
        config = {
            "run_dir": self._supervisor.run_dir,
            "store_path": self._store_path,
            "options": asdict(options),
        }
        self._supervisor.start("dom0", "dom0", config, _given(self._dom0))

    def start_guest(
        self,
        domid: int,
        name: str,
        disks: Sequence[Disk],
        descriptors: list[int],
        states: Mapping[int, int] | None = None,
        attack: str = "",
        places: int = 1,
    ) -> None:
        """Fork a guest with these disks, and room for so many, born with `descriptors` and its
        disks' state files, by number; a hostile one, if it is to `attack`."""
        topology, states = self._topology, states or {}
        descriptors = [*descriptors, *states.values()]
        config = GuestConfig(
            domid,
            [disk.device for disk in disks],
            [is_fresh(disk) for disk in disks],
            [disk.number in states for disk in disks],
            topology.buffer_frames,
            topology.persistent,
            topology.spin == "adaptive",
            topology.events,
            events_dir(self._supervisor.run_dir, domid),
            topology.threads,
            places,
        )
        if attack:
            hostile = {**asdict(config), "attack": attack}
            self._supervisor.start(name, "hostile", hostile, descriptors)
        else:
            self._supervisor.start(name, "guest", asdict(config), descriptors)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _given(*ends: socket.socket) -> list[int]:
    """Descriptors that a process is born with: its own from then on, and no longer ours."""
    return [end.detach() for end in ends]
