"""blkback's persistent grants: a red-black tree by gref of the pages it keeps mapped.

Owns: which grefs are mapped for good, where, and which of them a request is using right now.
Rules
1. A gref is there once. A guest may name it twice; the second time is an answer, not a crash.
2. A node stays where it is until it is erased: requests hold its index while in flight, so erase
   relinks nodes and never copies one over another.
3. A node in flight is never erased (its page would be unmapped under a running copy).
4. Never more than `cap` nodes, and no allocation after `new_tree`: free nodes form a list
   through `parent`.
Never knows: how a page is mapped, what decides that a grant should go, or how a tree is balanced
(`red_black.py`).

Memory: `tree` is a one-element TREE array and `nodes` a NODE array, shape (cap,), plain or shared
memory. Not atomic: one ring's worker uses them at a time.

Asserts guard against our own callers; nothing that a guest sends can trip one.
The tree and the cap are Linux's blkback (0a8704a51f, 2012).
"""

from typing import Final

import numpy as np

from backend.red_black import (
    BLACK,
    LEFT,
    NIL,
    RED,
    RIGHT,
    child,
    fix_black,
    fix_red,
    link,
    replace,
    smallest,
)
from common.arena import Arena
from common.compiled import kernel

PG_FULL: Final = -1
PG_DUPLICATE: Final = -2
PG_BUSY: Final = -3

CAP_MAX: Final = 1 << 24  # 64 times the handles of Xen's default maptrack (1,024 frames of 256)
GREF_MAX: Final = 0xFFFFFFFF

FREE: Final = 2  # a third colour, of nodes in the free list

TREE: Final = np.dtype(
    [
        ("root", "<i4"),
        ("free_head", "<i4"),
        ("count", "<u4"),
        ("cap", "<u4"),
        ("in_flight", "<u4"),
        ("count_max", "<u4"),  # the largest `count` there ever was
    ]
)
assert TREE.itemsize == 24

NODE: Final = np.dtype(
    [
        ("host_addr", "<u8"),
        ("gref", "<u4"),
        ("handle", "<u4"),  # maptrack handle: what the unmap will name
        ("left", "<i4"),
        ("right", "<i4"),
        ("parent", "<i4"),  # of a free node: the next free one
        ("color", "u1"),
        ("in_flight", "u1"),
        ("pad", "<u2"),
    ]
)
assert NODE.itemsize == 32  # two to a cache line


def new_tree(arena: Arena, cap: int) -> tuple[np.ndarray, np.ndarray]:
    """An empty tree for `cap` grants: a TREE array, shape (1,), and a NODE array, shape (cap,).

    With a `cap` of 0 every insert is PG_FULL: nothing is kept. Raises ValueError for a bad `cap`.
    """
    whole = isinstance(cap, int | np.integer) and not isinstance(cap, bool)
    if not whole or not 0 <= cap <= CAP_MAX:
        raise ValueError(f"cap: {cap!r} is not a whole number from 0 to {CAP_MAX}")
    tree, nodes = arena.array(1, TREE), arena.array(cap, NODE)
    tree["root"], tree["free_head"], tree["cap"] = NIL, (0 if cap else NIL), cap
    nodes["left"], nodes["right"], nodes["color"] = NIL, NIL, FREE
    nodes["parent"] = np.arange(1, cap + 1)
    nodes["parent"][-1:] = NIL
    return tree, nodes


# --- looking up -------------------------------------------------------------------------------


@kernel
def find(tree: np.ndarray, nodes: np.ndarray, gref: int) -> int:
    """The node of `gref`, or NIL (-1)."""
    node = int(tree[0]["root"])
    while node != NIL:
        here = int(nodes[node]["gref"])
        if here == gref:
            break
        node = child(nodes, node, LEFT if gref < here else RIGHT)
    return node


@kernel
def depth_of(tree: np.ndarray, nodes: np.ndarray, gref: int) -> int:
    """How many nodes `find` looks at for `gref`, whether or not it is there."""
    node = int(tree[0]["root"])
    depth = 0
    while node != NIL:
        depth += 1
        here = int(nodes[node]["gref"])
        if here == gref:
            break
        node = child(nodes, node, LEFT if gref < here else RIGHT)
    return depth


@kernel
def get(tree: np.ndarray, nodes: np.ndarray, gref: int) -> int:
    """The node of `gref`, now marked in flight; NIL (-1) if absent, PG_BUSY if already so."""
    node = find(tree, nodes, gref)
    if node == NIL:
        return node
    if nodes[node]["in_flight"] != 0:
        return PG_BUSY
    nodes[node]["in_flight"] = 1
    tree[0]["in_flight"] += 1
    return node


@kernel
def put(tree: np.ndarray, nodes: np.ndarray, node: int) -> None:
    """Clear the mark that `get` set."""
    assert 0 <= node < len(nodes), "no such node"
    assert nodes[node]["in_flight"] == 1, "put of a grant that is not in flight"
    nodes[node]["in_flight"] = 0
    tree[0]["in_flight"] -= 1


@kernel
def first(tree: np.ndarray, nodes: np.ndarray) -> int:
    """The node of the smallest gref, or NIL (-1) in an empty tree."""
    root = int(tree[0]["root"])
    return smallest(nodes, root) if root != NIL else root


# --- putting in -------------------------------------------------------------------------------


