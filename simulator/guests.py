"""A simulated guest and its disks, from the domain's birth until both ends are Connected.

Owns: the memory that stands for the guest's, what is counted by disk, and which CPU runs what: all
of a guest's disks are used on its one vCPU, each by a thread of its own, as Linux's are by what
waits for them; dom0's rings go to its vCPUs round robin, each with a thread of its own.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

import numpy as np

from backend.blkback import BLKBACK
from backend.stores import NullStore, RamStore
from backend.worker import work
from common import abi
from common.arena import Arena
from common.compiled import direct
from common.counters import BACKEND_COUNTERS
from common.event_channel import clear_mask, clear_pending, event_words
from common.hypercall_gate import no_gate
from common.machine_memory import STATS
from common.spinning import new_spin
from common.xenbus import CONNECTED
from frontend.blkfront_info import BLKFRONT, PER_REQUEST, Blkfront
from frontend.frames import Domain, disk_frames, grant_frames, ram_frames
from frontend.load import LOAD, LoadPlan, new_load
from frontend.pattern import disk_name
from frontend.stepper import run
from frontend.vbd import FrontendVbd
from hypervisor.domains import DomainMemory
from hypervisor.hypercalls import Hypervisor
from machine.back import build_back, in_table, own_frames, slots_of
from machine.front import channel_words, guest_disks, lay_out_buffers
from machine.hypervisor import HostMemory, build_domain, domain_memory
from machine.plug import XVDA, plug
from simulator.backend_thread import BackendThread, Dom0
from simulator.config import MODES, Config, DiskPlan
from simulator.costs import Costs
from simulator.cpus import Cpu
from simulator.guest import FOR_EVER, Guest
from simulator.handshake import Key, World
from simulator.shared import Memory

MINORS: Final = 16  # of a disk's device number
NOTHING: Final = LoadPlan("read", abi.XEN_PAGE_SIZE, 1, 100, 0, None, 0, False)


class Ground(NamedTuple):
    """What guests are built on. memory: what copies cost; machine_memory: the hypervisor's."""

    config: Config
    costs: Costs
    arena: Arena
    cpus: list[Cpu]
    memory: Memory
    hypervisor: Hypervisor
    machine_memory: HostMemory
    world: World
    dom0: Dom0


@dataclass
class Disk:
    """Both ends of a guest's disk. key: (domid, device); counters: BACKEND_COUNTERS (1,); loaded:
    does anything run on it?"""

    key: Key
    guest: Guest
    thread: BackendThread
    store: RamStore | NullStore
    counters: np.ndarray
    loaded: bool


@dataclass
class GuestDomain:
    """A guest's disks, and what it counts (STATS, shape (1,))."""

    stats: np.ndarray
    disks: list[Disk]

    def frontend(self) -> np.ndarray:
        """A copy of its counters, by disk number: FRONTEND_COUNTERS."""
        return self.stats["counters"][0, : len(self.disks)].copy()

    def backend(self) -> np.ndarray:
        """A copy of its rings' counters, by disk number: BACKEND_COUNTERS."""
        return np.concatenate(
            [np.zeros(0, BACKEND_COUNTERS), *(disk.counters for disk in self.disks)]
        )

    def latency(self) -> np.ndarray:
        """A copy of its histograms: u64, shape (disks, len(OPERATIONS), BUCKETS)."""
        return self.stats["latency"][0, : len(self.disks)].copy()


def bounce_frames_of(config: Config) -> int:
    """dom0's own frames for each ring."""
    return slots_of(0) if MODES[config.mode][2] else 0


