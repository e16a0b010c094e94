"""Any I/Os, in every mode, batching and cap, do to the disk what they do to a bytearray; and what
they cost in grants, maps, unmaps and flushes is exact."""

from collections import Counter
from typing import NamedTuple

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.stores import RamStore
from tests.pair import GRANT_COPY, MODES, OKAY, READ, WRITE, CallbackStore, Pair

NR_SECTORS = 64
SECTORS_MAX = 200  # three requests
POOL_PAGES = 24


class Io(NamedTuple):
    """One I/O; a write's bytes are all `fill`, so that each names its writer."""

    operation: int
    sector: int
    nr_sectors: int
    fill: int


class World(NamedTuple):
    """One way to build a pair."""

    mode: str
    cap: int
    gather_max: int
    start: int
    store: type[RamStore]
    pool_pages: int

    def pair(self) -> Pair:
        return Pair(
            self.mode,
            cap=self.cap,
            gather_max=self.gather_max,
            start=self.start,
            store=self.store(NR_SECTORS + SECTORS_MAX),
            pool_pages=self.pool_pages,
            frames_per_io=25,
            nr_ios=8,
        )


worlds = st.builds(
    World,
    st.sampled_from(sorted(MODES)),
    st.sampled_from([0, 1, 5, 13, 352]),
    st.sampled_from([1, 2, 32]),
    st.sampled_from([0, (1 << 32) - 2, (1 << 32) - 33]),
    st.sampled_from([RamStore, CallbackStore]),
    st.sampled_from([11, POOL_PAGES, 352]),
)
ios = st.builds(
    Io,
    st.sampled_from([READ, WRITE]),
    st.integers(0, NR_SECTORS),
    st.integers(1, 24) | st.sampled_from([1, 8, 88, 89, SECTORS_MAX]),
    st.integers(1, 255),
)
batches = st.lists(st.lists(ios, min_size=1, max_size=8), min_size=1, max_size=4)


def run_together(pair: Pair, batch: list[Io], model: bytearray) -> None:
    """Queue all of `batch`, run it, and check what each read; the ring is served in order."""
    expected = []
    for index, io in enumerate(batch):
        span = slice(io.sector * 512, (io.sector + io.nr_sectors) * 512)
        pair.buffer(index)[:] = io.fill
        if io.operation == WRITE:
            model[span] = bytes([io.fill]) * (io.nr_sectors * 512)
        expected.append(bytes(model[span]))
        pair.queue(index, io.operation, io.sector, io.nr_sectors)
    assert sorted(pair.run()) == list(range(len(batch)))
    for index, io in enumerate(batch):
        assert pair.front.ios["status"][index] == OKAY
        got = pair.buffer(index).tobytes()
        assert got[: io.nr_sectors * 512] == expected[index]
        assert set(got[io.nr_sectors * 512 :]) <= {io.fill}  # nothing beyond the I/O's end


def costs_are_exact(pair: Pair, world: World) -> None:
    """What one end counted, the other's and the hypervisor's counters must bear out."""
    counts = pair.counts()
    assert counts["requests"] == counts["back_requests"]
    assert counts["segments"] == counts["back_segments"]
    assert counts["bad_requests"] == counts["back_io_errors"] == counts["failed_ops"] == 0
    assert counts["hypercalls"] == len(pair.hypercalls)
    assert counts["flush_entries"] == counts["unmap_ops"]
    unmaps = [count for kind, count in pair.hypercalls if kind == "unmap"]
    assert counts["flushes"] == sum(-(-count // 32) for count in unmaps)
    assert counts["ipis"] == counts["flushes"]  # two CPUs, and one of them flushes
    CHECKS[world.mode](counts, world, pair)


def persistent(counts: Counter[str], world: World, pair: Pair) -> None:
    assert counts["map_ops"] == pair.kept + counts["unmap_ops"]
    assert counts["unmap_ops"] == counts["overflow_segments"]
    assert counts["persistent_max"] == pair.kept <= world.cap
    assert counts["grant_end_attempts"] == counts["segments"]
    assert counts["grants_issued"] == counts["grants_ended"] + pair.kept
    if world.cap == 352:
        assert counts["map_ops"] == counts["grants_issued"] <= world.pool_pages
        assert counts["unmap_ops"] == counts["flushes"] == 0


def non_persistent(counts: Counter[str], world: World, pair: Pair) -> None:
    assert counts["grants_issued"] == counts["grants_ended"] == counts["segments"]
    assert counts["bytes_copied_by_guest"] == 0
    maps_each_segment(counts, world)


def without_persistent(counts: Counter[str], world: World, pair: Pair) -> None:
    assert counts["grants_issued"] <= world.pool_pages
    assert counts["grants_ended"] == counts["grant_end_attempts"] == 0
    maps_each_segment(counts, world)


def grant_copy(counts: Counter[str], world: World, pair: Pair) -> None:
    assert counts["grants_issued"] == counts["grants_ended"] == counts["segments"]
    assert counts["copy_ops"] == counts["segments"]
    assert counts["map_ops"] == counts["flushes"] == counts["bytes_copied_by_guest"] == 0
    if world.gather_max == 1:
        assert counts["hypercalls"] == counts["requests"]
    else:
        assert counts["hypercalls"] <= counts["requests"]


def maps_each_segment(counts: Counter[str], world: World) -> None:
    assert counts["map_ops"] == counts["unmap_ops"] == counts["segments"]
    if world.gather_max == 1:
        assert counts["flushes"] == counts["requests"]
        assert counts["hypercalls"] == 2 * counts["requests"]
    else:
        assert counts["hypercalls"] <= 2 * counts["requests"]


CHECKS = {
    "persistent": persistent,
    "non-persistent": non_persistent,
    "backend-without-persistent": without_persistent,
    GRANT_COPY: grant_copy,
}


@settings(max_examples=150, deadline=None, database=None)
@given(worlds, batches)
def test_the_disk_is_a_bytearray_and_the_costs_are_exact(
    world: World, batches: list[list[Io]]
) -> None:
    pair, model = world.pair(), bytearray((NR_SECTORS + SECTORS_MAX) * 512)
    for batch in batches:
        run_together(pair, batch, model)
        pair.check()
        costs_are_exact(pair, world)
    image = np.zeros(len(model), np.uint8)
    pair.store.read(0, image)
    assert image.tobytes() == bytes(model)
    assert pair.disconnect() == 0
    pair.check()
    assert pair.counts()["map_ops"] == pair.counts()["unmap_ops"]


@settings(max_examples=30, deadline=None, database=None)
@given(batches)
def test_every_way_leaves_the_same_disk_and_maps_the_same(batches: list[list[Io]]) -> None:
    """Batching changes hypercalls and flushes, never maps, unmaps, copies or data."""
    images, maps = set(), set()
    for gather_max in (1, 32):
        for mode in ("non-persistent", "backend-without-persistent", GRANT_COPY):
            pair = World(mode, 0, gather_max, 0, RamStore, 352).pair()
            for batch in batches:
                run_together(pair, batch, bytearray(bytes_of(pair)))
            images.add(bytes_of(pair))
            counts = pair.counts()
            if mode == GRANT_COPY:
                maps.add((counts["copy_ops"], counts["copy_ops"]))
            else:
                maps.add((counts["map_ops"], counts["unmap_ops"]))
    assert len(images) == len(maps) == 1


def bytes_of(pair: Pair) -> bytes:
    assert pair.store.memory is not None
    return pair.store.memory.tobytes()
