"""The tree of persistent grants as people see it."""

import numpy as np
import pytest

from backend.persistent_grants import erase, find, get, insert, new_tree
from common.arena import Arena
from looking.tree import tree


def kept(grefs: list[int], cap: int = 352) -> tuple[np.ndarray, np.ndarray]:
    head, nodes = new_tree(Arena(1 << 24), cap)
    for at, gref in enumerate(grefs):
        insert(head, nodes, gref, 4096 * (at + 1), at)
    return head, nodes


@pytest.mark.parametrize("count", [0, 1, 2, 7, 100, 352])
def test_all_nodes_are_there_in_the_order_of_their_grefs(count: int) -> None:
    grefs = np.random.default_rng(count).permutation(1000)[:count].tolist()
    decoded = tree(*kept(grefs))
    assert [node.gref for node in decoded.nodes] == sorted(grefs)
    assert [node.rank for node in decoded.nodes] == list(range(count))
    assert (decoded.nr_nodes, decoded.cap, decoded.torn) == (count, 352, False)
    for node in decoded.nodes:
        assert grefs[node.handle] == node.gref and node.host_addr == 4096 * (node.handle + 1)


def test_parents_and_sides_make_a_search_tree() -> None:
    nodes = tree(*kept(list(range(50, 0, -1)))).nodes
    (root,) = [node for node in nodes if node.parent is None]
    assert (root.depth, root.side, root.colour) == (0, "", "black")
    for node in nodes:
        if node.parent is None:
            continue
        parent = nodes[node.parent]
        assert node.depth == parent.depth + 1
        assert node.side == ("left" if node.gref < parent.gref else "right")
        assert "black" in (node.colour, parent.colour)


def test_what_is_in_flight_is_marked() -> None:
    head, nodes = kept([3, 1, 2])
    get(head, nodes, 2)
    decoded = tree(head, nodes)
    assert decoded.in_flight == 1
    assert [node.in_flight for node in decoded.nodes] == [False, True, False]


def test_it_is_drawn_on_its_side() -> None:
    head, nodes = kept([2, 1, 3, 4])
    erase(head, nodes, find(head, nodes, 1))
    get(head, nodes, 4)
    assert str(tree(head, nodes)).splitlines() == [
        "3 of at most 352 grants are kept, 1 in flight; 2 levels",
        "/-- 2 black",
        "3 black",
        "\\-- 4 black in flight",
    ]


def test_one_that_changes_meanwhile_is_shown_as_far_as_it_goes() -> None:
    head, nodes = kept(list(range(1, 30)))
    root = int(head["root"][0])
    nodes["left"][nodes["right"][root]] = root
    decoded = tree(head, nodes)
    assert decoded.torn and len(decoded.nodes) < 29
    assert "it changed while it was copied" in str(decoded)


def test_a_large_one_is_cut_as_text_only() -> None:
    decoded = tree(*kept(list(range(200))))
    assert len(decoded.nodes) == 200
    assert len(str(decoded).splitlines()) == 1 + 1 + 64
