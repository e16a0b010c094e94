"""Transactions: a copy of the tree to work on, and the question at the end whether it still holds.

Rules: a transaction is refused at its end (EAGAIN) if any node that one of its answers depended on,
missing ones too, has another generation by now. Whatever it changed it has looked at first, so what
is then carried over to the store meets no surprise there. Nobody sees anything before.

Source: Xen's `docs/misc/xenstore.txt`; the unit of conflict is a node, as since Xen 4.9.
"""

from xenstored.access import Access
from xenstored.permissions import privileged
from xenstored.quotas import Quotas
from xenstored.refusal import Refusal
from xenstored.tree import Node, Tree


class Transaction(Access):
    """An open transaction of `domid`, begun on `tree` as it is now."""

    def __init__(self, tree: Tree, domid: int, quotas: Quotas) -> None:
        super().__init__(tree.snapshot(), domid, quotas)
        self._owned_before = tree.owned(domid)

    def _note(self, path: str, node: Node | None) -> None:
        full = len(self.seen) >= self._quotas.transaction_nodes
        if full and path not in self.seen and not privileged(self.domid):
            raise Refusal("ENOSPC")
        super()._note(path, node)

    def commit(self, tree: Tree) -> None:
        """Carry the changes over to `tree`. Refused with EAGAIN (conflict) or ENOSPC (quota)."""
        for path, generation in self.seen.items():
            node = tree.get(path)
            if (None if node is None else node.generation) != generation:
                raise Refusal("EAGAIN")
        gained = self.tree.owned(self.domid) - self._owned_before
        over = tree.owned(self.domid) + gained > self._quotas.nodes
        if gained > 0 and over and not privileged(self.domid):
            raise Refusal("ENOSPC")
        # In the order of first change, so a parent is there before its children.
        for path in self.changed:
            node = self.tree.get(path)
            if node is not None:
                tree.put(path, node.value, node.perms)
            elif tree.get(path) is not None:
                tree.remove(path)
