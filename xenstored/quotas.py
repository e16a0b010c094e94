"""Quotas: what a guest may take of the store, and what it has taken.

Rules: domain 0 has none. A limit is checked before anything is changed. A request outside a
transaction looks at no more nodes than a transaction may. What cannot be refused (an event) is
folded, see `session.py`. A guest has one connection, so that a domain's limits are a connection's.

The most memory that a guest can make the server hold, in Python's own sizes:
  nodes, open transactions, watches     `memory`, each charged with what it takes here  3.0 MiB
  a commit whose watches are being told the paths of what the transaction changed       3.0 MiB
  events not read yet                   `output_bytes`, and one event for each watch    0.6 MiB
  answers not read yet                  `connection.py` OUTPUT_PAUSE and one more       20 KiB
  requests not served yet               one receive (16 KiB of 16-byte requests)        0.3 MiB
7 MiB together, of which the worst we have tried got 2.3 (a commit of 537 nodes with paths of 2 KB
in hand, 128 watches of 3 KB told, nothing read).

Source: the names and figures are those of Xen's xenstored (`xenstored --help`, XSA-326 and its
successors), but for `memory`, 2.5 MB there: a node takes more here. `output_bytes` is ours.
"""

from dataclasses import dataclass
from typing import Final

from xenstored.permissions import Permissions
from xenstored.refusal import Refusal

BYTES_PER_PERMISSION: Final = 8  # struct xs_permissions: domid and rights, 32 bits each


@dataclass(frozen=True)
class Quotas:
    """A guest's limits, each for the whole domain unless it says otherwise."""

    nodes: int = 1000
    node_bytes: int = 2048  # value, permissions and names of the children of one node
    permissions: int = 5  # entries of one node
    watches: int = 128
    transactions: int = 10  # open at the same time
    transaction_nodes: int = 1024  # looked at by one transaction, or by one request
    memory: int = 3 * 1024 * 1024  # of nodes, open transactions and watches
    outstanding_events: int = 64  # caused by one guest and not read by one client yet
    output_bytes: int = 64 * 1024  # of events that one client has not read yet


@dataclass(eq=False)
class Usage:
    """What a domain holds; its nodes are counted by the tree."""

    domid: int
    watches: int = 0
    transactions: int = 0
    watch_bytes: int = 0
    transaction_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory besides the nodes."""
        return self.watch_bytes + self.transaction_bytes


def check_node(quotas: Quotas, value: bytes, perms: Permissions, children: int) -> None:
    """Refuse (ENOSPC) a node over its size or its number of permissions.

    `children`: bytes of the names of its children, each with a NUL.
    """
    if len(perms) > quotas.permissions:
        raise Refusal("ENOSPC")
    if len(value) + len(perms) * BYTES_PER_PERMISSION + children > quotas.node_bytes:
        raise Refusal("ENOSPC")
