"""A whole machine in virtual time: built, connected, loaded, closed.

Owns: the memory that stands for each domain's, the order of a run, and its counters. All cores are
the real ones, and the handshake, which has a clock of its own: the load begins at 0.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import simpy

from backend.blkback import BLKBACK
from backend.stores import RamStore
from backend.worker import work
from common import abi
from common.arena import Arena
from common.compiled import direct
from common.event_channel import clear_mask, clear_pending, event_words
from common.handshake import Leave
from common.hypercall_gate import no_gate
from common.machine_memory import STATS
from common.spinning import new_spin
from common.xenbus import CLOSED, CONNECTED
from frontend.blkfront_info import BLKFRONT, PER_REQUEST
from frontend.frames import grant_frames, ram_frames
from frontend.load import LOAD, new_load
from frontend.pattern import disk_name
from frontend.stepper import run
from frontend.vbd import FrontendVbd
from hypervisor.cpus import POLICIES
from hypervisor.domains import DomainMemory
from machine.back import build_back, in_table, own_frames, slots_of
from machine.front import channel_words, guest_disks, lay_out_buffers
from machine.hypervisor import build_domain, build_hypervisor, domain_memory, host_memory
from machine.plug import XVDA, plug
from simulator.backend_thread import BackendThread, Dom0
from simulator.config import MODES, Config
from simulator.costs import COSTS, ERAS, Costs
from simulator.cpus import Cpu
from simulator.flush import FlushLock, ObservedCpus
from simulator.guest import FOR_EVER, Guest
from simulator.handshake import World
from simulator.shared import Channel as BookedChannel
from simulator.shared import Memory, RequestPool
from simulator.trace import Trace


@dataclass(frozen=True)
class Counts:
    """Every counter at `now_ns` of virtual time, by guest domid; each array is a copy.

    frontend, backend, hypervisor: shape (1,); latency: u64 by bucket; cpus: CPU_COUNTERS by worker
    CPU; busy_ns: what all CPUs have spent computing.
    """

    now_ns: int
    frontend: dict[int, np.ndarray]
    backend: dict[int, np.ndarray]
    hypervisor: dict[int, np.ndarray]
    latency: dict[int, np.ndarray]
    cpus: np.ndarray
    busy_ns: int


@dataclass
class _Disk:
    """What one guest counts, and both ends of its disk."""

    stats: np.ndarray
    guest: Guest
    thread: BackendThread
    store: RamStore


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
        # Both ends' rings and the guests' loads, by domid.
        self._fronts = BLKFRONT.rows(self.arena, config.guests + 1)
        self._jobs = LOAD.rows(self.arena, config.guests + 1)
        self._backs = BLKBACK.rows(self.arena, config.guests + 1)
        self._run = direct(run, self._fronts, self._jobs, 0, 0, 0)
        self._work = direct(work, self._backs, 0, 0, 0)
        self._boot(trace or Trace())
        self.booted = self.counts()
        self._disks = {domid: self._connect(domid) for domid in self.domids}
        self.started = self.finished = self.closed = self.booted

    @property
    def domids(self) -> range:
        """The guests."""
        return range(1, self.config.guests + 1)

    def ends(self, domid: int) -> tuple[Guest, BackendThread]:
        """Who runs both ends of a guest's disk."""
        return (disk := self._disks[domid]).guest, disk.thread

    def run(self) -> "Machine":
        """The load, from its first request to its last answer, and then the disks are closed."""
        self.started = self.counts()
        lives = [self.env.process(disk.guest.run()) for disk in self._disks.values()]
        for disk in self._disks.values():
            self.env.process(disk.thread.run())
        try:
            self.env.run(self.env.all_of(lives))
        except RuntimeError as error:
            raise AssertionError("a wake-up was lost: everybody sleeps for ever") from error
        self.finished = self.counts()
        for domid in self.domids:
            self._disconnect(domid)
        self.closed = self.counts()
        return self

    def counts(self) -> Counts:
        """Every counter as it stands."""
        host, domids = self.host, self.domids
        stats = {domid: disk.stats for domid, disk in getattr(self, "_disks", {}).items()}
        none = np.zeros(1, STATS)
        return Counts(
            int(self.env.now),
            {domid: stats.get(domid, none)["counters"][0, :1].copy() for domid in domids},
            {domid: host["backend"][0, domid : domid + 1].copy() for domid in domids},
            {domid: host["hypervisor"][0, domid : domid + 1].copy() for domid in domids},
            {domid: stats.get(domid, none)["latency"][0, 0].copy() for domid in domids},
            host["cpus"][0, : self.config.dom0_vcpus].copy(),
            sum(sum(cpu.spent) for cpu in self.cpus),
        )

    def utilisation(self) -> dict[str, float]:
        """How busy each resource was during the run, 0 to 1; of CPUs, those that ran."""
        elapsed = max(1, self.finished.now_ns - self.started.now_ns)
        dom0 = self.cpus[: min(self.config.dom0_vcpus, self.config.guests)]
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
        self._memory = host_memory(self.arena)
        self.host, accessed = self._memory
        self._bounce_frames = slots_of(0) if MODES[config.mode][2] else 0
        dom0 = domain_memory(self.arena, 1 + self._bounce_frames * config.guests)
        self.hypervisor = build_hypervisor(
            self.arena,
            self._memory,
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

    def _connect(self, domid: int) -> _Disk:
        """A guest and its disk, from the domain's birth until both ends are Connected."""
        config, plan, arena = self.config, self.config.plan, self.arena
        frames_per_io = -(-plan.bs // abi.XEN_PAGE_SIZE)
        buffers = plan.iodepth * frames_per_io
        memory = domain_memory(arena, ram_frames(1, buffers), grant_frames(1))
        build_domain(self.hypervisor, self._memory, domid, memory)
        stats, spin = arena.array(1, STATS), new_spin(adaptive=False)
        # A short run touches few blocks of each disk, and once.
        store = RamStore(config.disk_sectors, huge_pages=False)
        (domain,) = guest_disks(
            domid,
            *memory,
            stats["counters"][0],
            spin,
            buffer_frames=buffers,
            nr_ios=plan.iodepth,
            notes_wakes=True,
            arena=arena,
        )
        grant_mode, keeps, _ = MODES[config.mode]
        vcpu = (domid - 1) % config.dom0_vcpus
        let_go = partial(self._let_go, domid)
        self.world.serve((domid, XVDA), config.disk_sectors, keeps, vcpu, let_go)
        self.world.toolstack.hold(plug(domid, f"ram:{config.disk_sectors >> 1}k"), lambda _: None)
        vbd = self.world.boot(domain, XVDA, grant_mode != PER_REQUEST).vbd
        self.world.rest()
        assert isinstance(vbd, FrontendVbd) and vbd.dev is not None
        assert vbd.state == self.world.backs[domid, XVDA].vbd.state == CONNECTED
        front = vbd.dev
        lay_out_buffers(front, vbd.first_buffer, frames_per_io)
        for page in memory.event.reshape(2, abi.XEN_PAGE_SIZE):
            pending, mask = event_words(page)
            clear_mask(mask, vbd.port)  # each end listens, and has looked: a new one is pending
            clear_pending(pending, vbd.port)
        thread = self._new_thread(domid, memory, store, vbd.port)
        own_plan = replace(plan, seed=plan.seed + domid)
        versions = arena.array(config.disk_sectors, np.uint32)
        counted = (versions, stats["latency"][0, 0], disk_name(domid, 0), 0)
        job = new_load(arena, own_plan, front, *counted, real_time=False)
        BLKFRONT.write(self._fronts[domid], front)
        LOAD.write(self._jobs[domid], job)
        guest = Guest(
            self.cpus[config.guest_cpu(domid)],
            domid,
            self.costs,
            plan.seed,
            front,
            job,
            partial(self._run, self._fronts, self._jobs, domid),
            self.memory,
            self.dom0.trace,
        )
        guest.peer, thread.peer = thread, guest
        return _Disk(stats, guest, thread, store)

    def _new_thread(
        self, domid: int, memory: DomainMemory, store: RamStore, port: int
    ) -> BackendThread:
        config = self.config
        keeps = MODES[config.mode][1]
        cap = config.max_persistent_grants if keeps else 0
        vcpu, nr_slots = (domid - 1) % config.dom0_vcpus, slots_of(cap)
        reach = in_table(self.arena, nr_slots, memory.ram, self.dom0.hole)
        if self._bounce_frames:
            reach = own_frames(nr_slots, self.dom0.ram, 1 + self._bounce_frames * (domid - 1))
        words = channel_words(self.arena, memory.event, allocated_here=False)
        words.port[0] = port
        dev = build_back(
            self.arena,
            memory.ram[: abi.XEN_PAGE_SIZE],
            reach,
            store,
            self.dom0.accessed,
            self.host["backend"][0, domid : domid + 1],
            words,
            new_spin(adaptive=False),
            no_gate(),
            remote_domid=domid,
            persistent=keeps,
            max_persistent_grants=cap,
            gather_max=config.gather_max,
            cpu=vcpu,
            notes_wakes=True,
        )
        BLKBACK.write(self._backs[domid], dev)
        loop = partial(self._work, self._backs, domid, FOR_EVER)
        given = (self.costs, config.plan.seed, dev, loop, self.dom0)
        return BackendThread(self.cpus[vcpu], domid, *given)

    def _disconnect(self, domid: int) -> None:
        """The guest unplugs its disk: both ends close, and nothing stays mapped or granted."""
        front = self.world.fronts[domid, XVDA]
        front.tell(Leave())
        self.world.rest()
        assert isinstance(front.vbd, FrontendVbd) and front.vbd.finished
        assert self.world.backs[domid, XVDA].vbd.state == CLOSED
        self._disks[domid].store.close()

    def _let_go(self, domid: int) -> None:
        self._disks[domid].thread.end()

    def grant_table_op(self, vcpu: int, cmd: int, ops: np.ndarray, waited: bool) -> None:
        """One hypercall of dom0's `vcpu`, its arguments changed in place."""
        payload = cast(bytearray, ops.view(np.uint8).data)
        number = abi.HYPERVISOR_GRANT_TABLE_OP
        rc = self.hypervisor.hypercall(abi.DOMID_0, vcpu, number, cmd, payload, waited)
        assert rc == 0, f"hypercall {cmd}: {rc}"
