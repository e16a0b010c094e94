"""The tree of persistent grants: by example, and exhaustively while small."""

import math
import mmap
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numba import njit

from backend.persistent_grants import (
    CAP_MAX,
    GREF_MAX,
    NODE,
    PG_BUSY,
    PG_DUPLICATE,
    PG_FULL,
    check,
    depth_of,
    erase,
    find,
    first,
    get,
    insert,
    new_tree,
    put,
)
from backend.red_black import BLACK, LEFT, NIL, RED, RIGHT, child
from common.arena import Arena

Arrays = tuple[np.ndarray, np.ndarray]

EDGES = [0, 1, 7, 8, (1 << 31) - 1, 1 << 31, GREF_MAX - 1, GREF_MAX]
MANY = 100_000


def filled(grefs: list[int], cap: int | None = None) -> Arrays:
    """A tree of `grefs`, put in in that order: gref g at host address g * 4096, handle 99."""
    tree, nodes = new_tree(Arena(), len(grefs) if cap is None else cap)
    for gref in grefs:
        assert insert(tree, nodes, gref, gref * 4096, 99) >= 0
    return tree, nodes


def walk(tree: np.ndarray, nodes: np.ndarray) -> list[int]:
    """In order; `first` is where it begins."""

    def below(node: int) -> list[int]:
        if node == NIL:
            return []
        left, right = (below(int(child(nodes, node, side))) for side in (LEFT, RIGHT))
        return [*left, int(nodes[node]["gref"]), *right]

    grefs = below(int(tree["root"][0]))
    smallest = first(tree, nodes)
    assert [int(nodes[smallest]["gref"])] == grefs[:1] if grefs else smallest == NIL
    return grefs


@njit(nogil=True)
def fill(tree: np.ndarray, nodes: np.ndarray, grefs: np.ndarray) -> None:
    for gref in grefs:
        insert(tree, nodes, gref, 0, 0)


@njit(nogil=True)
def depths(tree: np.ndarray, nodes: np.ndarray, grefs: np.ndarray) -> np.ndarray:
    return np.array([depth_of(tree, nodes, gref) for gref in grefs])


# --- one behaviour each -----------------------------------------------------------------------


@pytest.mark.parametrize("cap", [-1, CAP_MAX + 1, 1.5, "8", True, None])
def test_a_bad_cap_is_named_with_what_is_allowed(cap: object) -> None:
    with pytest.raises(ValueError, match=f"cap: .* is not a whole number from 0 to {CAP_MAX}"):
        new_tree(Arena(), cap)  # type: ignore[arg-type]


def test_a_cap_of_0_keeps_nothing() -> None:
    tree, nodes = new_tree(Arena(), 0)
    assert insert(tree, nodes, 8, 4096, 1) == PG_FULL
    assert find(tree, nodes, 8) == get(tree, nodes, 8) == first(tree, nodes) == NIL
    assert check(tree, nodes) is None


def test_a_grant_is_found_with_its_address_and_handle() -> None:
    tree, nodes = filled([10, 11])
    node = find(tree, nodes, 11)
    assert (nodes[node]["gref"], nodes[node]["host_addr"], nodes[node]["handle"]) == (11, 45056, 99)


def test_addresses_and_handles_keep_all_their_bits() -> None:
    tree, nodes = new_tree(Arena(), 1)
    address: Any = np.uint64(2**64 - 4096)  # Numba takes a plain int for an i64
    node = insert(tree, nodes, 8, address, 2**32 - 1)
    assert (nodes[node]["host_addr"], nodes[node]["handle"]) == (2**64 - 4096, 2**32 - 1)


def test_an_unknown_gref_is_not_found() -> None:
    tree, nodes = filled([10, 12])
    assert [find(tree, nodes, gref) for gref in (9, 11, 13)] == [NIL, NIL, NIL]