class GuestBuilder:
    """Builds a machine's guests, one after the other."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        arena, rings = ground.arena, ground.config.nr_rings
        # By ring: the disks of the whole machine, in the order in which they connect.
        self._fronts, self._jobs = BLKFRONT.rows(arena, rings), LOAD.rows(arena, rings)
        self._backs = BLKBACK.rows(arena, rings)
        self._run = direct(run, self._fronts, self._jobs, 0, 0, 0)
        self._work = direct(work, self._backs, 0, 0, 0)
        self._stores: dict[str, RamStore | NullStore] = {}
        self._ring = 0

    def build(self, domid: int) -> GuestDomain:
        """A guest, its disks Connected."""
        config, arena = self._ground.config, self._ground.arena
        plans = config.disks_of(domid)
        loads = [plan.load or NOTHING for plan in plans]
        buffers = max(load.iodepth * _frames_per_io(load) for load in loads)
        memory = domain_memory(arena, ram_frames(len(plans), buffers), grant_frames(len(plans)))
        build_domain(self._ground.hypervisor, self._ground.machine_memory, domid, memory)
        stats = arena.array(1, STATS)
        domains = guest_disks(
            domid,
            *memory,
            stats["counters"][0],
            new_spin(adaptive=False),
            nr_disks=len(plans),
            buffer_frames=buffers,
            nr_ios=max(load.iodepth for load in loads),
            notes_wakes=True,
            arena=arena,
        )
        guest = GuestDomain(stats, [])
        for number, (domain, plan) in enumerate(zip(domains, plans, strict=True)):
            frames = disk_frames(number, buffers).buffers
            guest.disks.append(self._connect(guest, domain, plan, memory, frames))
        return guest

    def _connect(
        self, guest: GuestDomain, domain: Domain, plan: DiskPlan, memory: DomainMemory, buffers: int
    ) -> Disk:
        """One disk: the whole handshake, and who runs its ends."""
        ground, number, ring = self._ground, len(guest.disks), self._ring
        key = (domain.domid, XVDA + MINORS * number)
        grant_mode, keeps, _ = MODES[ground.config.mode]
        vcpu = ring % ground.config.dom0_vcpus
        world = ground.world

        def let_go() -> None:
            guest.disks[number].thread.end()

        world.serve(
            key,
            plan.sectors,
            keeps,
            vcpu,
            let_go,
            read_only=plan.read_only,
            sector_size=plan.sector_size,
        )
        target = f"ram:{plan.sectors * abi.SECTOR_SIZE}"
        world.toolstack.hold(plug(domain.domid, target, key[1], plan.read_only), lambda _: None)
        vbd = world.boot(domain, key[1], grant_mode != PER_REQUEST).vbd
        world.rest()
        assert isinstance(vbd, FrontendVbd) and vbd.dev is not None
        assert vbd.state == world.backs[key].vbd.state == CONNECTED
        for page in memory.event.reshape(2, abi.XEN_PAGE_SIZE):
            pending, mask = event_words(page)
            clear_mask(mask, vbd.port)  # each end listens, and has looked: a new one is pending
            clear_pending(pending, vbd.port)
        store, counters = self._store(plan), ground.arena.array(1, BACKEND_COUNTERS)
        thread = self._new_thread(key[0], vbd, plan, memory, store, counters)
        guest_thread = self._new_guest(key[0], number, vbd.dev, plan, guest.stats, buffers)
        guest_thread.peer, thread.peer = thread, guest_thread
        self._ring += 1
        return Disk(key, guest_thread, thread, store, counters, plan.load is not None)

    def _store(self, plan: DiskPlan) -> RamStore | NullStore:
        """Its own, or one that has the name already."""
        if plan.name in self._stores:
            return self._stores[plan.name]
        # A short run touches few blocks of each disk, and once.
        store = RamStore(plan.sectors, sector_size=plan.sector_size)
        if plan.name:
            self._stores[plan.name] = store
        return store

    def _new_guest(
        self,
        domid: int,
        number: int,
        front: Blkfront,
        plan: DiskPlan,
        stats: np.ndarray,
        buffers: int,
    ) -> Guest:
        ground, load = self._ground, plan.load or NOTHING
        lay_out_buffers(front, buffers, _frames_per_io(load))
        versions = ground.arena.array(plan.sectors, np.uint32)
        counted = (versions, stats["latency"][0, number], disk_name(domid, number), 0)
        job = new_load(ground.arena, load, front, *counted, real_time=False)
        BLKFRONT.write(self._fronts[self._ring], front)
        LOAD.write(self._jobs[self._ring], job)
        return Guest(
            ground.cpus[ground.config.guest_cpu(domid)],
            domid,
            ground.costs,
            ground.config.plan.seed,
            front,
            job,
            partial(self._run, self._fronts, self._jobs, self._ring),
            ground.memory,
            ground.dom0.trace,
        )

    def _new_thread(
        self,
        domid: int,
        vbd: FrontendVbd,
        plan: DiskPlan,
        memory: DomainMemory,
        store: RamStore | NullStore,
        counters: np.ndarray,
    ) -> BackendThread:
        ground, config = self._ground, self._ground.config
        assert vbd.dev is not None
        keeps = MODES[config.mode][1]
        cap = config.max_persistent_grants if keeps else 0
        vcpu, nr_slots = self._ring % config.dom0_vcpus, slots_of(cap)
        reach = in_table(ground.arena, nr_slots, memory.ram, ground.dom0.hole)
        if bounce_frames := bounce_frames_of(config):
            reach = own_frames(nr_slots, ground.dom0.ram, 1 + bounce_frames * self._ring)
        words = channel_words(ground.arena, memory.event, allocated_here=False)
        words.port[0] = vbd.port
        dev = build_back(
            ground.arena,
            vbd.dev.words.view(np.uint8),
            reach,
            store,
            ground.dom0.accessed,
            counters,
            words,
            new_spin(adaptive=False),
            no_gate(),
            remote_domid=domid,
            persistent=keeps,
            max_persistent_grants=cap,
            gather_max=config.gather_max,
            cpu=vcpu,
            notes_wakes=True,
            read_only=plan.read_only,
        )
        BLKBACK.write(self._backs[self._ring], dev)
        loop = partial(self._work, self._backs, self._ring, FOR_EVER)
        given = (ground.costs, config.plan.seed, dev, loop, ground.dom0)
        return BackendThread(ground.cpus[vcpu], domid, *given)


def _frames_per_io(load: LoadPlan) -> int:
    return -(-load.bs // abi.XEN_PAGE_SIZE)
