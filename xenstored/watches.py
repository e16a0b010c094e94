"""Watches: which are set, and which of them an event concerns.

Rules: an event concerns the watches on its path and on everything above it. Finding them costs the
paths' depth once for all events of one request (`Above`), and what is found. When a node went with
its parent, only watches set on exactly that node are told, as the parent's own event tells the
rest. Whoever is told must have been able to read the node before or after, or be able to read its
parent.

Source: Xen's `docs/misc/xenstore.txt`; the permission rule is that of XSA-115.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from xenstored.paths import ROOT, SPECIAL, parent
from xenstored.permissions import Lives, Permissions, Right, alive, rights_of
from xenstored.refusal import Refusal
from xenstored.tree import Node

Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened at `path`; whoever may read by one of `readable` may know."""

    path: str
    readable: tuple[Permissions, ...]
    exact: bool = False

    def known_to(self, domid: int, lives: Lives) -> bool:
        """May `domid` be told?"""
        return any(rights_of(domid, alive(perms, lives)) & Right.READ for perms in self.readable)


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
        self._by_path: dict[str, dict[Owner, dict[bytes, Watch[Owner]]]] = {}
        self._by_owner: dict[Owner, dict[tuple[str, bytes], Watch[Owner]]] = {}

    def check_new(self, watch: Watch[Owner]) -> None:
        """Refuse (EEXIST) what its owner has set already, path and token."""
        if (watch.path, watch.token) in self._by_owner.get(watch.owner, {}):
            raise Refusal("EEXIST")

    def add(self, watch: Watch[Owner]) -> None:
        """Set `watch`, which `check_new` has let pass."""
        here = self._by_path.setdefault(watch.path, {})
        here.setdefault(watch.owner, {})[watch.token] = watch
        self._by_owner.setdefault(watch.owner, {})[watch.path, watch.token] = watch

    def remove(self, owner: Owner, path: str, token: bytes) -> Watch[Owner]:
        """Take a watch back. Refuses (ENOENT) what is not set."""
        mine = self._by_owner.get(owner, {})
        watch = mine.pop((path, token), None)
        if watch is None:
            raise Refusal("ENOENT")
        if not mine:
            del self._by_owner[owner]
        here = self._by_path[path]
        del here[owner][token]
        if not here[owner]:
            del here[owner]
        if not here:
            del self._by_path[path]
        return watch

    def of(self, owner: Owner) -> list[Watch[Owner]]:
        """The watches that `owner` has set."""
        return list(self._by_owner.get(owner, {}).values())

    def may_match(self, event: Event) -> bool:
        """Could any watch be told of `event`?"""
        return not event.exact or event.path in self._by_path

    def concerned(self, event: Event, above: "Above") -> Iterator[list[Watch[Owner]]]:
        """The watches that `event` matches, by place and owner: one owner's in each list.

        What changes while this is iterated may or may not be in it.
        """
        if event.exact or event.path.startswith(SPECIAL):
            places: Iterable[str] = (event.path,)
        else:
            places = above.places(event.path, self._by_path)
        for place in places:
            for watches in list(self._by_path.get(place, {}).values()):
                yield list(watches.values())


class Above:
    """The watched places on and above paths, for the events of one request.

    A path's places are its own and its parent's, so each node on the way up is climbed to once.
    """

    def __init__(self) -> None:
        self._of: dict[str, _Places] = {}

    def places(self, path: str, watched: Container[str]) -> Iterator[str]:
        """Those of `watched` on or above `path`, nearest first."""
        climbed = []
        at = path
        while at not in self._of:
            climbed.append(at)
            if at == ROOT:
                break
            at = parent(at)
        found = self._of.get(at)
        for step in reversed(climbed):
            found = (step, found) if step in watched else found
            self._of[step] = found
        while found is not None:
            yield found[0]
            found = found[1]


_Places = tuple[str, "_Places"] | None  # a watched path, and those above it


def events(
    before: Mapping[str, Node | None],
    get: Callable[[str], Node | None],
    told: Iterable[str],
) -> Iterator[Event]:
    """What to tell of the nodes at `told`. `before`: all changed nodes as they were; `get`: now."""
    for path in told:
        old, new = before[path], get(path)
        if old is None and new is None:
            continue  # made and removed in one transaction
        above = get(parent(path))
        gone_with_parent = new is None and above is None
        above = above or before.get(parent(path))
        nodes = [node for node in (old, new, above) if node is not None]
        yield Event(path, tuple(node.perms for node in nodes), gone_with_parent)