@pytest.mark.parametrize("kind", [int, np.uint32, np.int64, np.uint64])
def test_grefs_sort_as_u32_whatever_integer_carries_them(kind: Callable[[int], int]) -> None:
    tree, nodes = new_tree(Arena(), len(EDGES))
    for gref in reversed(EDGES):
        assert insert(tree, nodes, kind(gref), 0, 0) >= 0
    assert walk(tree, nodes) == EDGES
    assert [nodes[find(tree, nodes, kind(gref))]["gref"] for gref in EDGES] == EDGES


@pytest.mark.parametrize(("gref", "answer"), [(10, PG_DUPLICATE), (12, PG_FULL)])
def test_a_refused_insert_changes_nothing(gref: int, answer: int) -> None:
    tree, nodes = filled([10, 11])
    before = tree.tobytes() + nodes.tobytes()
    assert insert(tree, nodes, gref, 1, 1) == answer
    assert tree.tobytes() + nodes.tobytes() == before


def test_a_full_tree_takes_a_grant_again_after_an_erase() -> None:
    tree, nodes = filled([10, 11])
    erase(tree, nodes, find(tree, nodes, 10))
    assert insert(tree, nodes, 12, 0, 0) >= 0
    assert walk(tree, nodes) == [11, 12]


def test_the_largest_count_is_remembered() -> None:
    tree, nodes = filled([10, 11, 12], cap=5)
    for gref in (10, 11):
        erase(tree, nodes, find(tree, nodes, gref))
    insert(tree, nodes, 13, 0, 0)
    assert (tree[0]["count"], tree[0]["count_max"]) == (2, 3)


def test_a_grant_in_flight_is_busy_until_it_is_put() -> None:
    tree, nodes = filled([10, 11])
    node = get(tree, nodes, 10)
    assert node == find(tree, nodes, 10)
    assert get(tree, nodes, 10) == PG_BUSY
    assert tree[0]["in_flight"] == 1
    put(tree, nodes, node)
    assert tree[0]["in_flight"] == 0
    assert get(tree, nodes, 10) == node


def test_get_of_an_absent_gref_marks_nothing() -> None:
    tree, nodes = filled([10])
    assert get(tree, nodes, 11) == NIL
    assert tree[0]["in_flight"] == 0


@pytest.mark.parametrize(
    ("misuse", "node", "reason"),
    [
        (put, 0, "not in flight"),
        (put, 3, "no such node"),
        (put, NIL, "no such node"),
        (erase, 1, "in flight"),
        (erase, 2, "free node"),
        (erase, 3, "no such node"),
        (erase, NIL, "no such node"),
    ],
)
def test_misuse_by_our_own_code_is_an_assertion(
    misuse: Callable[..., None], node: int, reason: str
) -> None:
    tree, nodes = filled([10, 11], cap=3)
    get(tree, nodes, 11)
    with pytest.raises(AssertionError, match=reason):
        misuse(tree, nodes, node)
    assert check(tree, nodes) is None


@pytest.mark.parametrize("gref", [-1, GREF_MAX + 1])
def test_what_is_no_u32_is_no_gref(gref: int) -> None:
    with pytest.raises(AssertionError, match="u32"):
        insert(*new_tree(Arena(), 1), gref, 0, 0)


def test_a_node_keeps_its_index_while_others_go() -> None:
    grefs = list(range(64))
    tree, nodes = filled(grefs)
    held = {gref: find(tree, nodes, gref) for gref in grefs[::3]}
    for gref in set(grefs) - set(held):
        erase(tree, nodes, find(tree, nodes, gref))
    assert {gref: find(tree, nodes, gref) for gref in held} == held


def test_the_arrays_may_lie_in_shared_memory() -> None:
    tree, plain = new_tree(Arena(), 3)
    shared = np.frombuffer(mmap.mmap(-1, plain.nbytes), NODE)
    shared[:] = plain
    for gref in (12, 10, 11):
        insert(tree, shared, gref, 0, 0)
    assert walk(tree, shared) == [10, 11, 12]


# --- every order, every depth -----------------------------------------------------------------


