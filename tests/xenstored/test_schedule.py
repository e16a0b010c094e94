"""Who is served next, in exact order, on a clock that only the test moves."""

import pytest

from xenstored.schedule import DEBT_MAX_NS, DOM0_SPELL_NS, SHARE, Schedule

MS = 1_000_000


class Clock:
    """A schedule whose clients always want more, unless they are `once`; each turn takes time."""

    def __init__(self) -> None:
        self.schedule: Schedule[str] = Schedule()
        self.now = 0
        self.served: dict[str, int] = {}

    def turn(self, took_ns: int, once: tuple[str, ...] = ()) -> str:
        """Serve who is next; returns who it was."""
        pause_ns = self.schedule.pause_ns(self.now)
        assert pause_ns is not None
        if pause_ns:
            assert self.schedule.next(self.now + pause_ns - SHARE) is None
        self.now += pause_ns
        chosen = self.schedule.next(self.now)
        assert chosen is not None
        domid, client = chosen
        self.now += took_ns
        self.schedule.charge(domid, took_ns, self.now)
        self.served[client] = self.served.get(client, 0) + took_ns
        if client not in once:
            self.schedule.add(domid, client)
        return client


@pytest.fixture
def clock() -> Clock:
    return Clock()


def names(domids: range) -> list[str]:
    return [f"guest {domid}" for domid in domids]


def storm(clock: Clock, domids: range, turns: int, took_ns: int = MS) -> list[str]:
    for domid in domids:
        clock.schedule.add(domid, f"guest {domid}")
    return [clock.turn(took_ns) for _ in range(turns)]


def test_nobody_waits_nobody_is_served(clock: Clock) -> None:
    assert not clock.schedule
    assert clock.schedule.next(0) is None


def test_a_client_waits_once_however_often_it_is_added(clock: Clock) -> None:
    for _ in range(3):
        clock.schedule.add(1, "a")
    assert clock.schedule.next(0) == (1, "a")
    assert not clock.schedule


def test_guests_that_storm_alike_are_served_in_turn(clock: Clock) -> None:
    assert storm(clock, range(1, 10), 27) == names(range(1, 10)) * 3


def test_one_whose_requests_take_longer_has_fewer_turns_and_no_more_time(clock: Clock) -> None:
    for domid in (1, 2):
        clock.schedule.add(domid, f"guest {domid}")
    for _ in range(220):
        domid, client = clock.schedule.next(clock.now) or (0, "")
        took = 10 * MS if domid == 1 else MS
        clock.now += took
        clock.schedule.charge(domid, took, clock.now)
        clock.served[client] = clock.served.get(client, 0) + took
        clock.schedule.add(domid, client)
    assert abs(clock.served["guest 1"] - clock.served["guest 2"]) <= 10 * MS


def test_dom0_comes_before_nine_storming_guests_after_the_turn_in_hand(clock: Clock) -> None:
    storm(clock, range(1, 10), 9)
    for _ in range(5):
        clock.schedule.add(0, "dom0")
        order = [clock.turn(MS, once=("dom0",)) for _ in range(3)]
        assert order[0] == "dom0"
        assert "dom0" not in order[1:]


def test_an_honest_guest_comes_before_nine_storming_ones_whenever_it_comes(clock: Clock) -> None:
    storm(clock, range(1, 10), 900)
    for _ in range(20):
        clock.schedule.add(10, "honest")
        order = [clock.turn(MS, once=("honest",)) for _ in range(10)]
        assert order[0] == "honest"
        assert "honest" not in order[1:]


def test_the_exact_order_of_dom0_an_honest_guest_and_a_storm(clock: Clock) -> None:
    storm(clock, range(1, 4), 6)
    clock.schedule.add(10, "honest")
    clock.schedule.add(0, "dom0")
    once = ("honest", "dom0")
    assert [clock.turn(MS, once) for _ in range(8)] == ["dom0", "honest", *names(range(1, 4)) * 2]


def test_a_guest_over_its_share_waits_for_one_that_is_not_however_much_that_wants(
    clock: Clock,
) -> None:
    """Until both owe the same; then they alternate."""
    storm(clock, range(1, 2), 50)
    clock.schedule.add(2, "guest 2")
    order = [clock.turn(MS) for _ in range(60)]
    first = order.index("guest 1")
    assert first == 45  # guest 1 owed 50 - 49/10 ms when guest 2 came, and both pay off alike
    assert set(order[:first]) == {"guest 2"}
    assert order[first:].count("guest 1") in (7, 8)


