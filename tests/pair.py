"""Both ends of a virtual disk and the real hypervisor, in one thread on plain memory.

`run` drives the guest's compiled loop; when the guest sleeps, the backend serves until it sleeps
too. Each sleeps only until its own event, so that a lost wake-up is an assertion here. A page is
mapped by arithmetic, and an empty slot leads to `hole`; if the backend copies, the slots are
dom0's own frames from BOUNCE_FRAME on. `push_raw` and `answer_raw` are the liars'
way onto the ring, past blkfront or blkback.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, cast

import numpy as np

from backend import phases, worker
from backend.blkback import new_blkback, slots_needed
from backend.persistent_grants import check
from backend.ring_thread import RingThread
from backend.stores import RamStore, Store
from common import abi
from common.arena import Arena
from common.atomics import load_acquire, store_release
from common.copying import address_of
from common.event_channel import clear_pending, event_words, set_pending
from common.hypercall_gate import no_gate
from common.machine_memory import HOST, MAPTRACK_HANDLES_MAX, STATS
from common.ring import REQ, RSP
from common.spinning import new_spin
from common.u32 import u32_add, u32_sub
from frontend.blkfront import end_every_access, enqueue
from frontend.blkfront_info import PER_REQUEST, PERSISTENT, REUSE, new_blkfront
from frontend.driver import Driver
from frontend.effects import finish_queued
from frontend.grants import grant_access, new_grants
from frontend.page_pool import new_pool
from hypervisor.cpus import ACCESSED_WORDS
from hypervisor.domains import DomainMemory
from machine.hypervisor import HostMemory, build_domain, build_hypervisor

GUEST: Final = 1
PORT: Final = 2
POOL_FRAME: Final = 1  # frame 0 is the ring
BOUNCE_FRAME: Final = 1
GRANT_COPY: Final = "grant-copy"
# How the frontend uses grants, whether the backend keeps pages mapped.
MAPPING_MODES: Final = {
    "persistent": (PERSISTENT, True),
    "non-persistent": (PER_REQUEST, False),
    "backend-without-persistent": (REUSE, False),
}
MODES: Final = {**MAPPING_MODES, GRANT_COPY: (PER_REQUEST, False)}
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


class _Channel:
    """The frontend's end of the event channel: while it sleeps, the backend serves."""

    def __init__(self, pair: "Pair") -> None:
        self.port, self._pair = PORT, pair
        self.far_pending, self.far_mask = pair.back_events

    def wake_far_end(self) -> None:
        pass

    def wait(self, _timeout_ms: int, _others: Sequence[int] = ()) -> bool:
        self._pair.serve()
        assert clear_pending(self._pair.front_events[0], PORT), "the frontend sleeps for ever"
        return True