@pytest.mark.parametrize("size", range(1, 7))
def test_every_order_of_inserts_makes_a_sound_sorted_tree(size: int) -> None:
    def go_on(tree: np.ndarray, nodes: np.ndarray, left: frozenset[int]) -> None:
        assert check(tree, nodes) is None
        assert walk(tree, nodes) == sorted(set(range(size)) - left)
        for gref in left:
            grown = tree.copy(), nodes.copy()
            insert(*grown, gref, 0, 0)
            go_on(*grown, left - {gref})

    go_on(*new_tree(Arena(), size), frozenset(range(size)))


@pytest.mark.parametrize("size", range(1, 8))
def test_every_order_of_erases_leaves_a_sound_tree_and_at_last_an_empty_one(size: int) -> None:
    def go_on(tree: np.ndarray, nodes: np.ndarray, left: frozenset[int]) -> None:
        assert check(tree, nodes) is None
        assert tree[0]["count"] == len(left)
        for gref in left:
            shrunk = tree.copy(), nodes.copy()
            erase(*shrunk, find(*shrunk, gref))
            go_on(*shrunk, left - {gref})

    go_on(*filled(list(range(size))), frozenset(range(size)))


def test_an_emptied_tree_has_every_node_free_and_fills_again() -> None:
    tree, nodes = filled(list(range(352)))
    while tree[0]["count"]:
        erase(tree, nodes, first(tree, nodes))
    assert tree[0]["root"] == NIL
    assert check(tree, nodes) is None
    fill(tree, nodes, np.arange(1000, 1352))
    assert walk(tree, nodes) == list(range(1000, 1352))
    assert check(tree, nodes) is None


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_no_lookup_among_100000_visits_more_than_2_log2_levels(order: str) -> None:
    grefs = np.arange(8, 8 + MANY)
    if order == "shuffled":
        np.random.default_rng(1).shuffle(grefs)
    tree, nodes = new_tree(Arena(), MANY)
    fill(tree, nodes, grefs[::-1] if order == "descending" else grefs)
    assert check(tree, nodes) is None
    assert depths(tree, nodes, grefs).max() <= 2 * math.log2(MANY + 1)


def test_levels_visited_grow_by_about_one_a_doubling() -> None:
    grefs = np.random.default_rng(2).permutation(1 << 16) * 2
    means = []
    for size in (1 << power for power in range(4, 17)):
        tree, nodes = new_tree(Arena(), size)
        fill(tree, nodes, grefs[:size])
        means.append(depths(tree, nodes, np.concatenate((grefs[:size], grefs[:size] + 1))).mean())
    assert all(0.8 < larger - smaller < 1.2 for smaller, larger in pairwise(means))


# --- the checker ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "field", "value", "complaint"),
    [
        ("tree", "cap", 9, "cap 9 but 8 nodes"),
        ("tree", "count", 6, "count 6"),
        ("tree", "count_max", 4, "count_max 4"),
        ("tree", "in_flight", 1, "in_flight 1 but 0"),
        ("tree", "root", NIL, "count 5 but 0"),
        ("tree", "root", 8, "out of the array"),
        ("tree", "free_head", NIL, "3 nodes are neither"),
        ("tree", "free_head", 8, "free list leads out"),
        ("tree", "free_head", 0, "in the tree and free"),
        (1, "color", RED, "red parent"),
        (4, "color", BLACK, "black heights differ"),
        (4, "color", 2, "marked free"),
        (4, "parent", 0, "does not lead back"),
        (4, "gref", 5, "out of order"),
        (4, "left", 1, "reached twice"),
        (4, "right", 3, "reached twice"),
        (4, "in_flight", 2, "in_flight"),
        (3, "right", NIL, "black heights differ|count 5 but 4"),
        (7, "parent", 6, "free twice"),
        (7, "color", BLACK, "free node is coloured"),
    ],
)
def test_the_checker_sees(where: str | int, field: str, value: int, complaint: str) -> None:
    # Nodes 0 ... 4 hold grefs 10 ... 50: 1 is the root over 0 and 3, 3 is over 2 and 4 (red).
    tree, nodes = filled([10, 20, 30, 40, 50], cap=8)
    assert check(tree, nodes) is None
    if where == "tree":
        tree[0][field] = value
    else:
        nodes[where][field] = value
    assert re.search(complaint, check(tree, nodes) or "nothing")
