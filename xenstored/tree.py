"""The tree of nodes: immutable nodes, so that a snapshot is a reference to the root.

Rules: a change makes new nodes from the changed one up to the root and leaves all others shared. A
node's generation changes with its value, its permissions and the *names* of its children, not with
what happens below them: equal generations mean that a reader would see the same.
Nothing here recurses: a path within the limits can be 1,500 nodes deep, and a guest chooses it.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from xenstored.paths import ROOT, child, names
from xenstored.permissions import DOM0_ONLY, Permissions


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node. `children` keeps the order of creation and is never changed in place."""

    value: bytes
    perms: Permissions
    children: "dict[str, Node]"
    generation: int

    @property
    def owner(self) -> int:
        """The owner's domid."""
        return self.perms[0].domid


def find(root: Node, path: str) -> Node | None:
    """The node at `path` under `root`, or None."""
    node: Node | None = root
    for name in names(path):
        if node is None:
            return None
        node = node.children.get(name)
    return node


def subtree(root: Node, path: str) -> Iterator[tuple[str, Node]]:
    """`path` and everything below it, parents first."""
    node = find(root, path)
    stack = [] if node is None else [(path, node)]
    while stack:
        at, node = stack.pop()
        yield at, node
        stack += [(child(at, name), below) for name, below in reversed(node.children.items())]


class Tree:
    """A root that moves from version to version, and how many nodes each domain owns in it."""

    def __init__(self, root: Node, owned: dict[int, int], generations: Iterator[int]) -> None:
        self.root = root
        self._owned = owned
        self._generations = generations  # shared with all snapshots: never the same number twice

    @classmethod
    def new(cls) -> "Tree":
        """What a fresh xenstored holds."""
        generations = itertools.count()
        root = Node(b"", DOM0_ONLY, {}, next(generations))
        tree = cls(root, {root.owner: 1}, generations)
        tree.put("/tool", b"", DOM0_ONLY)
        tree.put("/tool/xenstored", b"", DOM0_ONLY)
        return tree

    def snapshot(self) -> "Tree":
        """A tree that starts as this one is now and goes its own way."""
        return Tree(self.root, dict(self._owned), self._generations)

    def get(self, path: str) -> Node | None:
        """The node at `path`, or None."""
        return find(self.root, path)

    def owned(self, domid: int) -> int:
        """How many nodes `domid` owns."""
        return self._owned.get(domid, 0)

    def put(self, path: str, value: bytes, perms: Permissions) -> None:
        """Create or change the node at `path`; missing parents get `perms` too, and no value."""
        way = names(path)
        above = [self.root]
        for name in way[:-1]:
            node = above[-1].children.get(name)
            if node is None:
                node = self._make(b"", perms, {})
            above.append(node)
        old = above[-1].children.get(way[-1]) if way else self.root
        if old is not None:
            self._count(old.owner, -1)
        self._rebuild(above, way, self._make(value, perms, {} if old is None else old.children))

    def remove(self, path: str) -> None:
        """Remove the node at `path`, which must exist and not be the root, and all below it."""
        assert path != ROOT
        for _, node in subtree(self.root, path):
            self._count(node.owner, -1)
        way = names(path)
        above = [self.root]
        for name in way[:-1]:
            above.append(above[-1].children[name])
        self._rebuild(above, way, None)

    def _make(self, value: bytes, perms: Permissions, children: dict[str, Node]) -> Node:
        node = Node(value, perms, children, next(self._generations))
        self._count(node.owner, +1)
        return node

    def _count(self, domid: int, change: int) -> None:
        left = self.owned(domid) + change
        self._owned[domid] = left
        if left == 0:
            del self._owned[domid]

    def _rebuild(self, above: list[Node], way: list[str], changed: Node | None) -> None:
        """Make the nodes `above` anew, the root first, with `changed` (None: nothing) at their end.

        `way`: the names that lead down, one for each of `above`; none if the root itself changed.
        """
        for node, name in zip(reversed(above), reversed(way), strict=False):
            children = dict(node.children)
            renamed = changed is None or name not in children
            if changed is None:
                del children[name]
            else:
                children[name] = changed
            generation = next(self._generations) if renamed else node.generation
            changed = replace(node, children=children, generation=generation)
        assert changed is not None
        self.root = changed
