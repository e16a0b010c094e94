"""The red-black tree of a ring's persistent grants, decoded and drawn as text.

Owns: how the nodes are walked. A running ring changes its tree while it is copied: a link that
leads nowhere, or back, ends the walk there and is shown.
Source: `backend/persistent_grants.py`.
"""

from typing import Final, NamedTuple

import numpy as np

NIL: Final = -1
COLOURS: Final = ("red", "black")
SHOWN_MAX: Final = 64  # nodes of a tree as text; all of them are in it


class Node(NamedTuple):
    """depth: of the root 0; rank: its place in the order of grefs; side: "left", "right" or ""."""

    gref: int
    colour: str
    depth: int
    rank: int
    side: str
    parent: int | None
    in_flight: bool
    host_addr: int
    handle: int


class Tree(NamedTuple):
    """nodes: in the order of their grefs; a node's parent is a place there. torn: a link failed."""

    nr_nodes: int
    cap: int
    in_flight: int
    nodes: tuple[Node, ...]
    torn: bool

    @property
    def height(self) -> int:
        """Levels."""
        return max((node.depth + 1 for node in self.nodes), default=0)

    def __str__(self) -> str:
        head = (
            f"{self.nr_nodes} of at most {self.cap} grants are kept, {self.in_flight} in flight;"
            f" {self.height} levels"
        )
        lines = [head, *(["it changed while it was copied"] if self.torn else [])]
        if len(self.nodes) > SHOWN_MAX:
            lines.append(f"its {SHOWN_MAX} smallest grefs:")
        lines += [_line(node) for node in self.nodes[:SHOWN_MAX]]
        return "\n".join(lines)


def _line(node: Node) -> str:
    """The tree on its side: the root is leftmost, and what is smaller is above."""
    branch = {"left": "/-- ", "right": "\\-- ", "": ""}[node.side]
    mark = " in flight" if node.in_flight else ""
    return f"{'    ' * max(node.depth - 1, 0)}{branch}{node.gref} {node.colour}{mark}"


def tree(head: np.ndarray, nodes: np.ndarray) -> Tree:
    """Decode copies of a tree's head (TREE, shape (1,)) and nodes (NODE)."""
    walk = _Walk(nodes)
    walk.below(int(head["root"][0]), 0, "", NIL)
    places = {index: place for place, (index, *_) in enumerate(walk.found)}
    return Tree(
        int(head["count"][0]),
        int(head["cap"][0]),
        int(head["in_flight"][0]),
        tuple(
            Node(
                int(nodes["gref"][index]),
                COLOURS[nodes["color"][index]] if nodes["color"][index] < 2 else "free?",
                depth,
                place,
                side,
                places.get(parent),
                bool(nodes["in_flight"][index]),
                int(nodes["host_addr"][index]),
                int(nodes["handle"][index]),
            )
            for place, (index, depth, side, parent) in enumerate(walk.found)
        ),
        walk.torn,
    )


class _Walk:
    """In the order of keys; found: (index, depth, side, parent's index)."""

    def __init__(self, nodes: np.ndarray) -> None:
        self._left, self._right = nodes["left"].tolist(), nodes["right"].tolist()
        self._seen = [False] * len(nodes)
        self.found: list[tuple[int, int, str, int]] = []
        self.torn = False

    def below(self, index: int, depth: int, side: str, parent: int) -> None:
        """All of the subtree at `index`. A red-black tree of 2^24 nodes has 48 levels at most."""
        if index == NIL:
            return
        if not 0 <= index < len(self._seen) or self._seen[index] or depth > 64:
            self.torn = True
            return
        self._seen[index] = True
        self.below(self._left[index], depth + 1, "left", index)
        self.found.append((index, depth, side, parent))
        self.below(self._right[index], depth + 1, "right", index)
