"""What one domain may do to the nodes of a tree: permissions, quotas and Xen's errors.

Owns: read, directory, get_perms, write, mkdir, rm, set_perms; a note of each node looked at and of
each changed. The same code works on the store's tree and on a transaction's copy of it.
Rules: an operation that is refused has changed nothing. Whoever may not look at a node's
surroundings does not learn from the error whether it exists: ENOENT becomes EACCES.
"""

from xenstored.paths import ROOT, ancestors, names, parent
from xenstored.permissions import (
    Permissions,
    Right,
    inherited,
    privileged,
    rights_of,
)
from xenstored.quotas import Quotas, check_node, name_bytes
from xenstored.refusal import Refusal
from xenstored.tree import Node, Tree, subtree


class Access:
    """`domid`'s way to `tree`. `seen`: the generation of each node that an answer depended on
    (None: there was none). `changed`: each node that differs, and whether watches are told of it.
    """

    def __init__(self, tree: Tree, domid: int, quotas: Quotas) -> None:
        self.tree, self.domid, self._quotas = tree, domid, quotas
        self._free = privileged(domid)
        self.seen: dict[str, int | None] = {}
        self.changed: dict[str, bool] = {}

    def read(self, path: str) -> bytes:
        """The value at `path`."""
        return self._existing(path, Right.READ).value

    def directory(self, path: str) -> tuple[list[str], int]:
        """The names under `path`, in the order they were made, and the node's generation."""
        node = self._existing(path, Right.READ)
        return list(node.children), node.generation

    def get_perms(self, path: str) -> Permissions:
        """The permissions of `path`."""
        return self._existing(path, Right.READ).perms

    def write(self, path: str, value: bytes) -> None:
        """Set the value at `path`, making it and its parents if they are not there."""
        node = self._permitted(path, Right.WRITE)
        if node is None:
            self._create(path, value)
            return
        if not self._free:
            check_node(self._quotas, value, node.perms, name_bytes(node))
        self._put(path, value, node.perms)

    def mkdir(self, path: str) -> None:
        """Make `path` and its parents; one that is there stays as it is."""
        if self._permitted(path, Right.WRITE) is None:
            self._create(path, b"")

    def rm(self, path: str) -> None:
        """Remove `path` and all below it. It need not exist, but its parent must."""
        if self._permitted(path, Right.WRITE) is None:
            if self._look(parent(path)) is None:
                raise Refusal("ENOENT")
            return
        if path == ROOT:
            raise Refusal("EINVAL")
        self._look(parent(path))
        doomed = list(subtree(self.tree.root, path))
        for below, node in doomed:
            self._note(below, node)
        self.changed.update((below, True) for below, _ in doomed)
        self.tree.remove(path)

    def set_perms(self, path: str, perms: Permissions) -> None:
        """Replace the permissions of `path`: for its owner, who cannot give it away."""
        node = self._existing(path, Right.WRITE | Right.OWNER)
        if not self._free:
            if perms[0].domid != node.owner:
                raise Refusal("EPERM")
            check_node(self._quotas, node.value, perms, name_bytes(node))
        self._put(path, node.value, perms)

    def _look(self, path: str) -> Node | None:
        """Get a node and remember that the outcome depends on it."""
        node = self.tree.get(path)
        self._note(path, node)
        return node

    def _note(self, path: str, node: Node | None) -> None:
        """`node` is what is at `path`. Nothing is changed before it is noted, so the first note is
        of the node as it was in the beginning.
        """
        self.seen.setdefault(path, None if node is None else node.generation)

    def _permitted(self, path: str, wanted: Right) -> Node | None:
        """The node at `path`, None if there is none; refused where `wanted` is not granted."""
        node = self._look(path)
        if node is not None:
            if rights_of(self.domid, node.perms) & wanted != wanted:
                raise Refusal("EACCES")
            return node
        for above in ancestors(path):
            nearest = self._look(above)
            if nearest is not None:
                if not rights_of(self.domid, nearest.perms) & wanted:
                    raise Refusal("EACCES")
                return None
        raise AssertionError("the root is always there")

    def _existing(self, path: str, wanted: Right) -> Node:
        node = self._permitted(path, wanted)
        if node is None:
            raise Refusal("ENOENT")
        return node

    def _create(self, path: str, value: bytes) -> None:
        missing = [path]
        for above in ancestors(path):
            nearest = self._look(above)
            if nearest is not None:
                break
            missing.append(above)
        assert nearest is not None
        perms = inherited(self.domid, nearest.perms)
        if not self._free:
            self._check_creation(missing, nearest, value, perms)
        for new in reversed(missing):
            self.changed.setdefault(new, False)
        self._put(path, value, perms)

    def _check_creation(
        self, missing: list[str], nearest: Node, value: bytes, perms: Permissions
    ) -> None:
        """Refuse a creation that breaks a quota anywhere; `missing` leads from the leaf upwards."""
        if self.tree.owned(self.domid) + len(missing) > self._quotas.nodes:
            raise Refusal("ENOSPC")
        name_sizes = [len(names(path)[-1]) + 1 for path in missing]
        check_node(self._quotas, value, perms, 0)
        for size in name_sizes[:-1]:
            check_node(self._quotas, b"", perms, size)
        check_node(self._quotas, nearest.value, nearest.perms, name_bytes(nearest) + name_sizes[-1])

    def _put(self, path: str, value: bytes, perms: Permissions) -> None:
        self.changed[path] = True
        self.tree.put(path, value, perms)
