"""A guest's share of a thread's time: a burst is free, the rest is a tenth."""

from common.shares import SHARE, Shares

MS = 1_000_000
BURST_NS = 2 * MS


def test_a_burst_waits_for_nothing() -> None:
    shares = Shares(BURST_NS)
    assert [shares.charge(1, BURST_NS // 4, at) for at in range(4)] == [0, 0, 0, 0]


def test_what_is_over_it_waits_until_it_is_paid_off() -> None:
    shares = Shares(BURST_NS)
    assert shares.charge(1, BURST_NS + 3 * MS, 0) == 3 * MS * SHARE
    # And no longer: the next call of the same length has the same rest.
    assert shares.charge(1, 3 * MS, 3 * MS * SHARE) == 3 * MS * SHARE


def test_who_calls_without_end_has_a_tenth() -> None:
    shares, now, served = Shares(BURST_NS), 0, 0
    while now < 1000 * MS:
        now, served = now + MS, served + MS
        now += shares.charge(1, MS, now)
    assert abs(served - 1000 * MS // SHARE) < 10 * MS


def test_who_rests_longer_gains_a_burst_and_no_more() -> None:
    shares = Shares(BURST_NS)
    shares.charge(1, 10 * BURST_NS, 0)
    later = 1000 * BURST_NS * SHARE
    assert shares.charge(1, BURST_NS, later) == 0
    assert shares.charge(1, MS, later) == MS * SHARE


def test_others_owe_nothing_for_it() -> None:
    shares = Shares(BURST_NS)
    shares.charge(1, 100 * MS, 0)
    assert shares.charge(2, MS, 0) == 0


def test_a_domid_begins_anew_with_its_next_domain() -> None:
    shares = Shares(BURST_NS)
    shares.charge(1, 100 * MS, 0)
    shares.forget(1)
    assert shares.charge(1, MS, 0) == 0
