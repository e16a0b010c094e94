"""One connected client: who it is, its open transactions, what waits to be sent to it.

Rules: it is the domain whose connection it is. Nobody waits for a client that does not read, and
nothing is kept from it: while a guest's events in its outbox are at their limit, or all of them
are, a further one is *folded*: the watch's own path is told, once until it is sent ("something
happened there"). Watches may fire spuriously, so a client looks after what it watches either way.
Xen forgets events instead (those over the memory quota, or not read for 20 s).
`closed` says why no more is done for a client.
"""

from typing import Final

from common.xenstore_wire import MessageType, Packet, pack, pack_strings
from xenstored.outbox import Outbox
from xenstored.permissions import privileged
from xenstored.quotas import Quotas, Usage
from xenstored.refusal import Refusal
from xenstored.transactions import Transaction
from xenstored.tree import Tree
from xenstored.watches import Watch

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
        self._transactions[tx_id] = Transaction(tree, self.usage, self._quotas)
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
        transaction.end()
        return transaction

    def end_all(self) -> None:
        """Discard all open transactions."""
        for tx_id in list(self._transactions):
            self.end(tx_id)

    def tell(self, watch: "Watch[Session]", path: str, cause: int | None) -> None:
        """Queue an event of `watch`, caused by a guest or by None that is accounted for."""
        if self.closed is not None or watch in self.outbox.folded:
            return
        full = self.outbox.size >= self._quotas.output_bytes
        if cause is not None:
            full |= self.outbox.caused[cause] >= self._quotas.outstanding_events
        payload = pack_strings(watch.shown(watch.path if full else path), watch.token)
        data = pack(Packet(MessageType.WATCH_EVENT, 0, 0, payload))
        if full:
            self.outbox.fold(data, watch)
        else:
            self.outbox.event(data, cause)
