"""A kernel called directly is the same kernel."""

import numpy as np
import pytest

from common.abi import GNTMAP_HOST_MAP
from common.compiled import direct, kernel, part
from common.u32 import u32_add
from hypervisor.grant_table import ACTIVE, TABLE, GrantTable, unpin


def test_a_direct_call_does_what_the_kernel_does() -> None:
    add = direct(u32_add, 0, 0)
    assert add(2**32 - 1, 3) == u32_add(2**32 - 1, 3) == 2
    assert add.__name__ == "u32_add" and not hasattr(add, "overloads")


def test_it_takes_arrays_as_long_as_they_come_and_tuples_of_them() -> None:
    example = GrantTable(np.zeros(0, np.uint32), np.zeros(0, ACTIVE), np.zeros(0, TABLE))
    table = GrantTable(np.zeros(8, np.uint32), np.zeros(4, ACTIVE), np.zeros(1, TABLE))
    table.active["pin"], table.table["mapped"] = 1, 1
    direct(unpin, example, 0, 0)(table, 3, GNTMAP_HOST_MAP)
    assert table.active["pin"].tolist() == [1, 1, 1, 0] and table.table["mapped"] == 0


def test_an_assertion_in_it_is_one() -> None:
    table = GrantTable(np.zeros(8, np.uint32), np.zeros(4, ACTIVE), np.zeros(1, TABLE))
    with pytest.raises(AssertionError, match="was not pinned"):
        direct(unpin, table, 0, 0)(table, 3, GNTMAP_HOST_MAP)


def test_it_is_compiled_once() -> None:
    first = direct(u32_add, 0, 0)
    assert direct(u32_add, 1, 2) is first


@part
def _twice(number: int) -> int:
    return 2 * number


@kernel
def _twice_and_one(number: int) -> int:
    return _twice(number) + 1  # type: ignore[no-any-return]


def test_a_part_is_called_by_kernels_alone() -> None:
    assert _twice_and_one(3) == 7
    with pytest.raises(TypeError, match="_twice is a part of kernels, and called by them alone"):
        _twice(3)
