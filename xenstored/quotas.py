"""Quotas: what a guest may take of the store, and what it has taken.

Rules: domain 0 has none. A limit is checked before anything is changed. What cannot be refused (an
event) is charged to whoever caused it, see `outbox.py`.

Source: the names and most figures are those of Xen's xenstored (`xenstored --help`, XSA-326 and its
successors); connections and bytes of output are ours, since a guest talks over sockets here.
"""

from dataclasses import dataclass
from typing import Final

from xenstored.permissions import Permissions
from xenstored.refusal import Refusal
from xenstored.tree import Node

BYTES_PER_PERMISSION: Final = 8  # struct xs_permissions: domid and rights, 32 bits each


@dataclass(frozen=True)
class Quotas:
    """A guest's limits, each for the whole domain unless it says otherwise."""

    nodes: int = 1000
    node_bytes: int = 2048  # value, permissions and names of the children of one node
    permissions: int = 5  # entries of one node
    watches: int = 128
    transactions: int = 10  # open at the same time
    transaction_nodes: int = 1024  # looked at by one transaction
    connections: int = 16
    outstanding_events: int = 64  # caused in domain 0 and not read there yet
    output_bytes: int = 256 * 1024  # of one connection, not read yet


@dataclass(eq=False)
class Usage:
    """What a domain holds; its nodes are counted by the tree."""

    domid: int
    connections: int = 0
    watches: int = 0
    transactions: int = 0
    outstanding_events: int = 0


def check_node(quotas: Quotas, value: bytes, perms: Permissions, children: int) -> None:
    """Refuse (ENOSPC) a node over its size or its number of permissions.

    `children`: bytes of the names of its children, each with a NUL.
    """
    if len(perms) > quotas.permissions:
        raise Refusal("ENOSPC")
    if len(value) + len(perms) * BYTES_PER_PERMISSION + children > quotas.node_bytes:
        raise Refusal("ENOSPC")


def name_bytes(node: Node) -> int:
    """Bytes of the names of the children of `node`, each with a NUL."""
    return sum(len(name) + 1 for name in node.children)
