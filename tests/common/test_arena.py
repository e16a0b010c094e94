"""An arena: zeroed arrays side by side, copied and put back as one."""

import numpy as np
import pytest

from common.arena import LINE_BYTES, Arena


def test_arrays_are_zeroed_and_share_no_cache_line() -> None:
    arena = Arena()
    first, second = arena.array(3, np.uint8), arena.array((2, 2), np.uint64)
    assert not first.any() and not second.any()
    assert second.ctypes.data % LINE_BYTES == 0
    assert first.ctypes.data + LINE_BYTES == second.ctypes.data


def test_a_snapshot_puts_every_array_back() -> None:
    arena = Arena()
    words, records = arena.array(100, np.uint32), arena.array(2, np.dtype([("a", "<u8")]))
    words[:], records["a"] = 7, (1, 2)
    before = arena.snapshot()
    words[50], records["a"][1] = 0, 9
    arena.restore(before)
    assert (words == 7).all() and records["a"].tolist() == [1, 2]


def test_a_snapshot_of_fewer_arrays_is_refused() -> None:
    arena = Arena()
    before = arena.snapshot()
    arena.array(1, np.uint8)
    with pytest.raises(AssertionError, match="fewer arrays"):
        arena.restore(before)


def test_what_does_not_fit_is_told() -> None:
    arena = Arena(4096)
    arena.array(4000, np.uint8)
    with pytest.raises(MemoryError, match="100 bytes do not fit"):
        arena.array(100, np.uint8)


def test_it_knows_what_lies_in_it() -> None:
    arena, other = Arena(), Arena()
    array, end = arena.array(100, np.uint8), arena.array(1, np.uint64)
    assert arena.holds(array) and arena.holds(array[50:]) and arena.holds(end)
    assert not arena.holds(other.array(100, np.uint8)) and not arena.holds(np.zeros(100, np.uint8))
    assert not other.holds(array)
