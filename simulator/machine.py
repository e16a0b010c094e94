"""A whole machine in virtual time: built, connected, loaded, closed.

Owns: the plain memory that stands for each domain's, who is put together with whom, the order of a
run, and its counters. The hypervisor, blkfront, blkback and the load are the real ones.
"""

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import simpy

from backend import phases
from backend.blkback import new_blkback, slots_needed
from backend.stores import RamStore
from common import abi
from common.arena import Arena
from common.copying import address_of
from common.event_channel import clear_mask, event_words
from common.machine_memory import HOST, MAPTRACK_HANDLES_MAX, STATS
from common.not_done import GNTST_UNFILLED
from frontend.blkfront import end_every_access
from frontend.blkfront_info import new_blkfront
from frontend.grants import end_access, grant_access, new_grants
from frontend.load import new_load
from frontend.page_pool import new_pool
from hypervisor.cpus import ACCESSED_WORDS, POLICIES
from hypervisor.domains import GUEST_HANDLES_MAX, DomainMemory
from hypervisor.hypercalls import Hypervisor
from simulator.backend_thread import BackendThread, Dom0
from simulator.config import MODES, Config
from simulator.costs import COSTS, ERAS, Costs
from simulator.cpus import Cpu
from simulator.flush import FlushLock, ObservedCpus
from simulator.guest import Channel, Guest
from simulator.shared import Channel as BookedChannel
from simulator.shared import Memory, RequestPool
from simulator.trace import Trace

PORT: Final = 1
RING_FRAME: Final = 0
POOL_FRAME: Final = 1
POOL_PAGES: Final = abi.BLKIF_RING_SIZE * abi.BLKIF_MAX_SEGMENTS_PER_REQUEST
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
    grants: Any
    stats: np.ndarray
    ring_ref: int
    ring_op: np.ndarray
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
            holders=np.zeros(ACCESSED_WORDS, np.uint64),
        )
        self.worker_cpus, self.hypervisor = worker_cpus, Hypervisor(worker_cpus, Arena())
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

    def _create_domain(self, domid: int, ram: np.ndarray, grant_frames: np.ndarray) -> None:
        self.hypervisor.create_domain(
            domid,
            DomainMemory(ram, grant_frames, pages(2)),
            self.host["hypervisor"][0, domid : domid + 1],
            nr_vcpus=self.config.dom0_vcpus if domid == abi.DOMID_0 else 1,
            nr_handles=MAPTRACK_HANDLES_MAX if domid == abi.DOMID_0 else GUEST_HANDLES_MAX,
        )

    def _connect(self, domid: int) -> _Disk:
        """What the handshake comes to: memory, the ring's grant and its mapping, both ends."""
        config, plan = self.config, self.config.plan
        frames_per_io = -(-plan.bs // abi.XEN_PAGE_SIZE)
        buffers = POOL_FRAME + POOL_PAGES
        ram, grant_frames = pages(buffers + plan.iodepth * frames_per_io), pages(GRANT_FRAMES)
        self._create_domain(domid, ram, grant_frames)
        grants = new_grants(grant_frames)
        stats = np.zeros(1, STATS)
        front = new_blkfront(
            ram[: abi.XEN_PAGE_SIZE],
            address_of(ram),
            grants,
            new_pool(POOL_FRAME, POOL_PAGES),
            stats["counters"],
            nr_ios=plan.iodepth,
        )
        front.front["grant_mode"] = MODES[config.mode][0]
        front.ios["frame"] = buffers + np.arange(plan.iodepth) * frames_per_io
        own, far = event_words(pages(1)), event_words(pages(1))
        for words in (own, far):
            clear_mask(words[1], PORT)
        ring_ref = int(grant_access(grants, abi.DOMID_0, RING_FRAME, False))
        # A short run touches few blocks of each disk, and once.
        store = RamStore(config.disk_sectors, huge_pages=False)
        thread = self._new_thread(domid, ram, store, Channel(far[0], own[0], own[1], PORT))
        own_plan = plan.__class__(**{**plan.__dict__, "seed": plan.seed + domid})
        versions = np.zeros(config.disk_sectors, np.uint32)
        guest = Guest(
            self.cpus[config.guest_cpu(domid)],
            domid,
            self.costs,
            plan.seed,
            front,
            new_load(own_plan, front, versions, stats["latency"][0], domid, 0),
            Channel(own[0], far[0], far[1], PORT),
            self.memory,
            self.dom0.trace,
        )
        guest.peer, thread.peer = thread, guest
        ring_op = self._map_ring(domid, ring_ref, thread.cpu.number)
        return _Disk(ram, grants, stats, ring_ref, ring_op, guest, thread, store)

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

    def _map_ring(self, domid: int, ring_ref: int, vcpu: int) -> np.ndarray:
        op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
        op["host_addr"] = abi.XEN_PAGE_SIZE
        op["flags"], op["ref"], op["dom"] = abi.GNTMAP_HOST_MAP, ring_ref, domid
        op["status"] = GNTST_UNFILLED
        self._grant_table_op(vcpu, abi.GNTTABOP_MAP_GRANT_REF, op, False)
        assert op["status"][0] == abi.GNTST_OKAY
        return op

    def _disconnect(self, domid: int) -> None:
        """The backend unmaps all it kept and the ring; then the frontend ends every access."""
        disk = self._disks[domid]
        dev, vcpu = disk.thread.dev, disk.thread.cpu.number
        while phases.release_kept(dev):
            kept = dev.unmap_ops[: int(dev.back["unmap_ops"][0])]
            self._grant_table_op(vcpu, abi.GNTTABOP_UNMAP_GRANT_REF, kept, False)
            assert phases.finish_unmap(dev)
        op = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
        op["host_addr"], op["handle"] = disk.ring_op["host_addr"], disk.ring_op["handle"]
        op["status"] = GNTST_UNFILLED
        self._grant_table_op(vcpu, abi.GNTTABOP_UNMAP_GRANT_REF, op, False)
        assert op["status"][0] == abi.GNTST_OKAY
        stuck = end_every_access(disk.guest.dev)
        stuck += not end_access(disk.grants, disk.ring_ref)
        assert stuck == 0, f"{stuck} grants of guest {domid} are still mapped"
        disk.store.close()

    def _grant_table_op(self, vcpu: int, cmd: int, ops: np.ndarray, waited: bool) -> None:
        """One hypercall of dom0's `vcpu`, its arguments changed in place."""
        payload = cast(bytearray, ops.view(np.uint8).data)
        number = abi.HYPERVISOR_GRANT_TABLE_OP
        rc = self.hypervisor.hypercall(abi.DOMID_0, vcpu, number, cmd, payload, waited)
        assert rc == 0, f"hypercall {cmd}: {rc}"


def pages(count: int) -> np.ndarray:
    """`count` zeroed pages, taken from the host as they are used."""
    return np.zeros(count * abi.XEN_PAGE_SIZE, np.uint8)
