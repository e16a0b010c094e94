"""What one domain may do to the nodes: permissions, quotas and Xen's errors.

Owns: read, directory, get_perms, write, mkdir, rm, set_perms; each node as it was when it was first
looked at, and each as it is to be. Nothing is changed in the tree before `changed` is applied to it
(`store.py`, `transactions.py`): a request outside a transaction is one of its own.
Rules: an operation that is refused has changed nothing. Whoever may not look at a node's
surroundings does not learn from the error whether it exists: ENOENT becomes EACCES.
"""

from collections.abc import Mapping

from xenstored.paths import ROOT, parent
from xenstored.permissions import (
    Permissions,
    Right,
    granted_now,
    inherited,
    privileged,
    rights_of,
)
from xenstored.quotas import Quotas, Usage, check_node
from xenstored.refusal import Refusal
from xenstored.tree import NO_CHILDREN, Held, Node, Tree, memory_of, subtree


class Access:
    """`usage.domid`'s way to `tree`. `seen`: each node that an answer depended on (None: there was
    none). `changed`: each node that is to differ. `told`: those that watches are to be told of.
    """

    def __init__(self, tree: Tree, usage: Usage, quotas: Quotas) -> None:
        self.tree, self.usage, self.domid, self._quotas = tree, usage, usage.domid, quotas
        self._free = privileged(usage.domid)
        self.seen: dict[str, Node | None] = {}
        self.changed: dict[str, Node | None] = {}
        self.told: dict[str, None] = {}
        self._gained: dict[int, Held] = {}  # by owner, by all of `changed`

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
            check_node(self._quotas, value, node.perms, node.name_bytes)
        self._put(path, self.tree.make(value, node.perms, node.children, node.name_bytes))

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
        above = self._look(parent(path))
        changes: dict[str, Node | None] = {at: None for at, _ in subtree(self._look, path)}
        told = list(changes)
        name = path[path.rindex("/") + 1 :]
        # Without its parent, or not its child: others changed the tree since, and the transaction
        # will be refused at its end.
        if above is not None and name in above.children:
            changes[parent(path)] = self.tree.renamed(above, went=[name])
        self._change(changes, told)

    def set_perms(self, path: str, perms: Permissions) -> None:
        """Replace the permissions of `path`: for its owner, who cannot give it away."""
        node = self._existing(path, Right.WRITE | Right.OWNER)
        if not self._free:
            if perms[0].domid != node.owner:
                raise Refusal("EPERM")
            check_node(self._quotas, node.value, perms, node.name_bytes)
        perms = granted_now(perms, self.tree.lives)
        self._put(path, self.tree.make(node.value, perms, node.children, node.name_bytes))

    def check_quotas(self, more: Mapping[int, Held]) -> None:
        """Refuse (ENOSPC, ENOMEM) if a guest would then own more nodes or bytes than it may."""
        if self._free:
            return
        for owner, held in more.items():
            if privileged(owner):
                continue
            now = self.tree.held(owner)
            if held.nodes > 0 and now.nodes + held.nodes > self._quotas.nodes:
                raise Refusal("ENOSPC")
            if held.nbytes > 0:
                besides = self._besides() if owner == self.domid else 0
                if now.nbytes + held.nbytes + besides > self._quotas.memory:
                    raise Refusal("ENOMEM")

    def _besides(self) -> int:
        """Bytes of memory that the domain is charged with besides nodes and these changes."""
        return self.usage.nbytes

    def _look(self, path: str) -> Node | None:
        """Get a node and remember that the outcome depends on it."""
        node = self._peek(path)
        if path not in self.seen:
            self._note(path, node)
        return node

    def _peek(self, path: str) -> Node | None:
        """What is at `path` for whoever has seen and changed what we have."""
        for mine in (self.changed, self.seen):
            if path in mine:
                return mine[path]
        return self.tree.get(path)

    def _note(self, path: str, node: Node | None) -> None:
        """`node` is what was at `path` when it was first looked at."""
        self._check_nodes(1)
        self.seen[path] = node

    def _check_nodes(self, more: int) -> None:
        """Refuse (ENOSPC) to keep that many nodes more in mind."""
        if not self._free and len(self.seen) + more > self._quotas.transaction_nodes:
            raise Refusal("ENOSPC")

    def _permitted(self, path: str, wanted: Right) -> Node | None:
        """The node at `path`, None if there is none; refused where `wanted` is not granted."""
        node = self._look(path)
        if node is not None:
            if rights_of(self.domid, node.perms) & wanted != wanted:
                raise Refusal("EACCES")
            return node
        _, nearest, _ = self._nearest(path)
        if not rights_of(self.domid, nearest.perms) & wanted:
            raise Refusal("EACCES")
        return None

    def _nearest(self, path: str) -> tuple[str, Node, list[str]]:
        """The nearest node above `path`, which is missing, and what is missing from there down.

        It alone is noted: as long as its children have the same names, nothing is below them.
        """
        missing = [path]
        while True:
            above = parent(missing[-1])
            node = self._peek(above)
            if node is not None:
                self._look(above)
                return above, node, missing[::-1]
            assert above != ROOT, "the root is always there"
            missing.append(above)

    def _existing(self, path: str, wanted: Right) -> Node:
        node = self._permitted(path, wanted)
        if node is None:
            raise Refusal("ENOENT")
        return node

    def _create(self, path: str, value: bytes) -> None:
        above, nearest, missing = self._nearest(path)
        perms = inherited(self.domid, nearest.perms, self.tree.lives)
        names = [new[new.rindex("/") + 1 :] for new in missing]
        if not self._free:
            sizes = [len(name) + 1 for name in names]
            check_node(self._quotas, value, perms, 0)
            for size in sizes[1:]:
                check_node(self._quotas, b"", perms, size)
            check_node(self._quotas, nearest.value, nearest.perms, nearest.name_bytes + sizes[0])
        changes: dict[str, Node | None] = {above: self.tree.renamed(nearest, came=names[:1])}
        for new, name in zip(missing, names[1:], strict=False):
            changes[new] = self.tree.make(b"", perms, {name: None}, len(name) + 1)
        changes[path] = self.tree.make(value, perms, NO_CHILDREN, 0)
        self._change(changes, [path])

    def _put(self, path: str, node: Node) -> None:
        self._change({path: node}, [path])

    def _change(self, changes: Mapping[str, Node | None], told: list[str]) -> None:
        """All of `changes`, or none of them if a quota refuses."""
        unseen = [path for path in changes if path not in self.seen]
        self._check_nodes(len(unseen))
        gained = {owner: Held(held.nodes, held.nbytes) for owner, held in self._gained.items()}
        for path, node in changes.items():
            old = self._peek(path)
            for version, sign in ((old, -1), (node, +1)):
                if version is not None:
                    held = gained.setdefault(version.owner, Held())
                    held.nodes += sign
                    held.nbytes += sign * memory_of(path, version)
        self.check_quotas(gained)
        self._gained = gained
        for path in unseen:
            self.seen[path] = None  # missing, as what is nearest above it says
        self.changed.update(changes)
        self.told.update(dict.fromkeys(told))