class Pair:
    """A guest with one disk, dom0 that serves it, and what lies below them."""

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
        pool_pages: int = 352,
        nr_ios: int = 64,
        frames_per_io: int = 11,
    ) -> None:
        self.store = store if store is not None else RamStore(64 * abi.SECTORS_PER_PAGE)
        self.buffer_frame, self._frames_per_io = POOL_FRAME + pool_pages, frames_per_io
        self.ram = pages(self.buffer_frame + nr_ios * frames_per_io)
        self.ring_page, self.grant_frames = self.ram[: abi.XEN_PAGE_SIZE], pages(1)
        slots = self.ring_page[abi.SRING_HEADER_SIZE :][: 32 * abi.BLKIF_REQUEST.itemsize]
        self.slots, self.responses = slots.view(abi.BLKIF_REQUEST), slots.view(RESPONSE_SLOT)
        self.front_events, self.back_events = event_words(pages(1)), event_words(pages(1))
        self.hole = np.full(abi.XEN_PAGE_SIZE, 0xA5, np.uint8)
        self.host, stats = np.zeros(1, HOST), np.zeros(1, STATS)
        self.latency = stats["latency"][0]
        grant_mode, keeps = MODES[mode]
        self.copies, cap = mode == GRANT_COPY, cap if keeps else 0
        nr_slots = slots_needed(abi.BLKIF_RING_SIZE, cap)
        self.dom0_ram = pages(BOUNCE_FRAME + nr_slots * self.copies)
        self._boot(dom0_cpus, flush_policy)
        self._empty = np.full(nr_slots, address_of(self.hole), np.uint64)
        if self.copies:
            frames = BOUNCE_FRAME + np.arange(nr_slots)
            self._empty[:] = address_of(self.dom0_ram) + frames * abi.XEN_PAGE_SIZE
        self.front = new_blkfront(
            self.ring_page,
            address_of(self.ram),
            new_grants(self.grant_frames),
            new_pool(POOL_FRAME, pool_pages),
            stats["counters"],
            nr_ios=nr_ios,
            start=start,
        )
        self.front.front["grant_mode"] = grant_mode
        self.front.ios["frame"] = self.buffer_frame + np.arange(nr_ios) * frames_per_io
        memory = self.store.memory
        self.back = new_blkback(
            self.ring_page,
            self._empty.copy(),
            self.accessed,
            self.host["backend"][0, GUEST : GUEST + 1],
            remote_domid=GUEST,
            nr_sectors=self.store.nr_sectors,
            store_address=0 if memory is None else address_of(memory),
            persistent=keeps,
            max_persistent_grants=cap,
            gather_max=gather_max,
            read_only=read_only,
            bounce_frame=BOUNCE_FRAME if self.copies else None,
        )
        none = cast(Any, None)
        self._hands = RingThread(self.back, self.store, none, none, none, none, -1, none, none)
        self.cursor = np.zeros(1, worker.CURSOR)
        self.spin = new_spin(adaptive=False)
        self.driver = Driver(self.front, cast(Any, _Channel(self)), self.spin)
        self.hypercalls: list[tuple[str, int]] = []  # "map", "unmap" or "copy", how many operations
        self.breaks = 0  # times the backend said BROKEN

    def _boot(self, dom0_cpus: int, flush_policy: str) -> None:
        self.accessed = np.zeros(MAPTRACK_HANDLES_MAX * ACCESSED_WORDS, np.uint64)
        self.host["dirty"][0, :dom0_cpus] = 1
        self.host["running"][0, 0] = 1
        machine = HostMemory(self.host, self.accessed)
        dom0 = DomainMemory(self.dom0_ram, pages(1), pages(2))
        self.hypervisor = build_hypervisor(
            Arena(), machine, dom0, nr_cpus=dom0_cpus, policy=flush_policy
        )
        guest = DomainMemory(self.ram, self.grant_frames, pages(2))
        build_domain(self.hypervisor, machine, GUEST, guest)

    # --- the guest --------------------------------------------------------------------------

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
        front, driver = self.front, self.driver
        args = (*driver.event_args, driver.spin)
        driver.run(lambda: int(finish_queued(front, *args)), lambda: None, ())
        done = front.done[: int(front.front["done"][0])].tolist()
        front.front["done"] = 0
        return done

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
        set_pending(*self.back_events, PORT)

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

    def serve(self) -> None:
        """If it has an event, the backend works until it sleeps, or says the ring is broken."""
        if not clear_pending(self.back_events[0], PORT):
            return
        args = (*self.front_events, PORT, self.spin, 1000, no_gate(), -1)
        while (effect := worker.work(self.back, self.cursor, *args)) != worker.WAIT:
            if effect == worker.BROKEN:
                self.breaks += 1
                return
            if effect == worker.MAP:
                self.map_pages()
            elif effect == worker.UNMAP:
                self.unmap_pages()
            elif effect == worker.COPY:
                self.copy_pages()
            elif effect == worker.IO:
                self._hands._store_io()

    def batch(self) -> Iterator[str]:
        """One batch of the backend, phase by phase: the name of each once it is done."""
        back = self.back
        assert not self.copies
        phases.gather(back)
        yield "gather"
        if back.back["map_ops"][0]:
            self.map_pages()
            phases.finish_map(back)
            yield "map"
        phases.execute(back)
        yield "execute"
        if phases.release(back):
            yield "release"
            self.unmap_pages()
            assert phases.finish_unmap(back)
        yield "unmap"
        phases.respond(back)
        yield "respond"
        phases.push(back)
        yield "push"

    def map_pages(self) -> None:
        """The map hypercall that the backend asks for, and what it granted mapped."""
        ops = self.back.map_ops[: int(self.back.back["map_ops"][0])]
        self._hypercall("map", abi.GNTTABOP_MAP_GRANT_REF, ops)
        granted = ops[ops["status"] == abi.GNTST_OKAY]
        self.back.page_table[self._slots_of(granted)] = (
            address_of(self.ram) + granted["dev_bus_addr"]
        )

    def unmap_pages(self) -> None:
        """Empty the slots of the backend's unmap operations, then make the hypercall."""
        ops = self.back.unmap_ops[: int(self.back.back["unmap_ops"][0])]
        slots = self._slots_of(ops)
        self.back.page_table[slots] = self._empty[slots]
        self._hypercall("unmap", abi.GNTTABOP_UNMAP_GRANT_REF, ops)

    def copy_pages(self) -> None:
        """The copy hypercall that the backend asks for."""
        ops = self.back.copy_ops[: int(self.back.back["copy_ops"][0])]
        self._hypercall("copy", abi.GNTTABOP_COPY, ops)

    def disconnect(self) -> int:
        """Unmap all that is kept, and end the pool's grants; how many could not be ended."""
        while phases.release_kept(self.back):
            self.unmap_pages()
            assert phases.finish_unmap(self.back)
        return end_every_access(self.front)

    def _slots_of(self, ops: np.ndarray) -> np.ndarray:
        return (ops["host_addr"] - self.back.back["balloon"]) // abi.XEN_PAGE_SIZE

    def _hypercall(self, kind: str, cmd: int, ops: np.ndarray) -> None:
        self.hypercalls.append((kind, len(ops)))
        payload = bytearray(ops.tobytes())
        number = abi.HYPERVISOR_GRANT_TABLE_OP
        assert self.hypervisor.hypercall(abi.DOMID_0, 0, number, cmd, payload, False) == 0
        ops[:] = np.frombuffer(payload, ops.dtype)

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
        free = int(back.back["free_slots"][0])
        assert free + self.kept == len(back.page_table)
        assert len(set(back.slots[:free].tolist())) == free
        assert np.count_nonzero(back.page_table != self._empty) == self.kept
        assert dom0 is not None and dom0.maptrack.list["used"][0] == self.kept
        assert self.counts()["grants_mapped"] == self.kept
        assert (self.hole == 0xA5).all(), "an empty slot was written to"


def pages(count: int) -> np.ndarray:
    """`count` zeroed pages."""
    return np.zeros(count * abi.XEN_PAGE_SIZE, np.uint8)
