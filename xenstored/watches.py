"""Watches: which are set, and which of them an event concerns.

Rules: an event concerns the watches on its path and on everything above it, so finding them costs
the path's depth, however many watches there are. When a node went with its parent, only watches set
on exactly that node are told, as the parent's own event tells the rest. Whoever is told must have
been able to read the node before or after, or be able to read its parent.

Source: Xen's `docs/misc/xenstore.txt`; the permission rule is that of XSA-115.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from xenstored.paths import SPECIAL, ancestors, parent
from xenstored.permissions import Permissions, Right, rights_of
from xenstored.refusal import Refusal
from xenstored.tree import Node, find

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened at `path`; whoever may read by one of `readable` may know."""

    path: str
    readable: tuple[Permissions, ...]
    exact: bool = False

    def known_to(self, domid: int) -> bool:
        """May `domid` be told?"""
        return any(rights_of(domid, perms) & Right.READ for perms in self.readable)


@dataclass(frozen=True, slots=True, eq=False)
class Watch(Generic[Owner]):
    """One registered watch. `base`: what its owner leaves out of paths (it gave a relative one)."""

    owner: Owner
    path: str
    token: bytes
    base: str

    def shown(self, path: str) -> bytes:
        """`path` as the owner of this watch spells it."""
        return path[len(self.base) :].encode("latin-1")


class Watches(Generic[Owner]):
    """All watches, by path and by owner, in the order they were set."""

    def __init__(self) -> None:
        self._by_path: dict[str, dict[tuple[Owner, bytes], Watch[Owner]]] = {}
        self._by_owner: dict[Owner, dict[tuple[str, bytes], Watch[Owner]]] = {}

    def check_new(self, watch: Watch[Owner]) -> None:
        """Refuse (EEXIST) what its owner has set already, path and token."""
        if (watch.path, watch.token) in self._by_owner.get(watch.owner, {}):
            raise Refusal("EEXIST")

    def add(self, watch: Watch[Owner]) -> None:
        """Set `watch`, which `check_new` has let pass."""
        self._by_path.setdefault(watch.path, {})[watch.owner, watch.token] = watch
        self._by_owner.setdefault(watch.owner, {})[watch.path, watch.token] = watch

    def remove(self, owner: Owner, path: str, token: bytes) -> None:
        """Take a watch back. Refuses (ENOENT) what is not set."""
        mine = self._by_owner.get(owner, {})
        if mine.pop((path, token), None) is None:
            raise Refusal("ENOENT")
        if not mine:
            del self._by_owner[owner]
        here = self._by_path[path]
        del here[owner, token]
        if not here:
            del self._by_path[path]

    def count(self, owner: Owner) -> int:
        """How many watches `owner` has."""
        return len(self._by_owner.get(owner, {}))

    def drop(self, owner: Owner) -> None:
        """Take all watches of `owner` back."""
        for path, token in list(self._by_owner.get(owner, {})):
            self.remove(owner, path, token)

    def concerned(self, event: Event) -> Iterator[Watch[Owner]]:
        """The watches that `event` matches, whoever's they are."""
        places = [event.path]
        if not event.exact and not event.path.startswith(SPECIAL):
            places += ancestors(event.path)
        for place in places:
            yield from self._by_path.get(place, {}).values()


def events(before: Node, after: Node, changed: Iterable[str]) -> Iterator[Event]:
    """What to tell of the nodes at `changed`, between two roots of the tree."""
    for path in changed:
        old, new = find(before, path), find(after, path)
        if old is None and new is None:
            continue  # made and removed in one transaction
        above = find(after, parent(path))
        gone_with_parent = new is None and above is None
        above = above or find(before, parent(path))
        nodes = [node for node in (old, new, above) if node is not None]
        yield Event(path, tuple(node.perms for node in nodes), gone_with_parent)
