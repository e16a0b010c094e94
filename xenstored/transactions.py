"""Transactions: nodes as they were when first looked at, and the question at the end whether they
still are.

Rules: a transaction is refused at its end (EAGAIN) if any node that one of its answers depended on,
missing ones too, has another generation by now. Whatever it changed it has looked at first, so what
is then put into the store meets no surprise there. Nobody sees anything before.
It holds no copy of the store: a node not looked at yet is seen as it is, later ones always as then.
What it holds is charged to its domain until it ends.

Source: Xen's `docs/misc/xenstore.txt` and the notes at the head of `xenstored_transaction.c`.
"""

from collections.abc import Mapping
from typing import Final

from xenstored.access import Access
from xenstored.refusal import Refusal
from xenstored.tree import Node, memory_of

SEEN_BYTES: Final = 250  # of memory, for a node kept in mind: besides its path, and it


class Transaction(Access):
    """An open transaction; `end` it in any case."""

    _nbytes = 0  # charged

    def commit(self) -> None:
        """Is all still as seen? Refused with EAGAIN (conflict), ENOSPC or ENOMEM (quota).

        If not refused, `changed` is what to apply to the tree.
        """
        for path, node in self.seen.items():
            now = self.tree.get(path)
            if (now and now.generation) != (node and node.generation):
                raise Refusal("EAGAIN")
        self.check_quotas(self._gained)

    def end(self) -> None:
        """Nothing is charged any more."""
        self.usage.transaction_bytes -= self._nbytes
        self._nbytes = 0

    def _note(self, path: str, node: Node | None) -> None:
        self._check_nodes(1)
        self._charge(SEEN_BYTES + (len(path) if node is None else memory_of(path, node)))
        self.seen[path] = node

    def _change(self, changes: Mapping[str, Node | None], told: list[str]) -> None:
        more = 0
        for path, node in changes.items():
            was = self.changed.get(path)
            more += memory_of("", node) if node is not None else 0
            more -= memory_of("", was) if was is not None else 0
            more += SEEN_BYTES + len(path) if path not in self.seen else 0
        self._charge(more)
        try:
            super()._change(changes, told)
        except Refusal:
            self._charge(-more)
            raise

    def _besides(self) -> int:
        return super()._besides() - self._nbytes

    def _charge(self, nbytes: int) -> None:
        """Refuse (ENOMEM) to hold more than the domain may."""
        held = self.tree.held(self.domid).nbytes + self.usage.nbytes
        if not self._free and nbytes > 0 and held + nbytes > self._quotas.memory:
            raise Refusal("ENOMEM")
        self._nbytes += nbytes
        self.usage.transaction_bytes += nbytes
