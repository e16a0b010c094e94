"""The store: the tree, its watches, the domains, and who is told of what.

Owns: the state that all clients share, and the order of things: a change is made, then told.
Rules: a change is made at once; telling it may take long (a thousand nodes, each on a hundred
watches), so it is an iterator that whoever caused it is served to go on with (`connection.py`).
What is left of it when the cause is gone, and what has none, is for domain 0 to go on with.
When a domain is released nothing of it stays that a later domain of its number could inherit: no
watch, no transaction, no node it owned, no permission that names it (XSA-322, XSA-419).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Final

from xenstored.access import Access
from xenstored.permissions import DOM0_ONLY, Permissions, alive, granted_now, privileged
from xenstored.quotas import Quotas, Usage
from xenstored.refusal import Refusal
from xenstored.session import DOMAIN_RELEASED, Session
from xenstored.transactions import Transaction
from xenstored.tree import Node, Tree
from xenstored.watches import Above, Event, Watch, Watches, events

INTRODUCE_DOMAIN: Final = "@introduceDomain"
RELEASE_DOMAIN: Final = "@releaseDomain"
WATCH_BYTES: Final = 600  # of memory that a watch takes besides its path and token
TOLD_AT_ONCE: Final = 32  # steps of telling between two looks at the clock

Telling = Iterator[None]


class Store:
    """One machine's xenstore. `touched`: sessions that have something to send, or may go on."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.quotas = Quotas() if quotas is None else quotas
        self.tree = Tree()
        self.watches: Watches[Session] = Watches()
        self.introduced: set[int] = set()
        self.announcements: deque[Telling] = deque()  # what domain 0 is to go on with
        self._special: dict[str, Permissions] = {
            INTRODUCE_DOMAIN: DOM0_ONLY,
            RELEASE_DOMAIN: DOM0_ONLY,
        }
        self._sessions: dict[int, dict[Session, None]] = {}
        self._usages: dict[int, Usage] = {}
        self._touched: dict[Session, None] = {}

    # --- clients ---

    def join(self, domid: int) -> Session:
        """A new client of `domid`."""
        usage = self._usages.setdefault(domid, Usage(domid))
        session = Session(usage, self.quotas)
        self._sessions.setdefault(domid, {})[session] = None
        return session

    def leave(self, session: Session) -> None:
        """The client is gone, and its watches and transactions with it."""
        session.closed = session.closed or "it left"
        self.reset(session)
        session.outbox.clear()
        self._touched.pop(session, None)
        mine = self._sessions[session.domid]
        del mine[session]
        if not mine:
            del self._sessions[session.domid], self._usages[session.domid]

    def touch(self, sessions: Iterable[Session]) -> None:
        """`sessions` have something to send, or may go on."""
        self._touched.update(dict.fromkeys(sessions))

    def take_touched(self) -> list[Session]:
        """Those touched since the last call, in order."""
        touched, self._touched = list(self._touched), {}
        return touched

    # --- nodes ---

    def access(self, session: Session) -> Access:
        """The tree as this client may use it; `publish` what was changed."""
        return Access(self.tree, session.usage, self.quotas)

    def publish(self, access: Access) -> Telling | None:
        """Make the changes everybody's; returns what is then to be told, if anything."""
        if not access.changed:
            return None
        cause = None if privileged(access.domid) else access.domid
        return self._tell(self._apply(access.changed, access.told), cause)

    def commit(self, transaction: Transaction) -> Telling | None:
        """`publish` a transaction's changes. Refused: EAGAIN, ENOSPC, ENOMEM."""
        transaction.commit()
        return self.publish(transaction)

    def _apply(self, changes: Mapping[str, Node | None], told: Iterable[str]) -> list[Event]:
        before = {path: self.tree.get(path) for path in changes}
        self.tree.apply(changes)
        return [
            event for event in events(before, self.tree.get, told) if self.watches.may_match(event)
        ]

    # --- watches ---

    def watch(self, watch: Watch[Session]) -> None:
        """Set a watch. Refused: EEXIST, E2BIG, ENOMEM."""
        session, usage = watch.owner, watch.owner.usage
        self.watches.check_new(watch)
        nbytes = memory_of(watch)
        if not session.privileged:
            if usage.watches >= self.quotas.watches:
                raise Refusal("E2BIG")
            held = self.tree.held(session.domid).nbytes + usage.nbytes
            if held + nbytes > self.quotas.memory:
                raise Refusal("ENOMEM")
        self.watches.add(watch)
        usage.watches += 1
        usage.watch_bytes += nbytes

    def unwatch(self, session: Session, path: str, token: bytes) -> None:
        """Take a watch back. Refused: ENOENT."""
        watch = self.watches.remove(session, path, token)
        session.usage.watches -= 1
        session.usage.watch_bytes -= memory_of(watch)

    def reset(self, session: Session) -> None:
        """Drop the client's watches and transactions."""
        for watch in self.watches.of(session):
            self.unwatch(session, watch.path, watch.token)
        session.end_all()

    def set_special(self, name: str, perms: Permissions) -> None:
        """Who may be told of a special event. Refused (EINVAL): there is none of that name."""
        if name not in self._special:
            raise Refusal("EINVAL")
        self._special[name] = granted_now(perms, self.tree.lives)

    def _tell(self, told: Iterable[Event], cause: int | None) -> Telling:
        """Tell of `told`, an owner's watches at one place a step."""
        above = Above()
        for event in told:
            known: dict[int, bool] = {}
            for watches in self.watches.concerned(event, above):
                session = watches[0].owner
                if session.domid not in known:
                    known[session.domid] = event.known_to(session.domid, self.tree.lives)
                if known[session.domid]:
                    for watch in watches:
                        session.tell(watch, event.path, cause)
                    self._touched[session] = None
                yield
            yield

    def announce(self, telling: Telling | None) -> None:
        """There is something to tell that no client is to go on with."""
        if telling is not None:
            self.announcements.append(telling)

    # --- domains ---

    def introduce(self, domid: int) -> Telling:
        """The domain exists (again); returns what is to be told."""
        self.introduced.add(domid)
        return self._tell([self._special_event(INTRODUCE_DOMAIN)], None)

    def release(self, domid: int) -> Telling | None:
        """The domain is gone: forget it wholly. None if it was not introduced."""
        if domid not in self.introduced:
            return None
        self.introduced.discard(domid)
        sessions = list(self._sessions.get(domid, ()))
        for session in sessions:
            self.reset(session)
            session.closed = DOMAIN_RELEASED
        self.touch(sessions)
        changes = self.tree.forget(domid)
        told = self._apply(changes, [path for path, node in changes.items() if node is None])
        return self._tell(chain(told, [self._special_event(RELEASE_DOMAIN)]), None)

    def _special_event(self, name: str) -> Event:
        return Event(name, (alive(self._special[name], self.tree.lives),))


def memory_of(watch: Watch[Session]) -> int:
    """Bytes of this server's memory that a watch takes, near enough."""
    return WATCH_BYTES + len(watch.path) + len(watch.token)


def go_on(telling: Telling, may_go_on: Callable[[], bool]) -> bool:
    """Go on with `telling` while one may; True when all is told."""
    while True:
        steps = sum(1 for _ in islice(telling, TOLD_AT_ONCE))
        if steps < TOLD_AT_ONCE:
            return True
        if not may_go_on():
            return False
