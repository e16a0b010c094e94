"""Whose turn it is: one look a guest, however many events there are, and however many disks."""

from hypothesis import given
from hypothesis import strategies as st

from backend.due import Due

KEYS = st.tuples(st.integers(1, 5), st.integers(0, 5))


def all_of(due: Due) -> list[tuple[int, int]]:
    taken = []
    while (key := due.take()) is not None:
        taken.append(key)
    return taken


def test_a_thousand_events_are_one_look() -> None:
    due = Due()
    for _ in range(1000):
        due.add((1, 51712))
    assert all_of(due) == [(1, 51712)]


def test_guests_take_turns_whatever_one_of_them_has_due() -> None:
    due = Due()
    for device in range(10_000):
        due.add((1, device))
    due.add((2, 51712))
    due.add((3, 51712))
    assert [due.take() for _ in range(4)] == [(1, 0), (2, 51712), (3, 51712), (1, 1)]


def test_who_is_due_again_at_once_has_its_turn_after_the_others() -> None:
    due = Due()
    due.add((1, 1))
    due.add((2, 1))
    seen = []
    for _ in range(6):
        key = due.take()
        assert key is not None
        seen.append(key[0])
        due.add(key)  # its storm
    assert seen == [1, 2, 1, 2, 1, 2]


def test_who_rests_has_no_turn_until_it_has_rested() -> None:
    due = Due()
    for key in ((1, 1), (2, 1)):
        due.add(key)
    due.rest(1, 100)
    assert due.take(50) == (2, 1)
    assert due.take(50) is None
    assert due.pause_ns(50) == 50
    assert due.pause_ns(100) == 0
    assert due.take(100) == (1, 1)
    assert due.pause_ns(100) is None


def test_what_rests_while_nothing_is_due_rests_when_something_is() -> None:
    due = Due()
    due.rest(1, 100)
    assert due.pause_ns(0) is None
    due.add((1, 1))
    assert (due.take(99), due.take(100)) == (None, (1, 1))


def test_who_is_hurried_rests_no_more() -> None:
    due = Due()
    due.add((1, 1))
    due.rest(1, 100)
    due.hurry(1)
    due.hurry(2)
    assert due.take(0) == (1, 1)


@given(st.lists(KEYS))
def test_everything_that_was_added_is_taken_once(keys: list[tuple[int, int]]) -> None:
    due = Due()
    for key in keys:
        due.add(key)
    taken = all_of(due)
    assert sorted(taken) == sorted(set(keys))
    assert not due


@given(st.lists(KEYS, min_size=1))
def test_between_two_turns_of_a_guest_every_other_that_is_due_has_one(
    keys: list[tuple[int, int]],
) -> None:
    due = Due()
    for key in keys:
        due.add(key)
    taken = [domid for domid, _ in all_of(due)]
    for at, domid in enumerate(taken):
        if domid in taken[at + 1 :]:
            upto = taken.index(domid, at + 1)
            assert set(taken[at:upto]) == set(taken[at:])
