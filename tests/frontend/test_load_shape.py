"""A load with a shape: sizes, regions, distributions, rates, pauses, ramps and traces."""

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from common.atomics import load_acquire
from common.histogram import BUCKETS
from common.ring import REQ
from common.trace import TRACE
from frontend.load import Load, LoadPlan, new_load, region_of
from frontend.pattern import UNKNOWN
from tests.frontend.answering import DISCARD, FLUSH, Answering
from tests.frontend.test_load import DISK, NR_BLOCKS, plan
from tests.pair import READ, WRITE, Pair, pairs

SECTORS = NR_BLOCKS * 8
ALL_4K = (((4096, 100.0),),) * 2
MIXED = (((512, 25.0), (4096, 75.0)), ((2048, 50.0), (8192, 50.0)))

Request = tuple[int, int, int]  # operation, sector, sectors


class Seen(Pair):
    """A pair that remembers each request, and which sectors were in flight together."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.requests: list[Request] = []
        self.in_flight: list[list[tuple[bool, int]]] = []  # written?, sector
        self.versions = np.zeros(self.store.nr_sectors, np.uint32)

    def serve(self) -> None:
        together: list[tuple[bool, int]] = []
        for at in range(int(self.back.half["cons"][0]), int(load_acquire(self.back.words, REQ))):
            slot = self.slots[at % 32]
            start, segments = int(slot["sector_number"]), slot["seg"][: slot["nr_segments"]]
            sectors = len(segments) + int(segments["last_sect"].sum())
            op = int(slot["operation"])
            self.requests.append((op, start, sectors))
            together += [(op == WRITE, at) for at in range(start, start + sectors)]
        self.in_flight.append(together)
        super().serve()

    def job(self, plan: LoadPlan, **options: Any) -> Load:
        given = plan, self.front, self.versions, self.latency, DISK, time.monotonic_ns()
        return new_load(Arena(), *given, **options)

    def load(self, plan: LoadPlan, **options: Any) -> list[Request]:
        """Run it; what was asked for. Nothing is wrong, or left busy."""
        job = self.job(plan, **options)
        self.driver.run_one(self.number, job, lambda: None)
        self.check()
        counts = self.counts()
        assert (counts["io_errors"], counts["verify_errors"]) == (0, 0)
        assert job.load["idle_ios"][0] == plan.iodepth and not job.busy.any()
        assert not plan.verify or not any(map(overlap, self.in_flight))
        return self.requests


def overlap(in_flight: list[tuple[bool, int]]) -> bool:
    """Is a sector that is written on its way twice?"""
    often = Counter(sector for _, sector in in_flight)
    return any(written and often[sector] > 1 for written, sector in in_flight)


def shaped(**changes: Any) -> LoadPlan:
    return plan(**{"rw": "randrw", "ios": 400, "bssplit": ALL_4K, **changes})


# --- sizes and regions ------------------------------------------------------------------------


@pytest.mark.parametrize("rw", ["randrw", "rw"])
@pytest.mark.parametrize("iodepth", [1, 16])
def test_sizes_are_mixed_as_asked_each_way(rw: str, iodepth: int) -> None:
    pair = Seen()
    found = pair.load(shaped(rw=rw, bs=8192, bssplit=MIXED, ios=2000, iodepth=iodepth))
    counts = Counter((operation, 512 * sectors) for operation, _, sectors in found)
    assert set(counts) == {(READ, 512), (READ, 4096), (WRITE, 2048), (WRITE, 8192)}
    reads, writes = (sum(n for (op, _), n in counts.items() if op == which) for which in (0, 1))
    assert counts[READ, 512] / reads == pytest.approx(0.25, abs=0.05)
    assert counts[WRITE, 2048] / writes == pytest.approx(0.5, abs=0.06)
    assert reads / 2000 == pytest.approx(0.5, abs=0.05)


def test_places_are_multiples_of_the_smallest_size_and_lie_on_the_disk() -> None:
    split = (((4096, 50.0), (45056, 50.0)),) * 2
    found = Seen(frames_per_io=16).load(shaped(bs=45056, bssplit=split, ios=600))
    assert all(sector % 8 == 0 and sector + sectors <= SECTORS for _, sector, sectors in found)
    assert {sector for _, sector, n in found if n == 8} > {0, SECTORS - 8}
    assert max(sector + n for _, sector, n in found if n == 88) == SECTORS


def test_a_sequential_load_of_sizes_leaves_no_hole_but_at_the_end() -> None:
    split = (((4096, 60.0), (12288, 40.0)),) * 2
    found = Seen().load(shaped(rw="write", bs=12288, bssplit=split, ios=200, iodepth=3))
    at = 0
    for _, sector, sectors in found:
        at = 0 if at + sectors > SECTORS else at
        assert sector == at
        at += sectors


@pytest.mark.parametrize("split", [(), MIXED])
@pytest.mark.parametrize("rw", ["randrw", "rw"])
def test_a_region_is_all_that_is_touched(rw: str, split: Any) -> None:
    bs = 8192 if split else 4096
    found = Seen().load(shaped(rw=rw, bs=bs, bssplit=split, offset=65536, size=32768, ios=300))
    assert all(sector >= 128 and sector + n <= 192 for _, sector, n in found)
    assert {128, 184} <= {sector - sector % 8 for _, sector, _ in found}


def test_a_region_may_be_a_share_of_the_disk() -> None:
    half = plan(offset="50%", size="25%")
    assert region_of(half, SECTORS) == (256, 128)
    assert region_of(plan(offset="33.3%"), SECTORS) == (168, SECTORS - 168)  # aligned
    assert region_of(plan(size="150%"), SECTORS) == (0, SECTORS)


@pytest.mark.parametrize(
    "wrong", [{"offset": SECTORS * 512}, {"offset": 4096, "size": SECTORS * 512}, {"size": 512}]
)
def test_a_region_that_is_not_on_the_disk_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no region of a disk of 262144 bytes"):
        Seen().job(plan(**wrong))


@pytest.mark.parametrize(("loops", "shape"), [(1, ()), (3, ()), (1, ALL_4K), (3, ALL_4K)])
def test_a_load_ends_when_it_has_done_its_region_so_many_times(loops: int, shape: Any) -> None:
    each = plan(rw="write", ios=None, loops=loops, bssplit=shape, size=32768, offset=4096)
    found = Seen().load(each)
    assert [sector for _, sector, _ in found] == [8 + 8 * at for at in range(8)] * loops


def test_of_mixed_sizes_it_ends_with_the_bytes_of_its_region() -> None:
    pair = Seen()
    found = pair.load(shaped(bs=8192, bssplit=MIXED, ios=None, loops=2))
    done = sum(sectors for _, _, sectors in found)
    assert 2 * SECTORS <= done < 2 * SECTORS + 16


# --- which blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", [("zipf", 1.2), ("zipf", 0.5), ("pareto", 0.2)])
def test_some_blocks_are_chosen_more_often_and_all_are_reached(
    distribution: tuple[str, float],
) -> None:
    name, skew = distribution
    pair = Seen()
    found = pair.load(shaped(rw="randread", distribution=name, skew=skew, ios=12000, bssplit=()))
    counts = np.bincount([sector // 8 for _, sector, _ in found], minlength=NR_BLOCKS)
    ranked = np.sort(counts)[::-1] / 12000
    ranks = np.arange(1, NR_BLOCKS + 1)
    if name == "zipf":
        wanted = ranks**-skew / (ranks**-skew).sum()
    else:
        power = np.log(1 - skew) / np.log(skew)
        wanted = np.diff((np.arange(NR_BLOCKS + 1) / NR_BLOCKS) ** power)
    assert len(counts) == NR_BLOCKS
    assert ranked[:8] == pytest.approx(wanted[:8], rel=0.15)
    places = np.argsort(counts)[::-1][:3]
    assert (np.abs(np.diff(places)) > 4).all(), "the hot blocks lie apart"


def test_a_shape_that_changes_nothing_is_the_same_load() -> None:
    """A split into one size: every block, no more often than by a plain load."""
    found = Seen().load(shaped(ios=6400))
    counts = np.bincount([sector // 8 for _, sector, _ in found], minlength=NR_BLOCKS)
    assert counts.min() > 60 and counts.max() < 150


def test_reads_share_a_block_and_who_verifies_nothing_shares_it_with_writes() -> None:
    hot = {"distribution": "zipf", "skew": 3.0, "iodepth": 16, "ios": 500}
    for each in (shaped(rw="randread", **hot), shaped(verify=False, **hot)):
        pair = Seen()
        pair.load(each)
        together = [Counter(at for _, at in some) for some in pair.in_flight if some]
        assert max(max(often.values()) for often in together) > 4


@pytest.mark.parametrize("iodepth", [1, 4, 32])
def test_a_seed_fixes_the_sequence(iodepth: int) -> None:
    def sequence(seed: int) -> list[Request]:
        split = {"bs": 8192, "bssplit": MIXED, "distribution": "zipf", "skew": 1.1}
        return Seen().load(shaped(iodepth=iodepth, seed=seed, **split))

    assert sequence(1) == sequence(1) != sequence(2)


def test_where_all_blocks_are_busy_it_waits_for_one() -> None:
    """As many I/Os as blocks, the largest as large as the region."""
    split = (((4096, 50.0), (32768, 50.0)),) * 2
    Seen(frames_per_io=8).load(shaped(bs=32768, bssplit=split, size=32768, iodepth=16, ios=200))


# --- when -------------------------------------------------------------------------------------


def took(pair: Pair, run: Any) -> tuple[float, float]:
    """Seconds, and those of CPU."""
    began, computed = time.monotonic(), time.process_time()
    run()
    return time.monotonic() - began, time.process_time() - computed


def warm() -> Seen:
    """One that has compiled everything."""
    pair = Seen()
    pair.load(shaped(ios=10))
    pair.requests.clear()
    return pair


def test_a_rate_is_kept_and_nobody_spins_for_it() -> None:
    pair = warm()
    each = shaped(rw="randread", rate_iops=(1000, 0), ios=301)
    seconds, computed = took(pair, lambda: pair.load(each))
    assert 0.3 <= seconds < 0.45
    assert computed < 0.7 * seconds
    assert len(pair.requests) == 301


def test_what_is_late_is_caught_up() -> None:
    """The nth I/O is due after n periods, and not one after the one before it."""
    pair = warm()
    job = pair.job(shaped(rw="randread", rate_iops=(1000, 0), ios=200))
    time.sleep(0.15)
    seconds, _ = took(pair, lambda: pair.driver.run_one(0, job, lambda: None))
    assert 0.04 <= seconds < 0.1


def test_each_way_has_a_rate_of_its_own_whatever_the_mix() -> None:
    pair = warm()
    pair.load(shaped(read_percent=90, rate_iops=(500, 1000), ios=None, runtime_s=0.4))
    operations = Counter(operation for operation, _, _ in pair.requests)
    assert operations[READ] == pytest.approx(200, abs=25)
    assert operations[WRITE] == pytest.approx(400, abs=45)


def test_a_paced_load_ends_in_time() -> None:
    pair = warm()
    each = shaped(rw="randread", rate_iops=(1, 0), ios=None, runtime_s=0.1)
    seconds, _ = took(pair, lambda: pair.load(each))
    assert 0.1 <= seconds < 0.2 and len(pair.requests) == 1


def test_a_load_that_waits_for_its_time_can_be_stopped() -> None:
    pair = warm()
    job = pair.job(shaped(startdelay_s=0.05, ios=None, runtime_s=None))
    calls: list[float] = []

    def keep_going() -> None:
        calls.append(time.monotonic())
        job.load["stop"] = 1

    pair.driver.run_one(0, job, keep_going)
    assert not pair.requests


def test_it_thinks_after_so_many_and_has_no_more_in_flight() -> None:
    pair = warm()
    each = shaped(ios=40, iodepth=8, thinktime_us=5000, thinktime_blocks=4)
    seconds, _ = took(pair, lambda: pair.load(each))
    assert 0.045 <= seconds < 0.15
    assert max(map(len, pair.in_flight[2:])) <= 4 * 8


def test_it_begins_after_its_delay_which_its_time_does_not_count() -> None:
    pair = warm()
    seconds, _ = took(pair, lambda: pair.load(shaped(ios=None, runtime_s=0.05, startdelay_s=0.1)))
    assert 0.15 <= seconds < 0.25


def test_what_is_done_in_the_ramp_is_not_taken_off_what_is_left() -> None:
    pair = warm()
    each = shaped(ios=50, ramp_s=0.1, rate_iops=(500, 500))
    seconds, _ = took(pair, lambda: pair.load(each))
    assert 0.14 <= seconds < 0.25
    assert len(pair.requests) == pytest.approx(150, abs=25)


def test_disks_of_one_guest_keep_each_its_rate() -> None:
    found = pairs(2)
    for pair in found:
        pair.serve()
    jobs, latencies = {}, []
    for pair, rate in zip(found, (400, 800), strict=True):
        versions = np.zeros(pair.store.nr_sectors, np.uint32)
        each = shaped(rw="randread", rate_iops=(rate, 0), ios=None, runtime_s=0.25)
        given = each, pair.front, versions, pair.latency, DISK, time.monotonic_ns()
        jobs[pair.number] = new_load(Arena(), *given)
        latencies.append(pair.latency)
    assert not found[0].driver.run(jobs, lambda: None)
    done = [int(latency.sum()) for latency in latencies]
    assert done == [pytest.approx(100, abs=6), pytest.approx(200, abs=10)]


# --- traces -----------------------------------------------------------------------------------


def trace(*entries: tuple[int, int, int, int]) -> np.ndarray:
    """at_ns, sector, sectors, operation."""
    return np.array(list(entries), TRACE)


def test_a_trace_is_done_in_its_order_and_what_overlaps_waits() -> None:
    entries = [(0, 8 * (at % 3), 8, WRITE if at % 2 else READ) for at in range(30)]
    pair = Seen()
    found = pair.load(shaped(replay="at once", ios=None, iodepth=16), trace=trace(*entries))
    assert found == [(operation, sector, n) for _, sector, n, operation in entries]
    assert pair.counts()["ios"] == 30


def test_a_trace_has_flushes_and_discards_and_its_places_are_the_region_s() -> None:
    entries = [(0, 0, 16, WRITE), (0, 0, 0, FLUSH), (0, 16, 8, DISCARD), (0, 0, 3, READ)]
    pair = Answering()
    versions = np.zeros(pair.store.nr_sectors, np.uint32)
    each = shaped(replay="at once", ios=None, bs=8192, offset=4096)
    given = each, pair.front, versions, pair.latency, DISK, 0
    pair.driver.run_one(0, new_load(Arena(), *given, trace=trace(*entries)), lambda: None)
    assert sorted((asked.operation, asked.sector) for asked in pair.asked) == [
        (READ, 8), (WRITE, 8), (FLUSH, 0), (DISCARD, 24),
    ]  # fmt: skip
    assert pair.counts()["verify_errors"] == 0 and (versions[24:32] == UNKNOWN).all()
    by_operation = pair.latency.reshape(-1, BUCKETS).sum(axis=1)
    assert by_operation.tolist() == [1, 1, 1]


@pytest.mark.parametrize("last", [(0, 0, 0, FLUSH), (0, 8, 8, READ)])
def test_a_trace_is_done_so_many_times(last: tuple[int, int, int, int]) -> None:
    pair = Answering()
    versions = np.zeros(pair.store.nr_sectors, np.uint32)
    given = pair.front, versions, pair.latency, DISK, 0
    each = shaped(replay="timed", ios=None, loops=3, iodepth=2)
    entries = trace((0, 0, 8, WRITE), last)
    pair.driver.run_one(0, new_load(Arena(), each, *given, trace=entries), lambda: None)
    assert len(pair.asked) == 6


def test_a_trace_takes_its_time_or_not() -> None:
    pair = warm()
    entries = trace(*((at * 20_000_000, 8 * at, 8, READ) for at in range(6)))
    timed, _ = took(pair, lambda: pair.load(shaped(replay="timed", ios=None), trace=entries))
    assert 0.1 <= timed < 0.2
    at_once, _ = took(pair, lambda: pair.load(shaped(replay="at once", ios=None), trace=entries))
    assert at_once < 0.05


@pytest.mark.parametrize("entries", [[(0, SECTORS - 7, 8, READ)], []])
def test_a_trace_that_does_not_fit_the_disk_is_refused(entries: list[Any]) -> None:
    with pytest.raises(ValueError, match="the trace needs"):
        Seen().job(shaped(replay="timed", ios=None), trace=trace(*entries))


# --- latencies --------------------------------------------------------------------------------


def test_latencies_are_counted_by_what_was_done() -> None:
    pair = Seen()
    found = pair.load(shaped(read_percent=70, ios=300))
    by_operation = pair.latency.reshape(-1, BUCKETS).sum(axis=1).tolist()
    reads = sum(operation == abi.BLKIF_OP_READ for operation, _, _ in found)
    assert by_operation == [reads, 300 - reads, 0]
