"""A domid's part of the arena: had again by the next domain, and never twice at a time."""

import numpy as np

from common.arena import Arena
from hypervisor.room import Room

PAIR = np.dtype([("a", "<u4"), ("b", "<u2")])


def test_the_next_domain_has_the_same_arrays_zeroed() -> None:
    arena = Arena()
    room = Room(arena)
    first, second = room.array(5, PAIR), room.array((2, 3), np.uint64)
    first["a"], second[:] = 7, 9
    used = len(arena.snapshot())
    room.empty()
    again = room.array(5, PAIR), room.array((2, 3), np.uint64)
    assert [each.ctypes.data for each in again] == [first.ctypes.data, second.ctypes.data]
    assert again[0].shape == (5,) and again[0].dtype == PAIR and again[1].shape == (2, 3)
    assert not again[0]["a"].any() and not again[1].any()
    assert len(arena.snapshot()) == used


def test_a_smaller_domain_leaves_nothing_to_the_next() -> None:
    room = Room(Arena())
    room.array(100, np.uint8)[:] = 1
    room.empty()
    room.array(10, np.uint8)
    room.empty()
    assert not room.array(100, np.uint8).any()


def test_arrays_of_one_domain_do_not_overlap() -> None:
    room = Room(Arena())
    room.array(8, np.uint8), room.array(8, np.uint8)
    room.empty()
    large, other, third = (room.array(size, np.uint8) for size in (100, 8, 8))
    large[:], other[:], third[:] = 1, 2, 3
    assert set(large) == {1} and set(other) == {2} and set(third) == {3}


def test_however_domains_grow_they_leave_no_more_behind_than_the_largest_has() -> None:
    arena = Arena()
    room = Room(arena)
    for size in range(1, 4096):
        room.empty()
        room.array(size, np.uint8)
    assert len(arena.snapshot()) <= 3 * 4096


def test_rooms_and_empty_arrays_do_not_mix() -> None:
    arena = Arena()
    rooms = Room(arena), Room(arena)
    arrays = [room.array(16, np.uint8) for room in rooms]
    arrays[0][:] = 1
    assert not arrays[1].any()
    assert rooms[0].array(0, PAIR).shape == (0,)
