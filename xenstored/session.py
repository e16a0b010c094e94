"""One connected client: who it is, its open transactions, what waits to be sent to it.

Rules: it is the domain whose socket it came in on. A guest that does not read what it asked to be
told is cut off; domain 0 is not, see `store.py`. `closed` says why, and no more is done for it.
"""

from typing import Final

from common.xenstore_wire import MessageType, Packet, pack, pack_strings
from xenstored.outbox import Outbox
from xenstored.permissions import privileged
from xenstored.quotas import Quotas, Usage
from xenstored.refusal import Refusal
from xenstored.transactions import Transaction
from xenstored.tree import Tree

TX_ID_MAX: Final = 0xFFFFFFFF
DOMAIN_RELEASED: Final = "its domain is released"


class Session:
    """A client of `usage.domid`."""

    def __init__(self, usage: Usage, quotas: Quotas) -> None:
        self.usage = usage
        self.domid = usage.domid
        self.privileged = privileged(usage.domid)
        self.closed: str | None = None
        self.outbox = Outbox()
        self._quotas = quotas
        self._transactions: dict[int, Transaction] = {}
        self._last_tx_id = 0

    def begin(self, tree: Tree) -> int:
        """Open a transaction; returns its id. Refused (ENOSPC) over the quota."""
        if not self.privileged and self.usage.transactions >= self._quotas.transactions:
            raise Refusal("ENOSPC")
        tx_id = self._last_tx_id % TX_ID_MAX + 1  # never 0: that is "none" on the wire
        while tx_id in self._transactions:
            tx_id = tx_id % TX_ID_MAX + 1
        self._last_tx_id = tx_id
        self._transactions[tx_id] = Transaction(tree, self.domid, self._quotas)
        self.usage.transactions += 1
        return tx_id

    def transaction(self, tx_id: int) -> Transaction:
        """An open transaction. Refused (ENOENT) if there is none."""
        if tx_id not in self._transactions:
            raise Refusal("ENOENT")
        return self._transactions[tx_id]

    def end(self, tx_id: int) -> Transaction:
        """The transaction is open no longer; returns it."""
        transaction = self.transaction(tx_id)
        del self._transactions[tx_id]
        self.usage.transactions -= 1
        return transaction

    def end_all(self) -> None:
        """Discard all open transactions."""
        for tx_id in list(self._transactions):
            self.end(tx_id)

    def tell(self, path: bytes, token: bytes, charged: Usage | None) -> None:
        """Queue a watch event, at the cost of `charged`."""
        if self.closed is not None:
            return
        payload = pack_strings(path, token)
        self.outbox.event(pack(Packet(MessageType.WATCH_EVENT, 0, 0, payload)), charged)
        if not self.privileged and self.outbox.size > self._quotas.output_bytes:
            self.closed = f"{self.outbox.size} bytes wait for it and it does not read"
