"""Both ends of a virtual disk and the real hypervisor, in one thread on plain memory.

`run` drives the guest's compiled loop; when the guest sleeps, the backend serves until it sleeps
too. Each sleeps only until its own event, so that a lost wake-up is an assertion here. `front_step`
and `back_step` run one phase. A page is mapped by arithmetic, and an empty slot leads to `hole`; if
the backend copies, the slots are dom0's own frames from BOUNCE_FRAME on. `push_raw` and
`answer_raw` are the liars' way onto the ring, past blkfront or blkback.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, cast

import numpy as np

from backend.blkback import BLKBACK, Blkback, begin_close
from backend.doors import called_for
from backend.persistent_grants import check
from backend.ring_hands import RingHands
from backend.slots import FREE
from backend.steps import CLEAR
from backend.steps import PHASES as BACK_PHASES
from backend.store_queue import StoreQueue
from backend.stores import RamStore, Store
from backend.worker import work
from common import abi, effects
from common.arena import Arena
from common.atomics import load_acquire, store_release
from common.event_channel import EventWords, clear_pending, event_words, set_pending
from common.hypercall_gate import no_gate
from common.machine_memory import MAPTRACK_HANDLES_MAX, STATS
from common.ring import REQ, RSP
from common.spinning import new_spin
from common.steps import ANY_STEP, STEP, mask_of
from common.u32 import u32_add, u32_sub
from frontend.blkfront import end_every_access, enqueue
from frontend.blkfront_info import PER_REQUEST, PERSISTENT, REUSE, Blkfront
from frontend.driver import Driver
from frontend.frames import DiskFrames, disk_frames
from frontend.grants import grant_access, new_grants
from frontend.load import LOAD, Load, no_load
from frontend.stepper import run
from frontend.steps import PHASES as FRONT_PHASES
from machine.back import build_back, in_table, own_frames, slots_of
from machine.front import build_front, lay_out_buffers
from machine.hypervisor import build_domain, build_hypervisor, domain_memory, host_memory

GUEST: Final = 1
PORT: Final = 2
LOOKS_MAX: Final = 1 << 40
BOUNCE_FRAME: Final = 1
PATIENCE_NS: Final = 10**12
GRANT_COPY: Final = "grant-copy"
# How the frontend uses grants, whether the backend keeps pages mapped.
MAPPING_MODES: Final = {
    "persistent": (PERSISTENT, True),
    "non-persistent": (PER_REQUEST, False),
    "backend-without-persistent": (REUSE, False),
}
MODES: Final = {**MAPPING_MODES, GRANT_COPY: (PER_REQUEST, False)}
CALLS: Final = {
    abi.GNTTABOP_MAP_GRANT_REF: "map",
    abi.GNTTABOP_UNMAP_GRANT_REF: "unmap",
    abi.GNTTABOP_COPY: "copy",
}
READ, WRITE = abi.BLKIF_OP_READ, abi.BLKIF_OP_WRITE
OKAY, ERROR, EOPNOTSUPP = abi.BLKIF_RSP_OKAY, abi.BLKIF_RSP_ERROR, abi.BLKIF_RSP_EOPNOTSUPP


# A slot once it holds a response.
RESPONSE_SLOT: Final = np.dtype(
    {
        "names": ["id", "operation", "status"],
        "formats": ["<u8", "u1", "<i2"],
        "offsets": [0, 8, 10],
        "itemsize": abi.BLKIF_REQUEST.itemsize,
    }
)


class Raw(NamedTuple):
    """A request as a hostile frontend writes it; a segment is (gref, first_sect, last_sect)."""

    segments: Sequence[tuple[int, int, int]] = ()
    operation: int = READ
    sector: int = 0
    id: int = 0
    nr_segments: int | None = None


class CallbackStore(RamStore):
    """A ramdisk that shows no memory, so that its callbacks are called."""

    def __init__(self, nr_sectors: int) -> None:
        super().__init__(nr_sectors)
        self.hidden, self.memory = cast(np.ndarray, self.memory), None

    def read(self, offset: int, into: np.ndarray) -> None:
        into[:] = self.hidden[offset : offset + len(into)]

    def write(self, offset: int, data: np.ndarray) -> None:
        self.hidden[offset : offset + len(data)] = data

    def discard(self, offset: int, nr_bytes: int) -> None:
        self.hidden[offset : offset + nr_bytes] = 0


class Carrier:
    """Nobody is woken: who sleeps lets the other end serve."""

    hung_up = False

    def __init__(self) -> None:
        self.polled = self

    def wake_far_end(self) -> None:
        pass

    @property
    def carrier(self) -> "Carrier":
        return self


class Bed:
    """Where a guest's thread sleeps: meanwhile the backends of its disks serve."""

    def __init__(self, pairs: list["Pair"]) -> None:
        self.pairs = pairs

    def register(self, *_: object) -> None:
        pass

    def unregister(self, *_: object) -> None:
        pass

    def poll(self, timeout_ms: int | None) -> list[tuple[Any, int]]:
        for pair in self.pairs:
            pair.serve()
        if not any(pair.front_is_awake() for pair in self.pairs):
            assert timeout_ms is not None, "the frontend sleeps for ever"
            time.sleep(timeout_ms / 1000)
        return []


