"""A whole machine in virtual time: built, connected, loaded, closed.

Owns: the plain memory that stands for each domain's, who is put together with whom, the order of a
run, and its counters. The hypervisor, blkfront, blkback and the load are the real ones; so is the
handshake (`handshake.py`), which has a clock of its own: the load begins at 0.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final, cast

import numpy as np
import simpy

from backend import phases
from backend.blkback import new_blkback, slots_needed
from backend.stores import RamStore
from common import abi
from common.copying import address_of
from common.event_channel import clear_mask, clear_pending, event_words
from common.handshake import Leave
from common.machine_memory import HOST, MAPTRACK_HANDLES_MAX, STATS
from common.xenbus import CLOSED, CONNECTED
from frontend.blkfront_info import PER_REQUEST
from frontend.load import new_load
from frontend.vbd import POOL_FRAME, POOL_PAGES, Domain, FrontendVbd
from hypervisor.cpus import ACCESSED_WORDS, POLICIES
from hypervisor.hypercalls import Hypervisor
from machine.plug import plug
from simulator.backend_thread import BackendThread, Dom0
from simulator.config import MODES, Config
from simulator.costs import COSTS, ERAS, Costs
from simulator.cpus import Cpu
from simulator.flush import FlushLock, ObservedCpus
from simulator.guest import Channel, Guest
from simulator.handshake import World
from simulator.shared import Channel as BookedChannel
from simulator.shared import Memory, RequestPool
from simulator.trace import Trace

GRANT_FRAMES: Final = 4  # Linux asks for this many at boot, as in the real runtime


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
    """One guest's memory and both ends of its disk."""

    ram: np.ndarray
    stats: np.ndarray
    guest: Guest
    thread: BackendThread
    store: RamStore


