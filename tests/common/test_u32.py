"""Free-running indices: arithmetic modulo 2^32, compiled and plain."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.u32 import u32_add, u32_sub

NO_DEADLINE = settings(deadline=None)  # the first example compiles
U32 = st.integers(0, 2**32 - 1)
NEAR_THE_EDGES = st.sampled_from([0, 1, 31, 2**31 - 1, 2**31, 2**32 - 32, 2**32 - 1])


@NO_DEADLINE
@given(U32 | NEAR_THE_EDGES, U32 | NEAR_THE_EDGES)
def test_sums_and_differences_wrap_at_2_to_the_32(a: int, b: int) -> None:
    assert u32_add(a, b) == (a + b) % 2**32
    assert u32_sub(a, b) == (a - b) % 2**32


@NO_DEADLINE
@given(U32 | NEAR_THE_EDGES, U32 | NEAR_THE_EDGES)
def test_a_distance_added_again_leads_back(a: int, b: int) -> None:
    assert u32_add(b, u32_sub(a, b)) == a


@pytest.mark.parametrize("add", [u32_add, u32_add.py_func])
@pytest.mark.parametrize("kind", [int, np.uint32, np.int64])
def test_the_integer_that_carries_an_index_does_not_matter(
    add: Callable[[int, int], int], kind: Callable[[int], int]
) -> None:
    assert add(kind(2**32 - 1), kind(1)) == 0
    assert add(kind(2**32 - 5), kind(32)) == 27


@pytest.mark.parametrize("subtract", [u32_sub, u32_sub.py_func])
@pytest.mark.parametrize("kind", [int, np.uint32, np.int64])
def test_what_is_behind_is_far_ahead(
    subtract: Callable[[int, int], int], kind: Callable[[int], int]
) -> None:
    assert subtract(kind(0), kind(1)) == 2**32 - 1
    assert subtract(kind(3), kind(2**32 - 2)) == 5
