"""A whole machine in virtual time: built, connected, loaded, closed.

Owns: the memory that stands for each domain's, the order of a run, and its counters. All cores are
the real ones, and the handshake, which has a clock of its own: the load begins at 0.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import simpy

from common import abi
from common.arena import Arena
from common.handshake import Leave
from common.machine_memory import STATS
from common.xenbus import CLOSED
from frontend.vbd import FrontendVbd
from hypervisor.cpus import POLICIES
from machine.hypervisor import build_hypervisor, domain_memory, host_memory
from simulator.backend_thread import BackendThread, Dom0
from simulator.config import Config
from simulator.costs import COSTS, ERAS, Costs
from simulator.cpus import Cpu
from simulator.flush import FlushLock, ObservedCpus
from simulator.guest import Guest
from simulator.guests import Disk, Ground, GuestBuilder, GuestDomain, bounce_frames_of
from simulator.handshake import World
from simulator.shared import Channel as BookedChannel
from simulator.shared import Memory, RequestPool
from simulator.trace import Trace


@dataclass(frozen=True)
class Counts:
    """Every counter at `now_ns` of virtual time, by guest domid; each array is a copy.

    frontend, backend: by disk number; hypervisor: shape (1,); latency: u64 by disk number,
    operation and bucket; cpus: CPU_COUNTERS by worker CPU; busy_ns: what all CPUs have computed.
    """

    now_ns: int
    frontend: dict[int, np.ndarray]
    backend: dict[int, np.ndarray]
    hypervisor: dict[int, np.ndarray]
    latency: dict[int, np.ndarray]
    cpus: np.ndarray
    busy_ns: int


class Machine:
    """`run` it once; then `booted`, `started`, `finished` and `closed` are its counts."""

    def __init__(self, config: Config, costs: Costs = COSTS, trace: Trace | None = None) -> None:
        self.config, self.costs = config, costs
        self.env = simpy.Environment()
        self.arena = Arena()
        self.cpus = [Cpu(self.env, number, costs) for number in range(config.nr_cpus)]
        era, seed = ERAS[config.era], config.plan.seed
        self.lock = FlushLock(self.env, costs, era.byte_lock, seed)
        self.memory = Memory(self.env, costs)
        self.pool = RequestPool(self.env, era.requests_max)
        self.guests: dict[int, GuestDomain] = {}
        self._boot(trace or Trace())
        self.booted = self.counts()
        builder = GuestBuilder(self._ground)
        for domid in self.domids:
            self.guests[domid] = builder.build(domid)
        self.started = self.finished = self.closed = self.booted

    @property
    def domids(self) -> range:
        """The guests."""
        return range(1, self.config.guests + 1)

    @property
    def disks(self) -> list[Disk]:
        """All guests'."""
        return [disk for guest in self.guests.values() for disk in guest.disks]

    def ends(self, domid: int) -> tuple[Guest, BackendThread]:
        """Who runs both ends of a guest's first disk."""
        return (disk := self.guests[domid].disks[0]).guest, disk.thread

    def run(self) -> "Machine":
        """The load, from its first request to its last answer, and then the disks are closed."""
        self.started = self.counts()
        lives = [self.env.process(disk.guest.run()) for disk in self.disks if disk.loaded]
        for disk in self.disks:
            self.env.process(disk.thread.run())
        try:
            self.env.run(self.env.all_of(lives))
        except RuntimeError as error:
            raise AssertionError("a wake-up was lost: everybody sleeps for ever") from error
        self.finished = self.counts()
        for disk in self.disks:
            self._disconnect(disk)
        self.closed = self.counts()
        return self

    def counts(self) -> Counts:
        """Every counter as it stands."""
        host, domids, guests = self.host, self.domids, self.guests
        none = GuestDomain(np.zeros(1, STATS), [])
        return Counts(
            int(self.env.now),
            {domid: guests.get(domid, none).frontend() for domid in domids},
            {domid: guests.get(domid, none).backend() for domid in domids},
            {domid: host["hypervisor"][0, domid : domid + 1].copy() for domid in domids},
            {domid: guests.get(domid, none).latency() for domid in domids},
            host["cpus"][0, : self.config.dom0_vcpus].copy(),
            sum(sum(cpu.spent) for cpu in self.cpus),
        )

    def utilisation(self) -> dict[str, float]:
        """How busy each resource was during the run, 0 to 1; of CPUs, those that ran."""
        elapsed = max(1, self.finished.now_ns - self.started.now_ns)
        dom0 = self.cpus[: min(self.config.dom0_vcpus, self.config.nr_rings)]
        guests = {self.config.guest_cpu(domid) for domid in self.domids}
        return {
            "flush lock": self.lock.busy_ns / elapsed,
            "memory": self.memory.channel.busy_ns / elapsed,
            "dom0 CPUs": sum(sum(cpu.spent) for cpu in dom0) / len(dom0) / elapsed,
            "guest CPUs": sum(sum(self.cpus[at].spent) for at in guests) / len(guests) / elapsed,
        }

    # --- building ---------------------------------------------------------------------------

    def _boot(self, trace: Trace) -> None:
        config, nr = self.config, self.config.dom0_vcpus
        machine_memory = host_memory(self.arena)
        self.host, accessed = machine_memory
        bounce_frames = bounce_frames_of(config)
        dom0 = domain_memory(self.arena, 1 + bounce_frames * config.nr_rings)
        self.hypervisor = build_hypervisor(
            self.arena,
            machine_memory,
            dom0,
            nr_cpus=nr,
            policy=config.flush_policy,
            cpus_class=ObservedCpus,
        )
        self.worker_cpus = cast(ObservedCpus, self.hypervisor.cpus)
        dirty, running = self.host["dirty"][0, :nr], self.host["running"][0, :nr]
        dirty[:] = 1  # booting dom0 runs each vCPU once
        for cpu in self.cpus[:nr]:
            cpu.pin(dirty, running)
        self.world = World(self.hypervisor)
        hole = self.arena.array(abi.XEN_PAGE_SIZE, np.uint8)
        hole[:] = 0xA5
        self.dom0 = Dom0(
            self.grant_table_op,
            self.cpus,
            self.worker_cpus,
            POLICIES[config.flush_policy],
            dirty,
            accessed,
            self.lock,
            BookedChannel(self.env),
            self.pool,
            self.memory,
            dom0.ram,
            hole,
            ERAS[config.era],
            trace,
        )
        self._ground = Ground(
            config,
            self.costs,
            self.arena,
            self.cpus,
            self.memory,
            self.hypervisor,
            machine_memory,
            self.world,
            self.dom0,
        )

    def _disconnect(self, disk: Disk) -> None:
        """The guest unplugs its disk: both ends close, and nothing stays mapped or granted."""
        front = self.world.fronts[disk.key]
        front.tell(Leave())
        self.world.rest()
        assert isinstance(front.vbd, FrontendVbd) and front.vbd.finished
        assert self.world.backs[disk.key].vbd.state == CLOSED
        disk.store.close()

    def grant_table_op(self, vcpu: int, cmd: int, ops: np.ndarray, waited: bool) -> None:
        """One hypercall of dom0's `vcpu`, its arguments changed in place."""
        payload = cast(bytearray, ops.view(np.uint8).data)
        number = abi.HYPERVISOR_GRANT_TABLE_OP
        rc = self.hypervisor.hypercall(abi.DOMID_0, vcpu, number, cmd, payload, waited)
        assert rc == 0, f"hypercall {cmd}: {rc}"
