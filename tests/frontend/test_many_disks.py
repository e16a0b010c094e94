"""Several disks of one guest at once: one thread, one grant table, both ends of each here."""

import time

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from common.event_channel import set_pending
from common.spinning import new_spin
from common.turns import SLICE_NS
from frontend.blkfront import end_every_access
from frontend.blkfront_info import BROKEN_ID, BROKEN_REASONS, NO_ROOM
from frontend.load import Load, LoadPlan, new_load
from frontend.pattern import disk_name
from tests.frontend.whole import check_whole
from tests.pair import MODES, OKAY, READ, WRITE, Pair, pairs

NR_SECTORS = 64 * abi.SECTORS_PER_PAGE
NR_BLOCKS = 64
ENTRIES = 504  # of a grant table of one frame


def plan(rw: str = "randrw", ios: int | None = 200, iodepth: int = 4, pages: int = 1) -> LoadPlan:
    return LoadPlan(rw, pages * abi.XEN_PAGE_SIZE, iodepth, 50, ios, None, 1, True)


class Disks:
    """Disks of guest 1, and what its loads know of each."""

    def __init__(self, count: int, mode: str = "persistent", **options: int) -> None:
        self.pairs = pairs(count, mode, **options)
        self.versions = np.zeros((count, NR_SECTORS), np.uint32)
        self.driver = self.pairs[0].driver

    def job(self, number: int, plan: LoadPlan) -> Load:
        pair, name = self.pairs[number], disk_name(1, number)
        given = self.versions[number], pair.latency, name, 0
        return new_load(Arena(1 << 20), plan, pair.front, *given)

    def run(self, *plans: LoadPlan) -> dict[int, str]:
        """These loads at once, on the first disks."""
        jobs = {number: self.job(number, plan) for number, plan in enumerate(plans)}
        return self.driver.run(jobs, lambda: None)

    def counted(self, name: str) -> list[int]:
        return [int(pair.front.counters[name][0]) for pair in self.pairs]

    def spin(self, limit_ns: int = 0) -> None:
        """From now on the guest and the backends spin, if only for a moment."""
        self.pairs[0].spin[:] = new_spin(adaptive=True)
        self.pairs[0].spin["limit_ns"] = limit_ns

    def check(self, *others: int) -> None:
        for pair in self.pairs:
            pair.check()
        grants = self.pairs[0].front.grants.list[0]
        assert grants["in_flight"] == grants["waiting"] == grants["first"] == 0


@pytest.mark.parametrize("spins", [False, True])
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("mode", MODES)
def test_loads_on_all_disks_at_once_are_verified_and_counted(
    mode: str, count: int, spins: bool
) -> None:
    disks = Disks(count, mode)
    if spins:
        disks.spin()
    plans = [plan(ios=100 * (number + 1), iodepth=1 << number) for number in range(count)]
    assert disks.run(*plans) == {}
    assert disks.counted("ios") == [each.ios for each in plans]
    assert disks.counted("requests") == [each.ios for each in plans]
    assert disks.counted("verify_errors") == disks.counted("io_errors") == [0] * count
    assert [int(pair.latency.sum()) for pair in disks.pairs] == [each.ios for each in plans]
    disks.check()


def test_the_grants_of_all_disks_are_different_ones() -> None:
    disks = Disks(3)
    disks.run(*[plan(iodepth=20)] * 3)
    pools = [pair.front.pool.pages["gref"] for pair in disks.pairs]
    granted = np.concatenate([grefs[grefs != 0] for grefs in pools])
    assert len(granted) > 30 and len(set(granted.tolist())) == len(granted)


def test_swapped_disks_are_found_by_every_read() -> None:
    disks = Disks(2)
    disks.run(*[plan("write", NR_BLOCKS)] * 2)
    one, two = (pair.store.memory for pair in disks.pairs)
    assert one is not None and two is not None and not (one == two).all()
    one[:], two[:] = two.copy(), one.copy()
    disks.run(*[plan("read", NR_BLOCKS)] * 2)
    assert disks.counted("verify_errors") == [NR_BLOCKS] * 2


def test_a_write_to_another_disk_is_found_by_both() -> None:
    disks = Disks(2)
    disks.run(*[plan("write", NR_BLOCKS)] * 2)
    one, two = (pair.store.memory for pair in disks.pairs)
    assert one is not None and two is not None
    one[3 * 4096 : 4 * 4096] = two[3 * 4096 : 4 * 4096]
    disks.run(*[plan("read", NR_BLOCKS)] * 2)
    assert disks.counted("verify_errors") == [1, 0]


def lie_of(pair: Pair) -> None:
    """Its backend answers what nobody has asked."""
    pair.answer_raw((77, READ, OKAY))
    set_pending(*pair.front_events, pair.port)


@pytest.mark.parametrize("spins", [False, True])
def test_a_broken_disk_fails_its_own_load_and_the_others_go_on(spins: bool) -> None:
    disks = Disks(3)
    if spins:
        disks.spin()
    liar = disks.pairs[1]
    serve = liar.serve

    def lie() -> None:
        if disks.counted("requests")[1] > 20:
            lie_of(liar)
        else:
            serve()

    liar.serve = lie  # type: ignore[method-assign]
    assert disks.run(*[plan()] * 3) == {1: BROKEN_REASONS[BROKEN_ID]}
    assert disks.counted("ios")[::2] == [200, 200]
    assert disks.counted("ios")[1] < 200
    assert disks.pairs[0].front.grants.list["in_flight"][0] == 0