@kernel
def insert(tree: np.ndarray, nodes: np.ndarray, gref: int, host_addr: int, handle: int) -> int:
    """Keep the mapping of `gref` (u32); its node, or PG_FULL, or PG_DUPLICATE: nothing changed."""
    assert 0 <= gref <= GREF_MAX, "a gref is a u32"
    parent, side = NIL, LEFT
    below = int(tree[0]["root"])
    while below != NIL:
        here = int(nodes[below]["gref"])
        if here == gref:
            return PG_DUPLICATE
        parent, side = below, LEFT if gref < here else RIGHT
        below = child(nodes, parent, side)
    node = int(tree[0]["free_head"])
    if node == NIL:
        return PG_FULL
    tree[0]["free_head"] = nodes[node]["parent"]
    nodes[node]["gref"], nodes[node]["color"] = gref, RED
    nodes[node]["host_addr"], nodes[node]["handle"] = host_addr, handle
    link(tree, nodes, parent, side, node)
    fix_red(tree, nodes, node)
    tree[0]["count"] += 1
    tree[0]["count_max"] = max(tree[0]["count_max"], tree[0]["count"])
    return node


# --- taking out -------------------------------------------------------------------------------


@kernel
def erase(tree: np.ndarray, nodes: np.ndarray, node: int) -> None:
    """Take `node` out and free it; no other node moves. It must not be in flight."""
    assert 0 <= node < len(nodes), "no such node"
    assert nodes[node]["color"] != FREE, "erase of a free node"
    assert nodes[node]["in_flight"] == 0, "erase of a grant in flight"
    left, right = child(nodes, node, LEFT), child(nodes, node, RIGHT)
    lost = int(nodes[node]["color"])
    if NIL in (left, right):
        lacking, place = (right if left == NIL else left), int(nodes[node]["parent"])
        replace(tree, nodes, node, lacking)
    else:
        heir = smallest(nodes, right)
        lacking, place = child(nodes, heir, RIGHT), int(nodes[heir]["parent"])
        lost = int(nodes[heir]["color"])
        if place == node:
            place = heir
        else:
            link(tree, nodes, place, LEFT, lacking)
            link(tree, nodes, heir, RIGHT, right)
        replace(tree, nodes, node, heir)
        link(tree, nodes, heir, LEFT, left)
        nodes[heir]["color"] = nodes[node]["color"]
    if lost == BLACK:
        fix_black(tree, nodes, lacking, place)
    nodes[node]["left"], nodes[node]["right"], nodes[node]["color"] = NIL, NIL, FREE
    nodes[node]["parent"] = tree[0]["free_head"]
    tree[0]["free_head"] = node
    tree[0]["count"] -= 1


# --- checking ---------------------------------------------------------------------------------


def check(tree: np.ndarray, nodes: np.ndarray) -> str | None:
    """The first broken invariant, in words, or None. Reads only."""
    head = tree[0]
    if head["cap"] != len(nodes):
        return f"cap {head['cap']} but {len(nodes)} nodes"
    if not head["count"] <= head["count_max"] <= head["cap"]:
        return f"count {head['count']} <= count_max {head['count_max']} <= cap {head['cap']} fails"
    linked = np.zeros(len(nodes), bool)
    return _check_tree(head, nodes, linked) or _check_free_list(head, nodes, linked)


def _check_tree(head: np.void, nodes: np.ndarray, linked: np.ndarray) -> str | None:
    """Walk from the root, a level at a time, marking in `linked` every node met."""
    at = np.array([head["root"]] if head["root"] != NIL else [], np.int64)
    parent, parent_red = np.full(len(at), NIL), np.ones(len(at), bool)  # so the root must be black
    low, high, blacks = np.full(len(at), -1), np.full(len(at), GREF_MAX + 1), np.zeros(len(at), int)
    heights: set[int] = set()
    while len(at):
        if at.min() < 0 or at.max() >= len(nodes):
            return f"a link leads out of the array: {at.min()} ... {at.max()}"
        if linked[at].any() or len(np.unique(at)) != len(at):
            return "a node is reached twice"
        linked[at] = True
        level = nodes[at]
        if not (level["parent"] == parent).all():
            return "a parent link does not lead back"
        if (level["color"] > BLACK).any():
            return "a node of the tree is marked free"
        red = level["color"] == RED
        if (red & parent_red).any():
            return "a red node is the root or has a red parent"
        gref = level["gref"].astype(np.int64)
        if ((gref <= low) | (gref >= high)).any():
            return "grefs are out of order"
        blacks = blacks + ~red
        below = np.concatenate((level["left"], level["right"])).astype(np.int64)
        there, twice = below != NIL, np.concatenate((blacks, blacks))
        heights.update(twice[~there].tolist())
        parent, parent_red = np.tile(at, 2)[there], np.tile(red, 2)[there]
        low, high = np.concatenate((low, gref))[there], np.concatenate((gref, high))[there]
        at, blacks = below[there], twice[there]
    if len(heights) > 1:
        return f"black heights differ: {sorted(heights)}"
    if linked.sum() != head["count"]:
        return f"count {head['count']} but {linked.sum()} nodes in the tree"
    if nodes["in_flight"].max(initial=0) > 1 or nodes["in_flight"].sum() != head["in_flight"]:
        return f"in_flight {head['in_flight']} but {nodes['in_flight'].sum()} nodes marked"
    return None


def _check_free_list(head: np.void, nodes: np.ndarray, linked: np.ndarray) -> str | None:
    """Every node that is not `linked` is in the free list, once, and nothing else is."""
    follow, seen = nodes["parent"].tolist(), linked.copy()
    node = int(head["free_head"])
    while node != NIL:
        if not 0 <= node < len(nodes):
            return f"the free list leads out of the array: {node}"
        if seen[node]:
            return f"node {node} is in the tree and free, or free twice"
        seen[node] = True
        node = follow[node]
    if not seen.all():
        return f"{(~seen).sum()} nodes are neither in the tree nor free"
    free = nodes[~linked]
    if (free["color"] != FREE).any() or free["in_flight"].any():
        return "a free node is coloured or in flight"
    return None