class Ground:
    """What the disks of a guest have in common: the hypervisor, both domains' memory, the guest's
    grants and its thread.
    """

    def __init__(
        self,
        arena: Arena,
        nr_disks: int,
        dom0_frames: int,
        disk_frames: int,
        nr_handles: int,
        dom0_cpus: int,
        flush_policy: str,
    ) -> None:
        self.arena, self.pairs = arena, list[Pair]()
        machine, dom0 = host_memory(arena, nr_handles), domain_memory(arena, dom0_frames)
        guest = domain_memory(arena, nr_disks * disk_frames)
        self.hypervisor = build_hypervisor(
            arena, machine, dom0, nr_cpus=dom0_cpus, policy=flush_policy
        )
        build_domain(self.hypervisor, machine, GUEST, guest)
        self.host, self.accessed = machine
        self.host["dirty"][0, :dom0_cpus], self.host["running"][0, 0] = 1, 1
        self.dom0_ram, self.ram, self.grant_frames = dom0.ram, guest.ram, guest.grant
        self.grants = new_grants(arena, self.grant_frames)
        events = arena.array((2, abi.XEN_PAGE_SIZE), np.uint8)
        self.front_events, self.back_events = (event_words(page) for page in events)
        self.hole = arena.array(abi.XEN_PAGE_SIZE, np.uint8)
        self.hole[:] = 0xA5
        self.stats, self.spin = arena.array(1, STATS), new_spin(adaptive=False)
        self.bed = Bed(self.pairs)
        self.driver, self.jobs = Driver(self.spin, self.bed), LOAD.rows(arena, nr_disks)


def pairs(count: int, mode: str = "persistent", **options: Any) -> list["Pair"]:
    """So many disks of one guest. options: each Pair's."""
    found = [Pair(mode, nr_disks=count, **options)]
    for number in range(1, count):
        found.append(Pair(mode, ground=found[0].ground, number=number, **options))
    return found