def test_a_disk_can_be_used_again_after_another_has_failed() -> None:
    disks = Disks(2)
    dead = disks.pairs[1]
    dead.serve = lambda: lie_of(dead)  # type: ignore[method-assign]
    assert list(disks.run(plan(), plan())) == [1]
    assert disks.run(plan()) == {}
    assert disks.counted("ios")[0] == 400


# --- grant entries that do not go round -------------------------------------------------------


def short(count: int, left: int, pages: int) -> tuple[Disks, list[int]]:
    """Disks of a guest that has `left` entries, and those that are granted past them."""
    disks = Disks(count, "non-persistent", frames_per_io=pages, nr_ios=16)
    return disks, [disks.pairs[0].grant(0) for _ in range(ENTRIES - left)]


@pytest.mark.parametrize("spins", [False, True])
@pytest.mark.parametrize("left", [11, 12, 30])
def test_who_finds_no_entries_waits_for_those_of_other_disks(left: int, spins: bool) -> None:
    disks, others = short(3, left, 11)
    if spins:
        disks.spin()
    plans = [plan("randrw", 100, depth, pages) for pages, depth in ((11, 2), (1, 16), (4, 8))]
    assert disks.run(*plans) == {}
    assert disks.counted("ios") == [100] * 3
    assert disks.counted("io_errors") == [0] * 3
    disks.check()
    check_whole(disks.pairs[0].front, *others)


def test_a_large_request_is_not_passed_over_for_ever() -> None:
    """Beside one of small ones without end, which would take every entry that comes free."""
    disks, _ = short(2, 11, 11)
    endless = disks.job(1, plan(iodepth=16, ios=None))
    large = disks.job(0, plan(iodepth=1, ios=20, pages=11))
    slices = 0

    def stop() -> None:
        nonlocal slices
        slices += 1
        if 0 not in disks.driver.running or slices == 2000:
            endless.load["stop"] = 1

    assert disks.driver.run({1: endless, 0: large}, stop) == {}
    assert slices < 2000 and disks.counted("ios")[0] == 20


def test_what_never_fits_fails_once_nothing_of_the_guest_is_in_flight() -> None:
    disks, others = short(2, 5, 11)
    small, large = disks.pairs
    for io in range(8):
        small.queue(io, WRITE, 8 * io, 8)
        large.queue(io, READ, 0, 88)
    assert disks.driver.run({0: small.queued, 1: large.queued}, lambda: None) == {}
    assert small.front.ios["status"][:8].tolist() == [OKAY] * 8
    assert large.front.ios["status"][:8].tolist() == [NO_ROOM] * 8
    assert (disks.counted("requests"), len(large.take_done())) == ([8, 0], 8)
    disks.check()
    check_whole(small.front, *others)


@pytest.mark.parametrize("failing", [0, 1])
def test_who_waits_goes_on_when_another_fails(failing: int) -> None:
    """Whether it has the entries, or is first to get some."""
    disks, _ = short(3, 11, 11)
    plans = [plan(pages=11, iodepth=1, ios=50) for _ in range(3)]
    jobs = {number: disks.job(number, plan) for number, plan in enumerate(plans)}
    asked = 0

    def fail() -> None:
        nonlocal asked
        asked += 1
        if asked == 9 and failing in disks.driver.running:
            disks.driver.fail(failing, "closed")
            end_every_access(disks.pairs[failing].front)

    assert disks.driver.run(jobs, fail) == {failing: "closed"}
    rest = [number for number in range(3) if number != failing]
    assert [disks.counted("ios")[number] for number in rest] == [50, 50]


# --- turns ------------------------------------------------------------------------------------


def busy(count: int) -> tuple[Disks, list[Load]]:
    """Disks of which the first is busy without end, alone: its I/Os find no room."""
    disks = Disks(count, pool_pages=5, nr_ios=16, frames_per_io=6)
    endless = [plan("randrw", None, 16, 6), *[plan("randrw", None, 1)] * (count - 1)]
    return disks, [disks.job(number, plan) for number, plan in enumerate(endless)]


@pytest.mark.parametrize("spins", [False, True])
def test_a_disk_at_depth_1_is_served_beside_one_that_is_always_busy(spins: bool) -> None:
    disks, jobs = busy(2)
    if spins:
        disks.spin()
    slices = 0

    def look() -> None:
        nonlocal slices
        slices += 1
        disks.pairs[1].serve()
        for job in jobs:
            job.load["stop"] = slices == 50

    assert disks.driver.run(dict(enumerate(jobs)), look) == {}
    assert disks.counted("ios")[0] > 10_000
    assert disks.counted("ios")[1] >= 48


@pytest.mark.parametrize("count", [1, 3])
def test_a_slice_is_bounded_in_time(count: int) -> None:
    disks, jobs = busy(count)
    times = [0]

    def look() -> None:
        times.append(time.thread_time_ns())
        for job in jobs:
            job.load["stop"] = len(times) > 40
        for pair in disks.pairs[1:]:
            pair.serve()

    disks.driver.run(dict(enumerate(jobs)), look)
    assert np.median(np.diff(times[5:])) < 2 * SLICE_NS