def test_a_guest_that_storms_alone_has_a_burst_and_then_its_tenth(clock: Clock) -> None:
    """The CPU is others', too, and dom0 has to look at what it writes."""
    storm(clock, range(1, 2), 100)
    assert clock.now == 100 * MS
    storm(clock, range(1, 2), 1000)
    assert abs(clock.now - (100 + 1000 * SHARE) * MS) < 2 * 100 * MS


def test_two_that_storm_have_a_tenth_each(clock: Clock) -> None:
    storm(clock, range(1, 3), 2000)
    for served in clock.served.values():
        assert abs(served - 1000 * MS) <= 10 * MS
    assert clock.now > 8000 * MS


def test_who_rests_keeps_nobody_else_waiting(clock: Clock) -> None:
    clock.schedule.charge(1, DEBT_MAX_NS, 0)
    clock.schedule.add(1, "guest 1")
    assert clock.schedule.pause_ns(0) == SHARE
    assert clock.schedule.next(0) is None
    for domid, client in ((2, "guest 2"), (0, "dom0")):
        clock.schedule.add(domid, client)
        assert clock.schedule.pause_ns(0) == 0
        assert clock.schedule.next(0) == (domid, client)
    assert clock.schedule.next(SHARE) == (1, "guest 1")
    assert clock.schedule.pause_ns(SHARE) is None


def test_dom0_goes_on_without_end_while_all_guests_rest(clock: Clock) -> None:
    clock.schedule.charge(1, 10 * DEBT_MAX_NS, 0)
    clock.schedule.add(1, "guest 1")
    clock.schedule.add(0, "dom0")
    turns = 2 * DOM0_SPELL_NS // MS
    assert [clock.turn(MS) for _ in range(turns)] == ["dom0"] * turns


def test_a_tenth_of_the_time_is_paid_off_and_no_debt_is_larger_than_the_limit_and_a_turn(
    clock: Clock,
) -> None:
    storm(clock, range(1, 2), 1000)
    debt = clock.schedule.debt(1, clock.now)
    assert DEBT_MAX_NS <= debt < DEBT_MAX_NS + MS
    assert clock.schedule.debt(1, clock.now + 50 * MS) == debt - 5 * MS
    assert clock.schedule.debt(1, clock.now + (DEBT_MAX_NS + MS) * SHARE) == 0


def test_a_guest_within_its_tenth_owes_nothing_when_it_comes_again(clock: Clock) -> None:
    for _ in range(100):
        clock.schedule.charge(1, MS, clock.now)
        clock.now += SHARE * MS
        assert clock.schedule.debt(1, clock.now) == 0


def test_dom0_that_never_ends_lets_a_guest_have_a_turn_now_and_then(clock: Clock) -> None:
    clock.schedule.add(0, "dom0")
    clock.schedule.add(1, "guest 1")
    spell = ["dom0"] * (DOM0_SPELL_NS // MS)
    assert [clock.turn(MS) for _ in range(2 * len(spell) + 2)] == [*spell, "guest 1"] * 2


def test_dom0_alone_saves_nothing_up_against_itself(clock: Clock) -> None:
    clock.schedule.add(0, "dom0")
    for _ in range(100):
        clock.turn(MS)
    clock.schedule.add(1, "guest 1")
    assert [clock.turn(MS) for _ in range(3)] == ["dom0"] * 3


def test_the_clients_of_a_domain_take_turns(clock: Clock) -> None:
    for client in "abc":
        clock.schedule.add(0, client)
    assert [clock.turn(MS) for _ in range(6)] == list("abcabc")


def test_who_is_removed_is_not_served(clock: Clock) -> None:
    clock.schedule.add(1, "a")
    clock.schedule.add(2, "b")
    clock.schedule.remove(1, "a")
    clock.schedule.remove(1, "a")
    assert clock.schedule.next(0) == (2, "b")
    assert clock.schedule.next(0) is None


def test_a_domain_that_is_gone_leaves_no_debt_to_the_next_of_its_number(clock: Clock) -> None:
    storm(clock, range(1, 2), 100)
    clock.schedule.forget(1)
    assert not clock.schedule
    assert clock.schedule.debt(1, clock.now) == 0
