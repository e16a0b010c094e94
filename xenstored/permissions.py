"""Permissions: who may read and write a node.

Rules: the first entry names the owner, who may do everything, and what domains not named further on
may do; domain 0 may do everything everywhere. A later entry is about the domain it names alone, and
the first that names a domain counts. An entry holds for one life of its domid: it remembers how
many domains of that number had been released before (`Lives`), so a release need not look for the
nodes that name the domain, and a later domain of the number inherits nothing.

Source: Xen's `docs/misc/xenstore.txt` and `xs_lib.h`; lives: `domain_adjust_node_perms` of Xen's
xenstored, which compares generations.
"""

from collections.abc import Mapping
from enum import IntFlag
from typing import Final, NamedTuple

from common.abi import DOMID_0
from xenstored.paths import parse_domid
from xenstored.refusal import Refusal


class Right(IntFlag):
    """enum xs_perm_type."""

    NONE = 0
    READ = 1
    WRITE = 2
    OWNER = 4


_EVERYTHING: Final = Right.READ | Right.WRITE | Right.OWNER
_LETTERS: Final = {
    "n": Right.NONE,
    "r": Right.READ,
    "w": Right.WRITE,
    "b": Right.READ | Right.WRITE,
}
_LETTER_OF: Final = {right: letter for letter, right in _LETTERS.items()}


class Permission(NamedTuple):
    """One entry: `rights` are the named domain's, or everybody's in an owner's entry."""

    domid: int
    rights: Right
    life: int = 0  # of the domid; see `Lives`


Lives = Mapping[int, int]  # domid: how many domains of that number have been released; 0 left out
Permissions = tuple[Permission, ...]

DOM0_ONLY: Final[Permissions] = (Permission(DOMID_0, Right.NONE),)


def privileged(domid: int) -> bool:
    """Domain 0 is above permissions and quotas: the toolstack lives there."""
    return domid == DOMID_0


def parse_permissions(entries: list[bytes]) -> Permissions:
    """Entries as the wire has them, `r5` and the like. Refuses what is none (EINVAL)."""
    if not entries:
        raise Refusal("EINVAL")
    parsed = []
    for entry in entries:
        rights = _LETTERS.get(entry[:1].decode("latin-1"))
        if rights is None:
            raise Refusal("EINVAL")
        parsed.append(Permission(parse_domid(entry[1:]), rights))
    return tuple(parsed)


def format_permissions(perms: Permissions) -> list[bytes]:
    """`parse_permissions`'s inverse, domids normalised."""
    return [f"{_LETTER_OF[entry.rights]}{entry.domid}".encode() for entry in perms]


def rights_of(domid: int, perms: Permissions) -> Right:
    """What `domid` may do to a node with `perms`, which are `alive`."""
    owner = perms[0]
    if privileged(domid) or owner.domid == domid:
        return _EVERYTHING
    for entry in perms[1:]:
        if entry.domid == domid:
            return entry.rights
    return owner.rights


def granted_now(perms: Permissions, lives: Lives) -> Permissions:
    """`perms` as they are given now: for the present life of each domain named."""
    return tuple(entry._replace(life=lives.get(entry.domid, 0)) for entry in perms)


def alive(perms: Permissions, lives: Lives) -> Permissions:
    """`perms` without a word of domains released since; domain 0 owns what was theirs."""
    if all(lives.get(domid, 0) == life for domid, _, life in perms):
        return perms
    owner, *others = perms
    if lives.get(owner.domid, 0) != owner.life:
        owner = Permission(DOMID_0, owner.rights)
    return (owner, *(entry for entry in others if lives.get(entry.domid, 0) == entry.life))


def inherited(domid: int, perms: Permissions, lives: Lives) -> Permissions:
    """The permissions of what `domid` creates under a node with `perms`: a guest owns it."""
    if privileged(domid):
        return perms
    return (Permission(domid, perms[0].rights, lives.get(domid, 0)), *perms[1:])
