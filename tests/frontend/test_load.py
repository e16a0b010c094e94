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
from tests.pair import READ, WRITE, CallbackStore, Pair

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
