"""The nodes, by path: immutable each, so that a transaction may keep one as it was.

Owns: the nodes, who owns how many and how many bytes (`held`), whose life a domid is in (`lives`).
Rules: nothing here costs more than the nodes it is about, however deep or wide they are. A node's
generation changes with its value, its permissions and the *names* of its children, not with what
happens below them: equal generations mean that a reader would see the same.
A node is seen with the permissions that still hold; what released domains left is not.

Source: by path in one table is how Xen's xenstored (4.18 on) has them, too.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from xenstored.paths import ROOT, child, parent
from xenstored.permissions import DOM0_ONLY, Permissions, alive

# Bytes of memory that a node takes besides its path and value: measured, see `memory_of`.
NODE_BYTES: Final = 480
PERMISSION_BYTES: Final = 80
NO_CHILDREN: Final[dict[str, None]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node. `children`: their names in the order of creation; never changed in place.

    `name_bytes`: of the names of the children, each with a NUL.
    """

    value: bytes
    perms: Permissions
    children: dict[str, None]
    name_bytes: int
    generation: int

    @property
    def owner(self) -> int:
        """The owner's domid."""
        return self.perms[0].domid


@dataclass(slots=True)
class Held:
    """What a domain holds in nodes: how many, and bytes of memory."""

    nodes: int = 0
    nbytes: int = 0


def memory_of(path: str, node: Node) -> int:
    """Bytes of this server's memory that a node takes, near enough."""
    return NODE_BYTES + len(path) + len(node.value) + PERMISSION_BYTES * len(node.perms)


def subtree(get: Callable[[str], Node | None], path: str) -> Iterator[tuple[str, Node]]:
    """`path` and everything below it, parents first, as `get` finds the nodes."""
    stack = [path]
    while stack:
        at = stack.pop()
        node = get(at)
        if node is not None:
            yield at, node
            stack += [child(at, name) for name in reversed(node.children)]


class Tree:
    """The store's nodes; `apply` changes them."""

    def __init__(self) -> None:
        self.lives: dict[int, int] = {}
        self._nodes: dict[str, Node] = {}
        self._owned: dict[int, dict[str, None]] = {}
        self._nbytes: dict[int, int] = {}
        self._generations = itertools.count()
        names = {"/": "tool", "/tool": "xenstored", "/tool/xenstored": None}
        for path, name in names.items():  # what a fresh xenstored holds
            children = NO_CHILDREN if name is None else {name: None}
            size = 0 if name is None else len(name) + 1
            self.apply({path: self.make(b"", DOM0_ONLY, children, size)})

    def get(self, path: str) -> Node | None:
        """The node at `path`, or None."""
        node = self._nodes.get(path)
        return None if node is None else self._alive(node)

    def held(self, domid: int) -> Held:
        """What `domid` owns."""
        return Held(len(self._owned.get(domid, ())), self._nbytes.get(domid, 0))

    def make(
        self, value: bytes, perms: Permissions, children: dict[str, None], name_bytes: int
    ) -> Node:
        """A node of a new generation, which is nowhere yet."""
        return Node(value, perms, children, name_bytes, next(self._generations))

    def renamed(self, node: Node, came: Iterable[str] = (), went: Iterable[str] = ()) -> Node:
        """`node` with some children more and some less."""
        children = dict.fromkeys(node.children)
        name_bytes = node.name_bytes
        for name in came:
            children[name] = None
            name_bytes += len(name) + 1
        for name in went:
            del children[name]
            name_bytes -= len(name) + 1
        return self.make(node.value, node.perms, children or NO_CHILDREN, name_bytes)

    def apply(self, changes: Mapping[str, Node | None]) -> None:
        """Put the nodes of `changes` in their places; None: there is none any more."""
        for path, node in changes.items():
            old = self._nodes.get(path)
            if node is None:
                self._nodes.pop(path, None)
            else:
                self._nodes[path] = self._alive(node)
            self._account(path, old, self._nodes.get(path))

    def forget(self, domid: int) -> dict[str, Node | None]:
        """The domain's life is over: the changes (to be applied) that remove all it owned."""
        self.lives[domid] = self.lives.get(domid, 0) + 1
        gone: dict[str, Node | None] = {}

        def staying(path: str) -> Node | None:
            return None if path in gone else self.get(path)

        for path in self._owned.get(domid, ()):
            if path != ROOT:  # which is domain 0's again
                gone.update((below, None) for below, _ in subtree(staying, path))
        bereft: dict[str, list[str]] = {}
        for path in gone:
            if parent(path) not in gone:
                bereft.setdefault(parent(path), []).append(path[path.rindex("/") + 1 :])
        changes = dict(gone)
        if ROOT in self._owned.get(domid, ()):
            changes[ROOT] = self.get(ROOT)
        for above, names in bereft.items():
            node = self.get(above)
            assert node is not None
            changes[above] = self.renamed(node, went=names)
        return changes

    def _alive(self, node: Node) -> Node:
        """`node` without permissions of domains released since, also while it was on its way."""
        perms = alive(node.perms, self.lives) if self.lives else node.perms
        return node if perms is node.perms else replace(node, perms=perms)

    def _account(self, path: str, old: Node | None, new: Node | None) -> None:
        """`new` is in the place of `old`."""
        if old is not None:
            self._nbytes[old.owner] -= memory_of(path, old)
            if new is None or new.owner != old.owner:
                del self._owned[old.owner][path]
        if new is not None:
            self._nbytes[new.owner] = self._nbytes.get(new.owner, 0) + memory_of(path, new)
            if old is None or new.owner != old.owner:
                self._owned.setdefault(new.owner, {})[path] = None
        if old is not None and not self._owned[old.owner]:
            del self._owned[old.owner], self._nbytes[old.owner]
