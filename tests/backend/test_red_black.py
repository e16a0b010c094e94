"""Links and rotations of the red-black arrays; balance is shown in test_persistent_grants.py."""

import numpy as np
import pytest

from backend.persistent_grants import NODE, TREE
from backend.red_black import (
    LEFT,
    NIL,
    RED,
    RIGHT,
    child,
    is_red,
    link,
    replace,
    rotate,
    side_of,
    smallest,
)


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    """3 over (1 over (0, 2), 4): each node's index is its place in order."""
    tree, nodes = np.zeros(1, TREE), np.zeros(5, NODE)
    for name in ("left", "right", "parent"):
        nodes[name] = NIL
    tree["root"] = 3
    for parent, side, node in [(3, LEFT, 1), (3, RIGHT, 4), (1, LEFT, 0), (1, RIGHT, 2)]:
        link(tree, nodes, parent, side, node)
    return tree, nodes


def in_order(nodes: np.ndarray, top: int) -> list[int]:
    if top == NIL:
        return []
    left, right = child(nodes, top, LEFT), child(nodes, top, RIGHT)
    return [*in_order(nodes, left), top, *in_order(nodes, right)]


def test_a_node_without_a_parent_is_the_root(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    tree, nodes = arrays
    link(tree, nodes, NIL, LEFT, 1)
    assert (tree[0]["root"], nodes[1]["parent"]) == (1, NIL)


def test_a_child_knows_its_parent_and_side(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    _, nodes = arrays
    assert nodes["parent"].tolist() == [1, 3, 1, NIL, 3]
    assert [side_of(nodes, 1, 0), side_of(nodes, 1, 2)] == [LEFT, RIGHT]


def test_nil_is_black(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    _, nodes = arrays
    nodes["color"] = RED
    assert is_red(nodes, 0)
    assert not is_red(nodes, NIL)


def test_the_smallest_is_the_leftmost_of_the_subtree(
    arrays: tuple[np.ndarray, np.ndarray],
) -> None:
    _, nodes = arrays
    assert [smallest(nodes, top) for top in (3, 1, 2, 4)] == [0, 0, 2, 4]


def test_a_replaced_node_leaves_its_place_to_the_other(
    arrays: tuple[np.ndarray, np.ndarray],
) -> None:
    tree, nodes = arrays
    replace(tree, nodes, 1, 2)
    assert in_order(nodes, 3) == [2, 3, 4]
    replace(tree, nodes, 3, NIL)
    assert tree[0]["root"] == NIL


@pytest.mark.parametrize(("node", "side", "riser"), [(3, RIGHT, 1), (3, LEFT, 4), (1, LEFT, 2)])
def test_a_rotation_keeps_the_order_and_the_opposite_one_undoes_it(
    arrays: tuple[np.ndarray, np.ndarray], node: int, side: int, riser: int
) -> None:
    tree, nodes = arrays
    before = tree.tobytes() + nodes.tobytes()
    rotate(tree, nodes, node, side)
    assert child(nodes, riser, side) == node
    assert in_order(nodes, int(tree[0]["root"])) == [0, 1, 2, 3, 4]
    rotate(tree, nodes, riser, 1 - side)
    assert tree.tobytes() + nodes.tobytes() == before
