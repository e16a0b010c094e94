"""The requests: what each message type asks for, and its answer.

Owns: the table from message type to handler. A handler gets the payload as it came, and returns the
reply's, with what is to be told before it is sent; a `Refusal` becomes an ERROR reply.
Rules: nothing in a payload says who is asking. What a guest may not ask for is refused (EACCES)
before its payload is looked at. CONTROL, RESUME and SET_TARGET are not served (ENOSYS): there is
nothing here that they could act on.

Source: Xen's `docs/misc/xenstore.txt`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from common.abi import DOMID_0
from common.xenstore_wire import (
    XENSTORE_ABS_PATH_MAX,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_REL_PATH_MAX,
    MessageType,
    Packet,
    pack_strings,
    unpack_strings,
)
from xenstored.access import Access
from xenstored.paths import ROOT, SPECIAL, home, parse_domid, resolve
from xenstored.permissions import format_permissions, parse_permissions
from xenstored.refusal import Refusal
from xenstored.session import Session
from xenstored.store import Store, Telling
from xenstored.watches import Watch

Answer = tuple[bytes, Telling | None]  # the reply's payload, and what is told before it
Handler = Callable[[Store, Session, Packet], Answer]

OK: Final = pack_strings(b"OK")
DONE: Final[Answer] = (OK, None)

# With the longest path an event still fits into a payload, so no watch is ever silent.
TOKEN_MAX: Final = XENSTORE_PAYLOAD_MAX - XENSTORE_ABS_PATH_MAX - 2


def one_string(payload: bytes) -> bytes:
    """The payload's only string. Refused (EINVAL) if it is anything else."""
    if payload.count(0) != 1 or payload[-1] != 0:
        raise Refusal("EINVAL")
    return payload[:-1]


def strings(payload: bytes, at_least: int) -> list[bytes]:
    """The payload's strings. Refused (EINVAL) if there are too few."""
    found = unpack_strings(payload)
    if len(found) < at_least:
        raise Refusal("EINVAL")
    return found


def _read(access: Access, payload: bytes) -> bytes:
    return access.read(resolve(one_string(payload), access.domid))


def _directory(access: Access, payload: bytes) -> bytes:
    children, _ = access.directory(resolve(one_string(payload), access.domid))
    listing = pack_strings(*(name.encode() for name in children))
    if len(listing) > XENSTORE_PAYLOAD_MAX:
        raise Refusal("E2BIG")
    return listing


def _directory_part(access: Access, payload: bytes) -> bytes:
    """Generation, then whole names from the offset on; an empty name says that it was all."""
    path, offset = strings(payload, 2)[:2]
    if not offset.isdigit() or len(offset) > 10:
        raise Refusal("EINVAL")
    children, generation = access.directory(resolve(path, access.domid))
    rest = pack_strings(*(name.encode() for name in children))[int(offset) :]
    head = pack_strings(str(generation).encode())
    room = XENSTORE_PAYLOAD_MAX - len(head) - 1
    if len(rest) <= room:
        return head + rest + b"\0"
    return head + rest[: rest.rfind(b"\0", 0, room) + 1]


def _get_perms(access: Access, payload: bytes) -> bytes:
    perms = access.get_perms(resolve(one_string(payload), access.domid))
    return pack_strings(*format_permissions(perms))


def _write(access: Access, payload: bytes) -> bytes:
    path, nul, value = payload.partition(b"\0")
    if not nul:
        raise Refusal("EINVAL")
    access.write(resolve(path, access.domid), value)
    return OK


def _mkdir(access: Access, payload: bytes) -> bytes:
    access.mkdir(resolve(one_string(payload), access.domid))
    return OK


def _rm(access: Access, payload: bytes) -> bytes:
    access.rm(resolve(one_string(payload), access.domid))
    return OK


def _set_perms(access: Access, payload: bytes) -> bytes:
    path, *entries = strings(payload, 2)
    access.set_perms(resolve(path, access.domid), parse_permissions(entries))
    return OK


def _on_nodes(operation: Callable[[Access, bytes], bytes]) -> Handler:
    """A handler that works in a transaction or at once, as the packet's tx_id says."""

    def handle(store: Store, session: Session, packet: Packet) -> Answer:
        if packet.tx_id != 0:
            return operation(session.transaction(packet.tx_id), packet.payload), None
        access = store.access(session)
        reply = operation(access, packet.payload)
        return reply, store.publish(access)

    return handle


_set_node_perms = _on_nodes(_set_perms)


def _set_any_perms(store: Store, session: Session, packet: Packet) -> Answer:
    """Of a node, or (by domain 0) of a special event: who may be told of it."""
    if not packet.payload.startswith(SPECIAL.encode()):
        return _set_node_perms(store, session, packet)
    name, *entries = strings(packet.payload, 2)
    if not session.privileged:
        raise Refusal("EACCES")
    store.set_special(name.decode("latin-1"), parse_permissions(entries))
    return DONE


