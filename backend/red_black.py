"""Red-black balancing on arrays: rotations and fix-ups, whatever the nodes are sorted by.

Owns: the links and the colours.
Rules
1. No node moves: balancing changes links, so an index stays good until its node is freed.
2. NIL is an index that is read nowhere: a fix-up carries the parent of the place it works on.
3. Left and right are one code: a side is LEFT or RIGHT, the other is `1 - side`.
Never knows: the keys, or which nodes are free.

Memory: `tree` is a one-element array with a field `root`; `nodes` has the fields `left`, `right`
and `parent` (i32, an index or NIL) and `color`.
"""

from typing import Final

import numpy as np

from common.compiled import kernel

NIL: Final = -1

RED: Final = 0
BLACK: Final = 1

LEFT: Final = 0
RIGHT: Final = 1


@kernel
def child(nodes: np.ndarray, node: int, side: int) -> int:
    """The node below `node` on a side, or NIL."""
    return int(nodes[node]["left"] if side == LEFT else nodes[node]["right"])


@kernel
def is_red(nodes: np.ndarray, node: int) -> bool:
    """NIL counts as black."""
    return node != NIL and nodes[node]["color"] == RED


@kernel
def side_of(nodes: np.ndarray, parent: int, node: int) -> int:
    """The side of `parent` that `node` hangs on."""
    return LEFT if nodes[parent]["left"] == node else RIGHT


@kernel
def link(tree: np.ndarray, nodes: np.ndarray, parent: int, side: int, node: int) -> None:
    """Hang `node` (or NIL) on a side of `parent`; a `parent` of NIL makes it the root."""
    if parent == NIL:
        tree[0]["root"] = node
    elif side == LEFT:
        nodes[parent]["left"] = node
    else:
        nodes[parent]["right"] = node
    if node != NIL:
        nodes[node]["parent"] = parent


@kernel
def replace(tree: np.ndarray, nodes: np.ndarray, old: int, new: int) -> None:
    """Put `new` (or NIL) where `old` hangs; `old` keeps its own links."""
    parent = int(nodes[old]["parent"])
    side = side_of(nodes, parent, old) if parent != NIL else LEFT
    link(tree, nodes, parent, side, new)


@kernel
def rotate(tree: np.ndarray, nodes: np.ndarray, node: int, side: int) -> None:
    """Turn `node` down to `side`; its child on the other side comes up in its place."""
    riser = child(nodes, node, 1 - side)
    replace(tree, nodes, node, riser)
    link(tree, nodes, node, 1 - side, child(nodes, riser, side))
    link(tree, nodes, riser, side, node)


@kernel
def smallest(nodes: np.ndarray, top: int) -> int:
    """The first node, in order, of the subtree under `top` (not NIL)."""
    node = top
    while nodes[node]["left"] != NIL:
        node = int(nodes[node]["left"])
    return node


@kernel
def fix_red(tree: np.ndarray, nodes: np.ndarray, fresh: int) -> None:
    """Restore the colours above a `fresh` red node."""
    node = fresh
    parent = int(nodes[node]["parent"])
    while is_red(nodes, parent):
        # A red parent is not the root, so there is a grandparent, and it is black.
        grand = int(nodes[parent]["parent"])
        side = side_of(nodes, grand, parent)
        uncle = child(nodes, grand, 1 - side)
        if not is_red(nodes, uncle):
            if child(nodes, parent, 1 - side) == node:
                rotate(tree, nodes, parent, side)
                parent = node
            nodes[parent]["color"], nodes[grand]["color"] = BLACK, RED
            rotate(tree, nodes, grand, 1 - side)
            break
        nodes[parent]["color"], nodes[uncle]["color"], nodes[grand]["color"] = BLACK, BLACK, RED
        node, parent = grand, int(nodes[grand]["parent"])
    nodes[tree[0]["root"]]["color"] = BLACK


@kernel
def fix_black(tree: np.ndarray, nodes: np.ndarray, lacking: int, place: int) -> None:
    """Restore the black heights: the subtree `lacking` (or NIL) under `place` is one short."""
    node, parent = lacking, place
    while parent != NIL and not is_red(nodes, node):
        # One short means that the sibling is a node: a NIL `node` cannot be taken for it.
        side = side_of(nodes, parent, node)
        sibling = child(nodes, parent, 1 - side)
        if is_red(nodes, sibling):
            nodes[sibling]["color"], nodes[parent]["color"] = BLACK, RED
            rotate(tree, nodes, parent, side)
            sibling = child(nodes, parent, 1 - side)
        near, far = child(nodes, sibling, side), child(nodes, sibling, 1 - side)
        if not is_red(nodes, near) and not is_red(nodes, far):
            nodes[sibling]["color"] = RED
            node, parent = parent, int(nodes[parent]["parent"])
            continue
        if not is_red(nodes, far):
            nodes[near]["color"], nodes[sibling]["color"] = BLACK, RED
            rotate(tree, nodes, sibling, 1 - side)
            sibling, far = near, sibling
        nodes[sibling]["color"] = nodes[parent]["color"]
        nodes[parent]["color"], nodes[far]["color"] = BLACK, BLACK
        rotate(tree, nodes, parent, side)
        return
    if node != NIL:
        nodes[node]["color"] = BLACK
