"""The store: the tree, its watches, the domains, and who is told of what.

Owns: the state that all clients share, and the order of things: a change is made, then told.
Rules: an event that a guest causes in a client of domain 0 is charged to that guest until it is
sent, and a guest with too many of them is not served: domain 0 is trusted to read, but may be slow.
When a domain is released nothing of it stays that a later domain of its number could inherit: no
watch, no transaction, no node it owned, no permission that names it (XSA-322, XSA-419).
"""

from collections.abc import Iterable
from typing import Final

from xenstored.access import Access
from xenstored.permissions import DOM0_ONLY, Permissions, privileged, without
from xenstored.quotas import Quotas, Usage
from xenstored.refusal import Refusal
from xenstored.session import DOMAIN_RELEASED, Session
from xenstored.transactions import Transaction
from xenstored.tree import Node, Tree, subtree
from xenstored.watches import Event, Watch, Watches, events

INTRODUCE_DOMAIN: Final = "@introduceDomain"
RELEASE_DOMAIN: Final = "@releaseDomain"


class Store:
    """One machine's xenstore. `touched`: sessions that have something to send, or may go on."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.quotas = Quotas() if quotas is None else quotas
        self.tree = Tree.new()
        self.watches: Watches[Session] = Watches()
        self.introduced: set[int] = set()
        self.special: dict[str, Permissions] = {
            INTRODUCE_DOMAIN: DOM0_ONLY,
            RELEASE_DOMAIN: DOM0_ONLY,
        }
        self._released: set[int] = set()
        self._sessions: dict[int, dict[Session, None]] = {}
        self._usages: dict[int, Usage] = {}
        self._touched: dict[Session, None] = {}

    # --- clients ---

    def join(self, domid: int) -> Session | None:
        """A new client of `domid`; None if it may not have (another) one."""
        usage = self._usages.setdefault(domid, Usage(domid))
        full = usage.connections >= self.quotas.connections and not privileged(domid)
        if full or domid in self._released:
            return None
        usage.connections += 1
        session = Session(usage, self.quotas)
        self._sessions.setdefault(domid, {})[session] = None
        return session

    def leave(self, session: Session) -> None:
        """The client is gone, and its watches and transactions with it."""
        session.closed = session.closed or "it left"
        self.reset(session)
        self.relieve(session.outbox.clear())
        self._touched.pop(session, None)
        session.usage.connections -= 1
        mine = self._sessions[session.domid]
        del mine[session]
        if not mine:
            del self._sessions[session.domid]
            if session.usage.outstanding_events == 0:
                del self._usages[session.domid]

    def touch(self, sessions: Iterable[Session]) -> None:
        """`sessions` have something to send, or may go on."""
        self._touched.update(dict.fromkeys(sessions))

    def take_touched(self) -> list[Session]:
        """Those touched since the last call, in order."""
        touched, self._touched = list(self._touched), {}
        return touched

    def relieve(self, relieved: set[Usage]) -> None:
        """Events charged to these have been read: their clients may go on."""
        for usage in relieved:
            self.touch(self._sessions.get(usage.domid, ()))

    def held_back(self, session: Session) -> bool:
        """Has this client's domain caused more in domain 0 than domain 0 has read?"""
        limit = self.quotas.outstanding_events
        return not session.privileged and session.usage.outstanding_events >= limit

    # --- nodes ---

    def access(self, session: Session) -> Access:
        """The tree as this client may use it; `publish` what was changed."""
        return Access(self.tree, session.domid, self.quotas)

    def publish(self, before: Node, changed: dict[str, bool], cause: Session | None) -> None:
        """Tell of the nodes at `changed`, where that is wanted; `before` was the root."""
        told = [path for path, wanted in changed.items() if wanted]
        for event in events(before, self.tree.root, told):
            self._tell(event, cause)

    def commit(self, transaction: Transaction, session: Session) -> None:
        """Make a transaction's changes everybody's. Refused: EAGAIN, ENOSPC."""
        before = self.tree.root
        transaction.commit(self.tree)
        self.publish(before, transaction.changed, session)

    # --- watches ---

    def watch(self, watch: Watch[Session]) -> None:
        """Set a watch. Refused: EEXIST, E2BIG."""
        session = watch.owner
        self.watches.check_new(watch)
        if not session.privileged and session.usage.watches >= self.quotas.watches:
            raise Refusal("E2BIG")
        self.watches.add(watch)
        session.usage.watches += 1

    def unwatch(self, session: Session, path: str, token: bytes) -> None:
        """Take a watch back. Refused: ENOENT."""
        self.watches.remove(session, path, token)
        session.usage.watches -= 1

    def reset(self, session: Session) -> None:
        """Drop the client's watches and transactions."""
        session.usage.watches -= self.watches.count(session)
        self.watches.drop(session)
        session.end_all()

    def _tell(self, event: Event, cause: Session | None) -> None:
        for watch in self.watches.concerned(event):
            session = watch.owner
            if not event.known_to(session.domid):
                continue
            charged = None
            if cause is not None and not cause.privileged and session.privileged:
                charged = cause.usage
            session.tell(watch.shown(event.path), watch.token, charged)
            self.touch([session])

    # --- domains ---

    def introduce(self, domid: int) -> None:
        """The domain exists (again) and may connect."""
        self._released.discard(domid)
        self.introduced.add(domid)
        self._tell(Event(INTRODUCE_DOMAIN, (self.special[INTRODUCE_DOMAIN],)), None)

    def release(self, domid: int) -> bool:
        """The domain is gone: forget it wholly. False if it was not introduced."""
        if domid not in self.introduced:
            return False
        self.introduced.discard(domid)
        self._released.add(domid)
        sessions = list(self._sessions.get(domid, ()))
        for session in sessions:
            self.reset(session)
            session.closed = DOMAIN_RELEASED
        self.touch(sessions)
        self._forget_nodes(domid)
        self._tell(Event(RELEASE_DOMAIN, (self.special[RELEASE_DOMAIN],)), None)
        return True

    def _forget_nodes(self, domid: int) -> None:
        before = self.tree.root
        changed: dict[str, bool] = {}
        for path, node in subtree(before, "/"):
            if path in changed:
                continue
            if node.owner == domid:
                changed.update((below, True) for below, _ in subtree(before, path))
                self.tree.remove(path)
            elif any(entry.domid == domid for entry in node.perms):
                self.tree.put(path, node.value, without(domid, node.perms))
        self.special = {name: without(domid, perms) for name, perms in self.special.items()}
        self.publish(before, changed, None)
