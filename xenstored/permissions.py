"""Permissions: who may read and write a node.

Rules: the first entry names the owner, who may do everything, and what domains not named further on
may do; domain 0 may do everything everywhere. A later entry is about the domain it names alone, and
the first that names a domain counts.

Source: Xen's `docs/misc/xenstore.txt` and `xs_lib.h`.
"""

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
    """What `domid` may do to a node with `perms`."""
    owner = perms[0]
    if privileged(domid) or owner.domid == domid:
        return _EVERYTHING
    for entry in perms[1:]:
        if entry.domid == domid:
            return entry.rights
    return owner.rights


def inherited(domid: int, perms: Permissions) -> Permissions:
    """The permissions of what `domid` creates under a node with `perms`: a guest owns it."""
    if privileged(domid):
        return perms
    return (Permission(domid, perms[0].rights), *perms[1:])


def without(domid: int, perms: Permissions) -> Permissions:
    """`perms` with no word of `domid` (who is not the owner): its number may be used again."""
    return perms[:1] + tuple(entry for entry in perms[1:] if entry.domid != domid)
