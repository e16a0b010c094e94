"""A xenstored without sockets: clients by name, each asking and reading its own bytes."""

from common.xenstore_wire import MessageType, Packet, Parser, pack, pack_strings, unpack_strings
from xenstored.connection import Connection
from xenstored.quotas import Quotas
from xenstored.store import Store, go_on
from xenstored.tree import subtree

Reply = bytes | str  # a payload, or the name of an error


class Client:
    """One client of `domid`; it reads all that there is for it whenever it asks."""

    def __init__(self, store: Store, domid: int) -> None:
        self.session = session = store.join(domid)
        self.connection = Connection(store, session)
        self._parser = Parser()
        self._events: list[tuple[str, str]] = []
        self._replies: list[Packet] = []
        self._req_id = 0

    def ask(self, kind: MessageType, payload: bytes = b"\0", tx: int = 0) -> Reply:
        """Send one request, as bytes, and return its reply."""
        self.post(kind, payload, tx)
        self.connection.step(always)
        self.read()
        (reply,) = self._replies
        self._replies.clear()
        assert (reply.req_id, reply.tx_id) == (self._req_id, tx)
        if reply.type == MessageType.ERROR:
            return reply.payload.rstrip(b"\0").decode()
        assert reply.type == kind
        return reply.payload

    def serve(self, count: int = 1000) -> None:
        """Serve what was posted, while the client can be served, to the end of each request."""
        for _ in range(count):
            self.connection.step(always)

    def post(self, kind: MessageType, payload: bytes, tx: int = 0) -> None:
        """Send a request and leave it unserved."""
        self._req_id += 1
        self.connection.feed(pack(Packet(kind, self._req_id, tx, payload)))

    def read(self) -> None:
        """Take all that waits for this client."""
        while data := self.connection.outgoing():
            self.connection.sent(len(data))
            for packet in self._parser.feed(data):
                if packet.type == MessageType.WATCH_EVENT:
                    path, token = unpack_strings(packet.payload)
                    self._events.append((path.decode(), token.decode()))
                else:
                    self._replies.append(packet)

    def events(self) -> list[tuple[str, str]]:
        """The watch events since the last call."""
        self.read()
        events, self._events = self._events, []
        return events

    def begin(self) -> int:
        """Open a transaction."""
        reply = self.ask(MessageType.TRANSACTION_START)
        assert isinstance(reply, bytes), reply
        return int(reply.rstrip(b"\0"))

    def end(self, tx: int, verdict: str = "T") -> Reply:
        """End a transaction."""
        return self.ask(MessageType.TRANSACTION_END, path(verdict), tx)

    def do(self, operation: str, *, tx: int = 0) -> Reply:
        """An operation as a line: `write /a 1`, `perms /a n1 r0`, `rm /a`, `watch /a token`."""
        verb, *words = operation.split(" ")
        kind = VERBS[verb]
        if kind == MessageType.WRITE:
            return self.ask(kind, path(words[0]) + " ".join(words[1:]).encode(), tx)
        return self.ask(kind, path(*words), tx)


VERBS = {
    "read": MessageType.READ,
    "write": MessageType.WRITE,
    "mkdir": MessageType.MKDIR,
    "rm": MessageType.RM,
    "ls": MessageType.DIRECTORY,
    "perms?": MessageType.GET_PERMS,
    "perms": MessageType.SET_PERMS,
    "watch": MessageType.WATCH,
    "unwatch": MessageType.UNWATCH,
}
OK = b"OK\0"


def always() -> bool:
    """For whom there is no hurry."""
    return True


def path(*strings: str) -> bytes:
    """A payload of strings."""
    return pack_strings(*(string.encode() for string in strings))


class World:
    """A store, dom0 and two guests with a home each, which they own."""

    def __init__(self, **quotas: int) -> None:
        self.store = Store(Quotas(**quotas))
        self.dom0 = Client(self.store, 0)
        for domid in (1, 2):
            self.introduce(domid)
            self.dom0.do(f"mkdir /local/domain/{domid}")
            self.dom0.do(f"perms /local/domain/{domid} n{domid}")
        self.guest, self.other = Client(self.store, 1), Client(self.store, 2)

    def client(self, domid: int) -> Client:
        """One more client of `domid`."""
        return Client(self.store, domid)

    def introduce(self, domid: int) -> None:
        """The domain comes, and all who want to know are told."""
        assert go_on(self.store.introduce(domid), always)

    def release(self, domid: int) -> bool:
        """The domain goes, and all who want to know are told; False if it was not there."""
        telling = self.store.release(domid)
        return telling is not None and go_on(telling, always)

    def nodes(self) -> dict[str, int]:
        """Every path, and its node's generation: equal if nothing has changed."""
        found = subtree(self.store.tree.get, "/")
        return {path: node.generation for path, node in found}
