"""Naps: who takes one, how long it is, and that it is never taken where a spin is better."""

import os
import time

import pytest

from common.arena import Arena
from common.napping import (
    BACK_SHARE,
    FRONT_SHARE,
    GAP_NS_MAX,
    NAP_NS_MAX,
    PACE_NS_MIN,
    SPUN_EVERY,
    UNDER_WAY_MIN,
    WINDOW,
    nap,
    nap_ns,
)
from common.ring import REQ, RSP, answered, new_half, under_way
from common.spinning import LIMIT_NS_MAX, new_spin

MANY = 32
PACE_NS = 10_000
BATCH = 16


class Waiter:
    """One that has `MANY` under way, on a clock of its own."""

    def __init__(self, share: int = FRONT_SHARE) -> None:
        self.spin = new_spin(adaptive=True)
        self.spin["nap_share"] = share
        self.answers = (1 << 32) - 100  # they wrap

    def wait(self, under_way: int = MANY) -> int:
        """It begins to wait: for how long it would sleep at first."""
        self.spin["started_ns"] = self.spin["now_ns"]
        return self.goes_on(under_way)

    def goes_on(self, under_way: int = MANY) -> int:
        return int(nap_ns(self.spin, under_way, self.answers & 0xFFFFFFFF))

    def get(self, answers: int, pace_ns: int = PACE_NS) -> None:
        """So many have come, so long apart."""
        self.answers += answers
        self.spin["now_ns"] += answers * pace_ns

    def window(self, pace_ns: int = PACE_NS, under_way: int = MANY) -> int:
        """As many answers as a pace is taken of; the nap that follows."""
        for _ in range(WINDOW // BATCH):
            self.wait(under_way)
            self.get(BATCH, pace_ns)
        return self.wait(under_way)


def share_of(nr: int, share: int) -> int:
    return nr * share // 16


@pytest.mark.parametrize("share", [FRONT_SHARE, BACK_SHARE])
def test_a_nap_is_as_long_as_the_share_takes(share: int) -> None:
    assert Waiter(share).window() == share_of(MANY, share) * PACE_NS


def test_the_pace_is_taken_without_naps_first_and_from_time_to_time_again() -> None:
    waiter = Waiter()
    napped = [waiter.window() > 0 for _ in range(2 * SPUN_EVERY)]
    assert napped == ([True] * (SPUN_EVERY - 1) + [False]) * 2


def test_a_pace_that_naps_have_slowed_does_not_lengthen_them() -> None:
    waiter = Waiter()
    first = waiter.window(PACE_NS)
    assert waiter.window(5 * PACE_NS) == first
    assert waiter.window(PACE_NS // 2) == first // 2, "a faster one shortens them"


def test_a_pace_without_naps_that_has_slowed_lengthens_them() -> None:
    waiter = Waiter()
    first = waiter.window()
    for _ in range(SPUN_EVERY - 1):
        waiter.window()
    assert waiter.window(2 * PACE_NS) == 2 * first


@pytest.mark.parametrize(("under_way", "naps"), [(UNDER_WAY_MIN - 1, False), (UNDER_WAY_MIN, True)])
def test_who_waits_for_little_is_not_made_to_wait_longer(under_way: int, naps: bool) -> None:
    assert (Waiter().window(under_way=under_way) > 0) == naps


def test_what_is_under_way_may_be_little_for_a_moment() -> None:
    waiter = Waiter(BACK_SHARE)
    waiter.window()
    assert waiter.wait(0) > 0
    assert [waiter.wait(0) > 0 for _ in range(MANY)][-1] is False


@pytest.mark.parametrize(("pace_ns", "naps"), [(PACE_NS_MIN - 1, False), (PACE_NS_MIN, True)])
def test_fast_answers_are_spun_for(pace_ns: int, naps: bool) -> None:
    assert (Waiter().window(pace_ns) > 0) == naps


def test_a_nap_is_bounded() -> None:
    assert Waiter().window(GAP_NS_MAX // BATCH) <= NAP_NS_MAX


def test_a_gap_is_no_pace() -> None:
    waiter = Waiter()
    waiter.wait()
    waiter.get(BATCH, 10**10)
    waiter.spin["started_ns"] = waiter.spin["now_ns"]
    pace_ns = (GAP_NS_MAX + (WINDOW - BATCH) * PACE_NS) // WINDOW
    for _ in range(WINDOW // BATCH - 1):
        waiter.wait()
        waiter.get(BATCH)
    assert waiter.wait() == share_of(MANY, FRONT_SHARE) * pace_ns


def test_one_that_brings_nothing_is_followed_by_a_shorter_one_until_the_limit() -> None:
    waiter = Waiter()
    first = waiter.window()
    waiter.spin["now_ns"] += first
    assert waiter.goes_on() == first // 4
    waiter.spin["now_ns"] += LIMIT_NS_MAX
    assert waiter.goes_on() == 0, "it sleeps until there is an event"


def test_a_nap_sleeps() -> None:
    waiter = Waiter()
    waiter.window(40_000)
    began_ns = time.monotonic_ns()
    waiter.spin["now_ns"] = waiter.spin["started_ns"] = began_ns
    ns = share_of(MANY, FRONT_SHARE) * 40_000
    assert nap(waiter.spin, MANY, waiter.answers & 0xFFFFFFFF)
    assert time.monotonic_ns() - began_ns >= ns
    assert waiter.spin["now_ns"][0] - began_ns >= ns, "the spin's clock goes on"


@pytest.mark.parametrize(
    ("adaptive", "threads", "share"),
    [(True, 4, FRONT_SHARE), (True, 5, 0), (True, 3, 0), (False, 4, 0)],
)
def test_only_where_the_threads_are_as_many_as_the_cpus(
    adaptive: bool, threads: int, share: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    spin = new_spin(adaptive, threads, FRONT_SHARE)
    assert spin["nap_share"][0] == share


def test_who_has_cpus_to_spare_never_naps() -> None:
    assert Waiter(0).window() == 0


@pytest.mark.parametrize(("prod", "cons", "peer"), [(7, 3, RSP), (3, 7, REQ)])
def test_each_end_knows_what_is_under_way(prod: int, cons: int, peer: int) -> None:
    half = new_half(Arena(4096), 32)
    half["prod_pvt"], half["cons"] = prod - 5 & 0xFFFFFFFF, cons - 5 & 0xFFFFFFFF
    assert under_way(half, peer) == 4
    assert answered(half, peer) == 3 - 5 & 0xFFFFFFFF