class Pair:
    """A guest with one disk, dom0 that serves it, and what lies below them; or one more disk, with
    a `number`, on the `ground` of others.
    """

    def __init__(
        self,
        mode: str = "persistent",
        *,
        cap: int = 352,
        gather_max: int = 1,
        start: int = 0,
        dom0_cpus: int = 2,
        flush_policy: str = "mask",
        store: Store | None = None,
        read_only: bool = False,
        queue: StoreQueue | None = None,
        pool_pages: int = 352,
        nr_ios: int = 64,
        frames_per_io: int = 11,
        nr_handles: int = MAPTRACK_HANDLES_MAX,
        arena: Arena | None = None,
        nr_disks: int = 1,
        ground: Ground | None = None,
        number: int = 0,
    ) -> None:
        self.number, self.port = number, PORT + number
        self.store = store if store is not None else RamStore(64 * abi.SECTORS_PER_PAGE)
        frames = disk_frames(number, nr_ios * frames_per_io, pool_pages)
        self.buffer_frame, self._frames_per_io = frames.buffers, frames_per_io
        grant_mode, keeps = MODES[mode]
        self.copies, cap = mode == GRANT_COPY, cap if keeps else 0
        nr_slots = slots_of(cap)
        if ground is None:
            dom0_frames = BOUNCE_FRAME + nr_slots * self.copies * nr_disks
            size = frames.end - frames.ring
            given = (arena or Arena(), nr_disks, dom0_frames, size)
            ground = Ground(*given, nr_handles, dom0_cpus, flush_policy)
        self._stand_on(ground)
        self.ring_page = self.frame(frames.ring)
        slots = self.ring_page[abi.SRING_HEADER_SIZE :][: 32 * abi.BLKIF_REQUEST.itemsize]
        self.slots, self.responses = slots.view(abi.BLKIF_REQUEST), slots.view(RESPONSE_SLOT)
        self.latency = ground.stats["latency"][0, number]
        self.front = self._build_front(frames, nr_ios=nr_ios, start=start, handle=number)
        self.front.front["grant_mode"] = grant_mode
        lay_out_buffers(self.front, self.buffer_frame, frames_per_io)
        self.rings = BLKBACK.rows(self.arena, 1)
        self.back = self._build_back(
            nr_slots,
            persistent=keeps,
            max_persistent_grants=cap,
            gather_max=gather_max,
            read_only=read_only,
            queue=queue,
        )
        none = cast(Any, None)
        self.hands = RingHands(self.back, self.store, none, none)
        self.queued = no_load(self.arena)
        self.front_job = self.queued
        self.hypercalls: list[tuple[str, int]] = []  # "map", "unmap" or "copy", how many operations
        self.breaks = 0  # times the backend said BROKEN

    def _stand_on(self, ground: Ground) -> None:
        self.ground, self.arena = ground, ground.arena
        ground.pairs.append(self)
        self.hypervisor, self.host, self.accessed = ground.hypervisor, ground.host, ground.accessed
        self.ram, self.grant_frames, self.dom0_ram = (
            ground.ram,
            ground.grant_frames,
            ground.dom0_ram,
        )
        self.front_events, self.back_events = ground.front_events, ground.back_events
        self.hole, self.spin, self.driver = ground.hole, ground.spin, ground.driver

    def _build_front(self, frames: DiskFrames, **options: int) -> Blkfront:
        ground, one = self.ground, slice(self.number, self.number + 1)
        return build_front(
            self.arena,
            self.ram,
            frames,
            ground.grants,
            ground.stats["counters"][0, one],
            EventWords(self.front_events[0], *self.back_events, np.array([self.port])),
            self.spin,
            **options,
        )

    def _build_back(self, nr_slots: int, **options: Any) -> Blkback:
        reach = in_table(self.arena, nr_slots, self.ram, self.hole)
        if self.copies:
            reach = own_frames(nr_slots, self.dom0_ram, BOUNCE_FRAME + nr_slots * self.number)
        self._empty = reach.page_table.copy()
        return build_back(
            self.arena,
            self.ring_page,
            reach,
            self.store,
            self.accessed,
            self.host["backend"]["counters"][0, self.number : self.number + 1],
            EventWords(self.back_events[0], *self.front_events, np.array([self.port])),
            self.spin,
            no_gate(),
            remote_domid=GUEST,
            **options,
        )

    # --- the guest --------------------------------------------------------------------------

    @property
    def front(self) -> Blkfront:
        """blkfront's end."""
        return self._front

    @front.setter
    def front(self, front: Blkfront) -> None:
        self._front = front
        self.driver.attach(self.number, front, cast(Any, Carrier()))

    @property
    def front_job(self) -> Load:
        """What `front_run` runs: at first what is queued by hand."""
        return self._front_job

    @front_job.setter
    def front_job(self, job: Load) -> None:
        self._front_job = job
        LOAD.write(self.ground.jobs[self.number], job)

    def front_run(self, stops: int, looks: int = LOOKS_MAX) -> int:
        """The guest's loop for once; its effect."""
        return int(run(self.driver.rings, self.ground.jobs, self.number, looks, stops))

    def buffer(self, io: int) -> np.ndarray:
        """The bytes that I/O `io` moves."""
        start = (self.buffer_frame + io * self._frames_per_io) * abi.XEN_PAGE_SIZE
        return self.ram[start : start + self._frames_per_io * abi.XEN_PAGE_SIZE]

    def queue(self, io: int, operation: int, sector: int, nr_sectors: int) -> None:
        """Queue I/O `io`."""
        entry = self.front.ios[io]
        entry["operation"], entry["sector"], entry["nr_sectors"] = operation, sector, nr_sectors
        enqueue(self.front, io)

    def run(self) -> list[int]:
        """Both ends work until every queued I/O is done; which, in the order they ended."""
        self.driver.run_one(self.number, self.queued, lambda: None)
        return self.take_done()

    def front_is_awake(self) -> bool:
        """Is its event pending?"""
        return bool(int(self.front_events[0][self.port >> 6]) >> (self.port & 63) & 1)

    def take_done(self) -> list[int]:
        """The I/Os that are done, in the order they ended."""
        done = self.front.done[: int(self.front.front["done"][0])].tolist()
        self.front.front["done"] = 0
        return done

    def front_until(self, *stops: int) -> int:
        """The guest's loop for once, at most to one of `stops`; its effect."""
        return self.front_run(mask_of(*stops))

    def front_step(self) -> str:
        """One phase of blkfront; which it was."""
        step = int(self.front.turn[STEP])
        self.front_run(ANY_STEP)
        return FRONT_PHASES[step].name

    def write(self, sector: int, data: bytes) -> int:
        """Write `data` at `sector` with one I/O; its status."""
        self.buffer(0)[: len(data)] = np.frombuffer(data, np.uint8)
        return self._one(WRITE, sector, len(data) // abi.SECTOR_SIZE)

    def read(self, sector: int, nr_sectors: int) -> bytes:
        """`nr_sectors` from `sector` on, which must succeed."""
        assert self._one(READ, sector, nr_sectors) == OKAY
        return self.buffer(0)[: nr_sectors * abi.SECTOR_SIZE].tobytes()

    def _one(self, operation: int, sector: int, nr_sectors: int) -> int:
        self.queue(0, operation, sector, nr_sectors)
        assert self.run() == [0]
        return int(self.front.ios["status"][0])

    # --- the liars --------------------------------------------------------------------------

    def frame(self, number: int) -> np.ndarray:
        """One frame of the guest's RAM."""
        return self.ram[number * abi.XEN_PAGE_SIZE : (number + 1) * abi.XEN_PAGE_SIZE]

    def grant(self, frame: int, *, readonly: bool = False) -> int:
        """Grant a frame to dom0, past the pool; the gref (the first one is 8)."""
        return int(grant_access(self.front.grants, abi.DOMID_0, frame, readonly))

    def push_raw(self, *requests: Raw) -> None:
        """Publish `requests`, past blkfront, and send the backend an event."""
        for raw in requests:
            req_prod = int(load_acquire(self.front.words, REQ))
            slot = self.slots[req_prod % 32]
            slot["operation"], slot["id"], slot["sector_number"] = raw.operation, raw.id, raw.sector
            slot["nr_segments"] = len(raw.segments) if raw.nr_segments is None else raw.nr_segments
            for at, segment in enumerate(raw.segments):
                slot["seg"][at] = segment
            store_release(self.front.words, REQ, u32_add(req_prod, 1))
        set_pending(*self.back_events, self.port)

    def ask(self, *requests: Raw) -> list[tuple[int, int, int]]:
        """`push_raw`, let the backend serve; the (id, operation, status) of what it answered."""
        first = int(load_acquire(self.back.words, RSP))
        self.push_raw(*requests)
        self.serve()
        count = int(u32_sub(load_acquire(self.back.words, RSP), first))
        return [self.responses[(first + at) % 32].item() for at in range(count)]

    def answer_raw(self, *responses: tuple[int, int, int]) -> None:
        """Publish responses (id, operation, status), past blkback."""
        for response in responses:
            rsp_prod = int(load_acquire(self.back.words, RSP))
            self.responses[rsp_prod % 32] = response
            store_release(self.back.words, RSP, u32_add(rsp_prod, 1))

    # --- dom0 -------------------------------------------------------------------------------

    @property
    def back(self) -> Blkback:
        """The backend's end, which row 0 of `rings` leads to."""
        return self._back

    @back.setter
    def back(self, dev: Blkback) -> None:
        self._back = dev
        BLKBACK.write(self.rings[0], dev)

    def serve(self) -> None:
        """If it has an event, the backend works until it sleeps, or says the ring is broken."""
        if not clear_pending(self.back_events[0], self.port):
            return
        while (effect := self.back_until()) != effects.WAIT:
            if effect == effects.BROKEN:
                self.breaks += 1
                return

    def back_until(self, *stops: int) -> int:
        """The backend's loop for once, at most to one of `stops`; its effect, already done."""
        effect = int(work(self.rings, 0, LOOKS_MAX, mask_of(*stops)))
        self.do(effect)
        return effect

    def do(self, effect: int) -> None:
        """What the backend asks for."""
        if effect == effects.HYPERCALL:
            self.make_call()
        elif effect == effects.IO:
            self.hands.store_io()

    def back_step(self) -> str:
        """One phase of blkback, and what it asks for done; which it was."""
        step = int(self.back.turn[STEP])
        self.do(int(work(self.rings, 0, LOOKS_MAX, ANY_STEP)))
        return BACK_PHASES[step].name

    def batch(self) -> Iterator[str]:
        """One batch of the backend, phase by phase: the name of each once it is done."""
        assert self.back.turn[STEP] == CLEAR
        yield self.back_step()
        while self.back.turn[STEP] != CLEAR:
            yield self.back_step()

    def make_call(self) -> None:
        """The hypercall that the backend asks for."""
        cmd, ops = called_for(self.back)
        self.hypercalls.append((CALLS[cmd], len(ops)))
        payload = bytearray(ops.tobytes())
        number = abi.HYPERVISOR_GRANT_TABLE_OP
        assert self.hypervisor.hypercall(abi.DOMID_0, 0, number, cmd, payload, False) == 0
        ops[:] = np.frombuffer(payload, ops.dtype)

    def disconnect(self) -> int:
        """Unmap all that is kept, and end the pool's grants; how many could not be ended."""
        begin_close(self.back)
        while self.back_until() != effects.DONE:
            pass
        return end_every_access(self.front)

    def spin_on(self, limit_ns: int) -> None:
        """From now on both ends spin for so long, whoever else wants their CPU."""
        self.spin["adaptive"], self.spin["limit_ns"] = True, limit_ns
        self.spin["patience_ns"] = self.spin["patience_max_ns"] = PATIENCE_NS

    # --- what can be seen -------------------------------------------------------------------

    def counts(self) -> Counter[str]:
        """Every counter there is; the backend's that are also the frontend's as `back_...`."""
        counts: Counter[str] = Counter()
        for prefix, block in (
            ("back_", self.back.counters),
            ("", self.back.counters),
            ("", self.host["hypervisor"][0, GUEST : GUEST + 1]),
            ("", self.front.counters),
        ):
            for name in block.dtype.names or ():
                counts[f"{prefix}{name}"] = int(block[name][0])
        for kind in ("map", "unmap", "copy"):
            counts[f"{kind}_hypercalls"] = sum(done == kind for done, _ in self.hypercalls)
        return counts

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """What was counted in the block: filled when it ends."""
        before, cost = self.counts(), Counter[str]()
        yield cost
        after = self.counts()
        cost.update({name: after[name] - before[name] for name in after})

    @property
    def kept(self) -> int:
        """Pages that the backend keeps mapped."""
        return int(self.back.tree["count"][0])

    def check(self) -> None:
        """Between batches nothing is lost: slots, tree, maptrack and pins all agree."""
        back, dom0 = self.back, self.hypervisor.domains.find(abi.DOMID_0)
        assert check(back.tree, back.nodes) is None
        assert back.tree["in_flight"][0] == 0
        assert set(back.requests["state"].tolist()) == {FREE}
        assert sorted(back.vacant.tolist()) == list(range(int(back.back["vacant"][0])))
        counts = [pair.counts() for pair in self.ground.pairs]
        for name in ("map_ops", "unmap_ops", "copy_ops", "hypercalls"):
            assert sum(each[f"back_{name}"] for each in counts) == counts[0][name], name
        free = int(back.back["free_slots"][0])
        assert free + self.kept == len(back.page_table)
        assert len(set(back.slots[:free].tolist())) == free
        assert np.count_nonzero(back.page_table != self._empty) == self.kept
        kept = sum(pair.kept for pair in self.ground.pairs)
        assert dom0 is not None and dom0.maptrack.list["used"][0] == kept
        assert self.counts()["grants_mapped"] == kept
        assert (self.hole == 0xA5).all(), "an empty slot was written to"