class Machine:
    """`run` it once; then `booted`, `started`, `finished` and `closed` are its counts."""

    def __init__(self, config: Config, costs: Costs = COSTS, trace: Trace | None = None) -> None:
        self.config, self.costs = config, costs
        self.env = simpy.Environment()
        self.host = np.zeros(1, HOST)
        self.cpus = [Cpu(self.env, number, costs) for number in range(config.nr_cpus)]
        era, seed = ERAS[config.era], config.plan.seed
        self.lock = FlushLock(self.env, costs, era.byte_lock, seed)
        self.memory = Memory(self.env, costs)
        self.pool = RequestPool(self.env, era.requests_max)
        self._boot(trace or Trace())
        self.booted = self.counts()
        self._disks = {domid: self._connect(domid) for domid in self.domids}
        self.started = self.finished = self.closed = self.booted

    @property
    def domids(self) -> range:
        """The guests."""
        return range(1, self.config.guests + 1)

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
            {domid: stats.get(domid, none)["counters"].copy() for domid in domids},
            {domid: host["backend"][0, domid : domid + 1].copy() for domid in domids},
            {domid: host["hypervisor"][0, domid : domid + 1].copy() for domid in domids},
            {domid: stats.get(domid, none)["latency"][0].copy() for domid in domids},
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
        config, host = self.config, self.host
        nr = config.dom0_vcpus
        accessed = np.zeros(MAPTRACK_HANDLES_MAX * ACCESSED_WORDS, np.uint64)
        dirty, running = host["dirty"][0, :nr], host["running"][0, :nr]
        dirty[:] = 1  # booting dom0 runs each vCPU once
        for cpu in self.cpus[:nr]:
            cpu.pin(dirty, running)
        worker_cpus = ObservedCpus(
            nr,
            config.flush_policy,
            dirty=dirty,
            running=running,
            counters=host["cpus"][0, :nr],
            accessed=accessed,
        )
        self.worker_cpus, self.hypervisor = worker_cpus, Hypervisor(worker_cpus)
        self.world = World(self.hypervisor)
        copies = MODES[config.mode][2]
        self._bounce_frames = slots_needed(abi.BLKIF_RING_SIZE, 0) if copies else 0
        dom0_ram = pages(1 + self._bounce_frames * config.guests)
        self._create_domain(abi.DOMID_0, dom0_ram, pages(1))
        self.dom0 = Dom0(
            self._grant_table_op,
            self.cpus,
            worker_cpus,
            POLICIES[config.flush_policy],
            dirty,
            accessed,
            self.lock,
            BookedChannel(self.env),
            self.pool,
            self.memory,
            dom0_ram,
            np.full(abi.XEN_PAGE_SIZE, 0xA5, np.uint8),
            ERAS[config.era],
            trace,
        )

    def _create_domain(self, domid: int, ram: np.ndarray, grant_frames: np.ndarray) -> np.ndarray:
        """Its events (u8): the shared-info page, and the far ends' behind it."""
        events = pages(2)
        self.hypervisor.create_domain(
            domid,
            nr_vcpus=self.config.dom0_vcpus if domid == abi.DOMID_0 else 1,
            ram=ram,
            grant_frames=grant_frames,
            shared_info=events[: abi.XEN_PAGE_SIZE],
            far_events=events[abi.XEN_PAGE_SIZE :],
            counters=self.host["hypervisor"][0, domid : domid + 1],
        )
        return events

    def _connect(self, domid: int) -> _Disk:
        """A guest and its disk, from the domain's birth until both ends are Connected."""
        config, plan = self.config, self.config.plan
        frames_per_io = -(-plan.bs // abi.XEN_PAGE_SIZE)
        buffers = POOL_FRAME + POOL_PAGES
        ram, grant_frames = pages(buffers + plan.iodepth * frames_per_io), pages(GRANT_FRAMES)
        events, stats = self._create_domain(domid, ram, grant_frames), np.zeros(1, STATS)
        # A short run touches few blocks of each disk, and once.
        store = RamStore(config.disk_sectors, huge_pages=False)
        domain = Domain(domid, ram, grant_frames, stats["counters"], plan.iodepth, POOL_PAGES)
        grant_mode, keeps, _ = MODES[config.mode]
        vcpu = (domid - 1) % config.dom0_vcpus
        self.world.serve(domid, config.disk_sectors, keeps, vcpu, partial(self._let_go, domid))
        self.world.toolstack.hold(plug(domid, config.disk_sectors >> 11), lambda _: None)
        vbd = self.world.boot(domain, grant_mode != PER_REQUEST).vbd
        self.world.rest()
        assert isinstance(vbd, FrontendVbd) and vbd.dev is not None
        assert vbd.state == self.world.backs[domid].vbd.state == CONNECTED
        front = vbd.dev
        assert front.front["grant_mode"] == grant_mode
        front.ios["frame"] = buffers + np.arange(plan.iodepth) * frames_per_io
        own, far = (event_words(page) for page in events.reshape(2, abi.XEN_PAGE_SIZE))
        for words in (own, far):  # each end listens, and has looked: a new channel is pending
            clear_mask(words[1], vbd.port)
            clear_pending(words[0], vbd.port)
        thread = self._new_thread(domid, ram, store, Channel(far[0], own[0], own[1], vbd.port))
        own_plan = plan.__class__(**{**plan.__dict__, "seed": plan.seed + domid})
        versions = np.zeros(config.disk_sectors, np.uint32)
        guest = Guest(
            self.cpus[config.guest_cpu(domid)],
            domid,
            self.costs,
            plan.seed,
            front,
            new_load(own_plan, front, versions, stats["latency"][0], domid, 0),
            Channel(own[0], far[0], far[1], vbd.port),
            self.memory,
            self.dom0.trace,
        )
        guest.peer, thread.peer = thread, guest
        return _Disk(ram, stats, guest, thread, store)

    def _new_thread(
        self, domid: int, ram: np.ndarray, store: RamStore, channel: Channel
    ) -> BackendThread:
        config = self.config
        keeps = MODES[config.mode][1]
        cap = config.max_persistent_grants if keeps else 0
        vcpu = (domid - 1) % config.dom0_vcpus
        dev = new_blkback(
            ram[: abi.XEN_PAGE_SIZE],
            np.full(slots_needed(abi.BLKIF_RING_SIZE, cap), address_of(self.dom0.hole), np.uint64),
            self.dom0.accessed,
            self.host["backend"][0, domid : domid + 1],
            remote_domid=domid,
            nr_sectors=config.disk_sectors,
            store_address=address_of(cast(np.ndarray, store.memory)),
            persistent=keeps,
            max_persistent_grants=cap,
            gather_max=config.gather_max,
            cpu=vcpu,
        )
        bounce = 1 + self._bounce_frames * (domid - 1) if self._bounce_frames else None
        seed = config.plan.seed
        return BackendThread(
            self.cpus[vcpu], domid, self.costs, seed, dev, channel, self.dom0, ram, bounce
        )

    def _disconnect(self, domid: int) -> None:
        """The guest unplugs its disk: both ends close, and nothing stays mapped or granted."""
        front = self.world.fronts[domid]
        front.tell(Leave())
        self.world.rest()
        assert isinstance(front.vbd, FrontendVbd) and front.vbd.finished
        assert self.world.backs[domid].vbd.state == CLOSED
        self._disks[domid].store.close()

    def _let_go(self, domid: int) -> None:
        """The ring's thread ends: it unmaps all it has kept."""
        thread = self._disks[domid].thread
        dev = thread.dev
        while phases.release_kept(dev):
            kept = dev.unmap_ops[: int(dev.back["unmap_ops"][0])]
            self._grant_table_op(thread.cpu.number, abi.GNTTABOP_UNMAP_GRANT_REF, kept, False)
            assert phases.finish_unmap(dev)

    def _grant_table_op(self, vcpu: int, cmd: int, ops: np.ndarray, waited: bool) -> None:
        """One hypercall of dom0's `vcpu`, its arguments changed in place."""
        payload = cast(bytearray, ops.view(np.uint8).data)
        number = abi.HYPERVISOR_GRANT_TABLE_OP
        rc = self.hypervisor.hypercall(abi.DOMID_0, vcpu, number, cmd, payload, waited)
        assert rc == 0, f"hypercall {cmd}: {rc}"


def pages(count: int) -> np.ndarray:
    """`count` zeroed pages, taken from the host as they are used."""
    return np.zeros(count * abi.XEN_PAGE_SIZE, np.uint8)
