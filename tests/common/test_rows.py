"""Rows of numbers that lead compiled code to arrays."""

from typing import NamedTuple

import numpy as np
import pytest
from numba import typeof

from common.arena import Arena
from common.compiled import kernel
from common.rows import Layout

RECORD = np.dtype([("small", "<u4"), ("large", "<u8")], align=True)


class Inner(NamedTuple):
    numbers: np.ndarray
    records: np.ndarray


class Outer(NamedTuple):
    words: np.ndarray
    inner: Inner
    table: np.ndarray


INNER = Layout(Inner, numbers=np.uint64, records=RECORD)
OUTER = Layout(Outer, words=np.uint32, inner=INNER, table=(RECORD, 2))
view = OUTER.view


def bundle(arena: Arena, length: int = 4) -> Outer:
    inner = Inner(arena.array(2, np.uint64), arena.array(1, RECORD))
    return Outer(arena.array(length, np.uint32), inner, arena.array((3, 5), RECORD))


@kernel
def fill(rows: np.ndarray, number: int, value: int) -> int:
    """Write `value` to the last element of each array of a row; returns the lengths in one."""
    outer = view(rows, number)
    outer.words[len(outer.words) - 1] = np.uint32(value)
    outer.inner.numbers[1] = np.uint64(value)
    outer.inner.records[0].large = np.uint64(value)
    outer.table[2, 4].small = np.uint32(value)
    return len(outer.words) * 100 + outer.table.shape[0] * 10 + outer.table.shape[1]


def test_a_kernel_reaches_the_arrays_of_any_row_by_its_number() -> None:
    arena = Arena(1 << 20)
    bundles = [bundle(arena, length) for length in (4, 6, 8)]
    rows = OUTER.rows(arena, len(bundles))
    for row, each in zip(rows, bundles, strict=True):
        OUTER.write(row, each)
    for number, each in enumerate(bundles):
        assert fill(rows, number, 7 + number) == len(each.words) * 100 + 35
    for number, (words, inner, table) in enumerate(bundles):
        assert words[-1] == inner.numbers[1] == inner.records["large"][0] == 7 + number
        assert table[2, 4]["small"] == 7 + number
        assert not words[:-1].any() and table["small"].sum() == 7 + number


def test_one_signature_serves_all_rows() -> None:
    arena = Arena(1 << 20)
    for count in (1, 2, 5):
        rows = OUTER.rows(arena, count)
        OUTER.write(rows[count - 1], bundle(arena, count))
        fill(rows, count - 1, 1)
    assert len(fill.signatures) == 1


def test_the_layout_is_the_type_that_the_bundle_has() -> None:
    assert typeof(bundle(Arena(1 << 20))) == OUTER.type


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("words", np.zeros(4, np.int32)),
        ("words", np.zeros((2, 2), np.uint32)),
        ("words", np.zeros(8, np.uint32)[::2]),
        ("table", np.zeros(15, RECORD)),
    ],
)
def test_what_is_not_as_the_layout_says_is_refused(name: str, array: np.ndarray) -> None:
    arena = Arena(1 << 20)
    odd = bundle(arena)._replace(**{name: array})
    with pytest.raises(TypeError, match=f"Outer.{name}: "):
        OUTER.write(OUTER.rows(arena, 1)[0], odd)


def test_the_fields_are_those_of_the_class_in_its_order() -> None:
    with pytest.raises(AssertionError, match="Inner has the fields"):
        Layout(Inner, records=RECORD, numbers=np.uint64)
