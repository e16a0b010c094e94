"""The load: which I/O comes next, and that no wrong byte goes unseen."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from common.arena import Arena
from common.atomics import load_acquire
from common.effects import WAIT
from common.ring import REQ
from frontend.load import Load, LoadPlan, new_load
from frontend.pattern import UNKNOWN
from tests.frontend.answering import DISCARD, FLUSH, Answering
from tests.pair import EOPNOTSUPP, ERROR, READ, WRITE, CallbackStore, Pair

PLAN = LoadPlan(
    rw="randrw",
    bs=4096,
    iodepth=4,
    read_percent=50,
    ios=200,
    runtime_s=None,
    seed=1,
    verify=True,
)
NR_BLOCKS = 64  # of 4 KiB on a pair's disk
DISK = 1


def plan(**changes: object) -> LoadPlan:
    return replace(PLAN, **changes)  # type: ignore[arg-type]


class Watched(Pair):
    """A pair that remembers each request, and which sectors were in flight together."""

    def __init__(self, mode: str = "persistent", **options: object) -> None:
        super().__init__(mode, **options)  # type: ignore[arg-type]
        self.requests: list[tuple[int, int]] = []  # operation, sector
        self.in_flight: list[list[int]] = []  # one list each time the guest sleeps
        self.versions = np.zeros(self.store.nr_sectors, np.uint32)

    def serve(self) -> None:
        sectors: list[int] = []
        for at in range(int(self.back.half["cons"][0]), int(load_acquire(self.back.words, REQ))):
            slot = self.slots[at % 32]
            start, segments = int(slot["sector_number"]), slot["seg"][: slot["nr_segments"]]
            self.requests.append((int(slot["operation"]), start))
            nr_sectors = len(segments) + int(segments["last_sect"].sum())
            sectors += range(start, start + nr_sectors)
        self.in_flight.append(sectors)
        super().serve()

    def job(self, plan: LoadPlan, now_ns: int = 0, disk: int = DISK) -> Load:
        return new_load(Arena(), plan, self.front, self.versions, self.latency, disk, now_ns)

    def load(self, plan: LoadPlan, disk: int = DISK) -> None:
        self.finish(self.job(plan, disk=disk))

    def finish(self, job: Load) -> None:
        self.driver.run_one(0, job, lambda: None)
        self.check()


def sequence(plan: LoadPlan, disk: int = DISK) -> list[tuple[int, int]]:
    pair = Watched()
    pair.load(plan, disk)
    return pair.requests


# --- what comes next --------------------------------------------------------------------------


@pytest.mark.parametrize("iodepth", [1, 4, 32])
def test_a_seed_fixes_the_whole_sequence(iodepth: int) -> None:
    assert sequence(plan(iodepth=iodepth)) == sequence(plan(iodepth=iodepth))


def test_another_seed_or_another_disk_is_another_sequence() -> None:
    one, seed, disk = sequence(PLAN), sequence(plan(seed=2)), sequence(PLAN, disk=2)
    assert one != seed and disk not in (one, seed)


@pytest.mark.parametrize("seed", [0, 1, (1 << 32) - 1])
def test_every_block_is_chosen_and_none_much_more_often(seed: int) -> None:
    sectors = [sector // 8 for _, sector in sequence(plan(seed=seed, ios=6400))]
    counts = np.bincount(sectors, minlength=NR_BLOCKS)
    assert len(counts) == NR_BLOCKS
    assert counts.min() > 60 and counts.max() < 150


@pytest.mark.parametrize(
    ("rw", "percent", "low", "high"),
    [
        ("randread", 50, 200, 200),
        ("read", 0, 200, 200),
        ("randwrite", 50, 0, 0),
        ("write", 100, 0, 0),
        ("randrw", 100, 200, 200),
        ("randrw", 0, 0, 0),
        ("randrw", 70, 120, 160),
        ("rw", 30, 40, 80),
    ],
)
def test_reads_and_writes_are_mixed_as_asked(rw: str, percent: int, low: int, high: int) -> None:
    operations = [operation for operation, _ in sequence(plan(rw=rw, read_percent=percent))]
    assert {READ, WRITE} >= set(operations)
    assert low <= operations.count(READ) <= high


@pytest.mark.parametrize("rw", ["read", "write", "rw"])
def test_a_sequential_load_goes_round_the_disk(rw: str) -> None:
    blocks = [sector // 8 for _, sector in sequence(plan(rw=rw))]
    assert blocks == [at % NR_BLOCKS for at in range(200)]


@pytest.mark.parametrize(("bs", "iodepth"), [(512, 32), (4096, 32), (45056, 5), (65536, 4)])
def test_no_two_ios_in_flight_touch_the_same_sector(bs: int, iodepth: int) -> None:
    """At a depth near the number of blocks, and beyond it."""
    pair = Watched(frames_per_io=16)
    pair.load(plan(bs=bs, iodepth=iodepth, ios=300))
    assert all(len(set(sectors)) == len(sectors) for sectors in pair.in_flight)
    assert max(len(sectors) for sectors in pair.in_flight) > bs // 512
    assert pair.counts()["verify_errors"] == pair.counts()["io_errors"] == 0


# --- how much ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["persistent", "non-persistent", "backend-without-persistent"])
@pytest.mark.parametrize(("bs", "requests"), [(512, 1), (4096, 1), (45056, 1), (131072, 3)])
def test_what_a_load_counts(mode: str, bs: int, requests: int) -> None:
    pair = Watched(mode, frames_per_io=32)
    with pair.counting() as cost:
        pair.load(plan(bs=bs, iodepth=2, ios=50))
    assert (cost["ios"], cost["requests"]) == (50, 50 * requests)
    assert cost["segments"] == 50 * max(1, bs // 4096)
    assert cost["bytes_read"] + cost["bytes_written"] == 50 * bs
    reads = sum(operation == READ for operation, _ in pair.requests)
    assert cost["bytes_read"] == reads // requests * bs
    assert pair.latency.sum() == 50
    assert (cost["io_errors"], cost["verify_errors"]) == (0, 0)


def test_a_stopped_load_starts_nothing_more_and_finishes_what_it_began() -> None:
    pair = Watched()
    job = pair.job(PLAN)
    pair.front_job = job
    while pair.front_run(0) != WAIT:  # all of the depth is out
        pass
    job.load["stop"] = 1
    pair.finish(job)
    assert pair.counts()["ios"] == PLAN.iodepth


def test_a_load_whose_time_is_over_does_nothing() -> None:
    pair = Watched()
    pair.finish(pair.job(plan(ios=None, runtime_s=0.0), now_ns=1))
    assert pair.counts()["ios"] == 0


def test_every_io_is_idle_again_and_no_block_is_busy() -> None:
    pair = Watched()
    job = pair.job(plan(iodepth=7))
    pair.finish(job)
    assert sorted(job.idle.tolist()) == list(range(7))
    assert job.load["idle_ios"][0] == 7 and not job.busy.any()


# --- verification -----------------------------------------------------------------------------


def corrupted(blocks: np.ndarray, _old: np.ndarray) -> None:
    blocks[3, 1000] ^= 1


def stale(blocks: np.ndarray, old: np.ndarray) -> None:
    blocks[3] = old[3]


def misplaced(blocks: np.ndarray, _old: np.ndarray) -> None:
    blocks[3] = blocks[4]


def torn(blocks: np.ndarray, old: np.ndarray) -> None:
    blocks[3, 768:] = old[3, 768:]


def lost(blocks: np.ndarray, _old: np.ndarray) -> None:
    blocks[3] = 0


def untouched(blocks: np.ndarray, _old: np.ndarray) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "errors"),
    [(untouched, 0), (corrupted, 1), (stale, 1), (misplaced, 1), (torn, 1), (lost, 1)],
)
@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_damage_on_the_disk_is_seen(
    mode: str, damage: Callable[[np.ndarray, np.ndarray], None], errors: int
) -> None:
    pair = Watched(mode)
    assert pair.store.memory is not None
    blocks = pair.store.memory.reshape(NR_BLOCKS, 4096)
    once = plan(rw="write", ios=NR_BLOCKS)
    pair.load(once)
    old = blocks.copy()
    pair.load(once)
    damage(blocks, old)
    pair.load(plan(rw="read", ios=NR_BLOCKS))
    assert pair.counts()["verify_errors"] == errors


def test_an_untouched_disk_reads_as_zeros_and_anything_else_is_an_error() -> None:
    pair = Watched()
    assert pair.store.memory is not None
    pair.load(plan(rw="read", ios=NR_BLOCKS))
    assert pair.counts()["verify_errors"] == 0
    pair.store.memory[5 * 4096] = 1
    pair.load(plan(rw="read", ios=NR_BLOCKS))
    assert pair.counts()["verify_errors"] == 1


def test_another_guests_data_is_an_error() -> None:
    pair = Watched()
    pair.load(plan(rw="write", ios=NR_BLOCKS), disk=2)
    pair.load(plan(rw="read", ios=NR_BLOCKS), disk=1)
    assert pair.counts()["verify_errors"] == NR_BLOCKS


def test_without_verify_nothing_is_checked_and_what_was_written_is_unknown() -> None:
    pair = Watched()
    pair.load(plan(rw="write", ios=10, verify=False))
    assert (pair.versions[:80] == UNKNOWN).all() and not pair.versions[80:].any()
    pair.load(plan(rw="read", ios=NR_BLOCKS))
    assert pair.counts()["verify_errors"] == 0


class Unwritable(CallbackStore):
    """Takes half of what is written to its first block, then fails."""

    def write(self, offset: int, data: np.ndarray) -> None:
        if offset == 0:
            super().write(offset, data[:512])
            raise OSError(5, "half of it")
        super().write(offset, data)


def test_a_failed_write_is_an_error_and_what_it_left_is_unknown() -> None:
    pair = Watched(store=Unwritable(512))
    pair.load(plan(rw="write", ios=NR_BLOCKS))
    counts = pair.counts()
    assert (counts["io_errors"], counts["ios"]) == (1, NR_BLOCKS)
    assert counts["bytes_written"] == (NR_BLOCKS - 1) * 4096
    assert (pair.versions[:8] == UNKNOWN).all() and (pair.versions[8:] == 1).all()
    pair.load(plan(rw="read", ios=NR_BLOCKS))
    assert pair.counts()["verify_errors"] == 0


# --- flushes and discards ---------------------------------------------------------------------


@pytest.mark.parametrize("fsync", [1, 8, 64])
@pytest.mark.parametrize("iodepth", [1, 4, 32])
def test_a_flush_follows_every_so_many_writes(fsync: int, iodepth: int) -> None:
    pair = Answering()
    with pair.counting() as cost:
        run_on(pair, plan(rw="randrw", fsync=fsync, iodepth=iodepth, ios=200))
    operations = pair.operations()
    writes = operations.count(WRITE)
    assert operations.count(FLUSH) == cost["flush_requests"] == writes // fsync > 0
    assert cost["ios"] == pair.latency.sum() == 200 == len(operations) - writes // fsync
    assert (cost["io_errors"], cost["verify_errors"]) == (0, 0)
    seen = 0
    for operation in operations:
        seen += operation == WRITE
        if operation == FLUSH:
            assert seen == fsync
            seen = 0


def test_at_depth_1_a_flush_follows_what_it_is_to_cover() -> None:
    pair = Answering()
    run_on(pair, plan(rw="write", fsync=3, iodepth=1, ios=9))
    assert pair.operations() == ([WRITE] * 3 + [FLUSH]) * 3


def test_no_flush_is_on_its_way_twice_and_none_is_passed() -> None:
    """Nothing goes on while a second flush waits for the first, which the backend keeps."""
    pair = Answering()
    pair.slow.add(FLUSH)
    run_on(pair, plan(rw="write", fsync=2, iodepth=8, ios=100))
    operations = pair.operations()
    assert operations == ([WRITE] * 2 + [FLUSH]) * 50
    assert pair.counts()["ios"] == 100 and pair.front.front["outstanding"][0] == 0


def test_the_choices_are_the_same_with_flushes_as_without() -> None:
    def places(fsync: int) -> list[tuple[int, int]]:
        pair = Answering()
        run_on(pair, plan(iodepth=1, fsync=fsync))
        return [(asked.operation, asked.sector) for asked in pair.asked if asked[0] != FLUSH]

    assert places(0) == places(7) == places(1)


@pytest.mark.parametrize("status", [ERROR, EOPNOTSUPP])
def test_a_flush_that_fails_is_an_io_error_and_one_that_is_not_known_is_none(status: int) -> None:
    pair = Answering()
    pair.statuses[FLUSH] = status
    run_on(pair, plan(rw="write", fsync=10, ios=100))
    failed = 10 if status == ERROR else 0
    counts = pair.counts()
    assert (counts["ios"], counts["io_errors"]) == (100, failed)
    assert pair.operations().count(FLUSH) == counts["flush_requests"] == (failed or 1)
    assert pair.front.front["unflushed"][0] == 10 - failed


@pytest.mark.parametrize("rw", ["trim", "randtrim"])
def test_a_trim_discards_each_block_and_nothing_is_known_of_it(rw: str) -> None:
    pair = Answering()
    versions = run_on(pair, plan(rw="write", ios=NR_BLOCKS))
    run_on(pair, plan(rw=rw, ios=10, bs=8192, verify=True), versions)
    discards = [asked for asked in pair.asked if asked.operation == DISCARD]
    assert len(discards) == 10 == pair.counts()["discard_requests"]
    assert {asked.nr_sectors for asked in discards} == {16}
    if rw == "trim":
        assert [asked.sector for asked in discards] == [16 * at for at in range(10)]
    assert pair.counts()["bytes_discarded"] == 10 * 8192
    unknown = {sector for asked in discards for sector in range(asked.sector, asked.sector + 16)}
    assert set(np.flatnonzero(versions == UNKNOWN).tolist()) == unknown
    assert pair.store.memory is not None
    pair.store.memory.reshape(-1, 512)[list(unknown)] = 99
    run_on(pair, plan(rw="read", ios=NR_BLOCKS), versions)
    assert pair.counts()["verify_errors"] == pair.counts()["io_errors"] == 0


def test_trims_that_the_backend_does_not_know_are_errors_and_only_the_first_is_sent() -> None:
    pair = Answering()
    pair.statuses[DISCARD] = EOPNOTSUPP
    run_on(pair, plan(rw="randtrim", iodepth=1, ios=20))
    counts = pair.counts()
    assert (counts["ios"], counts["io_errors"], counts["bytes_discarded"]) == (20, 20, 0)
    assert len(pair.asked) == 1


def run_on(pair: Answering, plan: LoadPlan, versions: np.ndarray | None = None) -> np.ndarray:
    """Run a load on a backend by script; what it knows of the disk then."""
    if versions is None:
        versions = np.zeros(pair.store.nr_sectors, np.uint32)
    job = new_load(Arena(), plan, pair.front, versions, pair.latency, DISK, 0)
    pair.driver.run_one(0, job, lambda: None)
    return versions