def _watched(session: Session, payload: bytes) -> Watch[Session]:
    raw, token = strings(payload, 2)[:2]
    if len(token) > TOKEN_MAX:
        raise Refusal("EINVAL")
    if raw.startswith(SPECIAL.encode()):
        if len(raw) > XENSTORE_REL_PATH_MAX:
            raise Refusal("EINVAL")
        return Watch(session, raw.decode("latin-1"), token, "")
    base = "" if raw.startswith(ROOT.encode()) else home(session.domid) + "/"
    return Watch(session, resolve(raw, session.domid), token, base)


def _watch(store: Store, session: Session, packet: Packet) -> Answer:
    store.watch(_watched(session, packet.payload))
    return DONE


def first_event(session: Session, packet: Packet) -> None:
    """A watch fires once when it is set, after its reply, whether there is a node or not."""
    watch = _watched(session, packet.payload)
    session.tell(watch, watch.path, None)


def _unwatch(store: Store, session: Session, packet: Packet) -> Answer:
    watch = _watched(session, packet.payload)
    store.unwatch(session, watch.path, watch.token)
    return DONE


def _reset_watches(store: Store, session: Session, packet: Packet) -> Answer:
    store.reset(session)
    return DONE


def _transaction_start(store: Store, session: Session, packet: Packet) -> Answer:
    if packet.tx_id != 0:
        raise Refusal("EBUSY")  # it is open already, and there is no nesting
    return pack_strings(str(session.begin(store.tree)).encode()), None


def _transaction_end(store: Store, session: Session, packet: Packet) -> Answer:
    verdict = one_string(packet.payload)
    if verdict not in (b"T", b"F"):
        raise Refusal("EINVAL")
    transaction = session.end(packet.tx_id)
    return OK, store.commit(transaction) if verdict == b"T" else None


def _introduce(store: Store, session: Session, packet: Packet) -> Answer:
    """The domain exists. What it talks over is not for this to say: there is no page to map and no
    port to bind, and its connection comes from the toolstack (`XenStoreServer.introduce`).
    """
    domid = parse_domid(strings(packet.payload, 3)[0])
    if domid == DOMID_0:
        raise Refusal("EINVAL")
    return OK, store.introduce(domid)


def _release(store: Store, session: Session, packet: Packet) -> Answer:
    domid = parse_domid(one_string(packet.payload))
    if domid == DOMID_0:
        raise Refusal("EINVAL")
    telling = store.release(domid)
    if telling is None:
        raise Refusal("ENOENT")
    return OK, telling


def _is_domain_introduced(store: Store, session: Session, packet: Packet) -> Answer:
    domid = parse_domid(one_string(packet.payload))
    known = domid == DOMID_0 or domid in store.introduced
    return pack_strings(b"T" if known else b"F"), None


def _get_domain_path(store: Store, session: Session, packet: Packet) -> Answer:
    return pack_strings(home(parse_domid(one_string(packet.payload))).encode()), None


@dataclass(frozen=True)
class Request:
    """How a message type is served. `in_transaction`: the tx_id counts, and must be an open one."""

    handle: Handler
    privileged: bool = False
    in_transaction: bool = True


REQUESTS: Final = {
    MessageType.DIRECTORY: Request(_on_nodes(_directory)),
    MessageType.READ: Request(_on_nodes(_read)),
    MessageType.GET_PERMS: Request(_on_nodes(_get_perms)),
    MessageType.WATCH: Request(_watch, in_transaction=False),
    MessageType.UNWATCH: Request(_unwatch, in_transaction=False),
    MessageType.TRANSACTION_START: Request(_transaction_start),
    MessageType.TRANSACTION_END: Request(_transaction_end),
    MessageType.INTRODUCE: Request(_introduce, privileged=True),
    MessageType.RELEASE: Request(_release, privileged=True),
    MessageType.GET_DOMAIN_PATH: Request(_get_domain_path),
    MessageType.WRITE: Request(_on_nodes(_write)),
    MessageType.MKDIR: Request(_on_nodes(_mkdir)),
    MessageType.RM: Request(_on_nodes(_rm)),
    MessageType.SET_PERMS: Request(_set_any_perms),
    MessageType.IS_DOMAIN_INTRODUCED: Request(_is_domain_introduced, privileged=True),
    MessageType.RESET_WATCHES: Request(_reset_watches),
    MessageType.DIRECTORY_PART: Request(_on_nodes(_directory_part)),
}


def answer(store: Store, session: Session, packet: Packet) -> Answer:
    """The reply's payload, and what is to be told before it. Raises Refusal."""
    request = REQUESTS.get(packet.type)  # type: ignore[call-overload]
    if request is None:
        raise Refusal("ENOSYS")
    if request.privileged and not session.privileged:
        raise Refusal("EACCES")
    if request.in_transaction and packet.tx_id != 0:
        session.transaction(packet.tx_id)
    answered: Answer = request.handle(store, session, packet)
    return answered
