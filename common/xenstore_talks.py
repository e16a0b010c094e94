"""Conversations with the store that go the same way whoever holds them: a process that waits for
each answer, dom0's loop that waits for none, the simulator.

Owns: the requests of each, in their order; how an end of a device reads and writes.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from common.xenbus import parse_state
from common.xenstore_exchange import (
    Broken,
    Reply,
    Request,
    Talk,
    XenStoreError,
    encode,
    value_of,
)
from common.xenstore_wire import MessageType, pack_strings, unpack_strings

BEGIN: Final = Request(MessageType.TRANSACTION_START, "")

Outcome = Literal["committed", "again", "gone"]


def end(tx_id: int, verdict: Literal["T", "F"]) -> Request:
    """The end of a transaction: as if it had happened at once, or not at all."""
    return Request(MessageType.TRANSACTION_END, verdict, tx_id=tx_id)


def transaction_id(reply: Reply) -> int:
    """Of a transaction that has just begun."""
    digits = value_of(reply).rstrip(b"\0")
    if not digits.isdigit():
        raise Broken("a transaction whose id is no number")
    return int(digits)


def look(paths: Sequence[str]) -> Talk[dict[str, bytes] | None]:
    """The values at `paths` at one moment, of those that there are and that we may read (of what is
    removed the store may say no more to a guest). None: somebody changed them meanwhile.
    """
    tx_id = transaction_id((yield [BEGIN])[0])
    reads = [Request(MessageType.READ, path, tx_id=tx_id) for path in paths]
    *replies, ended = yield [*reads, end(tx_id, "T")]
    for reply in (*replies, ended):
        if isinstance(reply, XenStoreError) and reply.name not in ("ENOENT", "EACCES", "EAGAIN"):
            raise reply
    if isinstance(ended, XenStoreError):
        return None
    pairs = zip(paths, replies, strict=True)
    return {path: reply for path, reply in pairs if isinstance(reply, bytes)}


def write_if_there(
    directory: str,
    values: Mapping[str, object],
    gone: Sequence[str] = (),
    whole: bool = True,
    since: int | None = None,
) -> Talk[Outcome]:
    """Write `values` by key, and remove the keys `gone`, in one transaction; not `whole`: in none.

    "gone", and nothing is written, where `directory` has no `state` or we may not write there: what
    the toolstack has removed is not made again. (Linux's `xenbus_switch_state` does so, too.)
    since: nor where `state` is another.
    """
    tx_id = transaction_id((yield [BEGIN])[0]) if whole else 0
    looks = [Request(MessageType.READ, f"{directory}/{key}", tx_id=tx_id) for key in gone]
    there, *found = yield [Request(MessageType.READ, f"{directory}/state", tx_id=tx_id), *looks]
    if _is_missing(there) or (since is not None and parse_state(value_of(there)) != since):
        if whole:
            yield [end(tx_id, "F")]
        return "gone"
    changes = [
        Request(
            MessageType.WRITE, f"{directory}/{key}", str(value).encode("latin-1", "replace"), tx_id
        )
        for key, value in values.items()
    ]
    for request, reply in zip(looks, found, strict=True):
        if not _is_missing(reply):
            changes.append(Request(MessageType.RM, request.first, tx_id=tx_id))
    if whole:
        changes.append(end(tx_id, "T"))
    replies = yield changes
    if any(isinstance(reply, XenStoreError) and reply.name == "EAGAIN" for reply in replies):
        return "again"
    missing = [_is_missing(reply) for reply in replies]
    return "gone" if any(missing) else "committed"


def _is_missing(reply: Reply) -> bool:
    """Is it not there, or not ours? Raises every other error."""
    if isinstance(reply, XenStoreError) and reply.name not in ("ENOENT", "EACCES"):
        raise reply
    return isinstance(reply, XenStoreError)


def directory(path: str, tx_id: int = 0) -> Talk[list[str]]:
    """The names right under `path`. Raises XenStoreError."""
    (reply,) = yield [Request(MessageType.DIRECTORY, path, tx_id=tx_id)]
    if isinstance(reply, XenStoreError) and reply.name == "E2BIG":
        listing = yield from _long_directory(path, tx_id)
    else:
        listing = value_of(reply)
    return [name.decode("latin-1") for name in unpack_strings(listing)]


def _long_directory(path: str, tx_id: int) -> Talk[bytes]:
    """A listing too long for one reply, in parts of one and the same generation."""
    listing, generation = b"", b""
    while True:
        offset = pack_strings(str(len(listing)).encode())
        (reply,) = yield [Request(MessageType.DIRECTORY_PART, path, offset, tx_id)]
        now, _, part = value_of(reply).partition(b"\0")
        if listing and now != generation:
            listing = b""
            continue
        generation = now
        if part == b"\0" or part.endswith(b"\0\0"):
            return listing + part[:-1]
        if not part:
            raise XenStoreError("EIO", path, "DIRECTORY_PART")
        listing += part


def children(path: str) -> Talk[list[str]]:
    """The same, of a node that may not be there, and then has none."""
    try:
        return (yield from directory(path))
    except XenStoreError as error:
        if error.name != "ENOENT":
            raise
        return []


def ask(request: Request) -> Talk[bytes]:
    """One request, and its answer. Raises XenStoreError."""
    return value_of((yield [request])[0])


def watch(path: str, token: str) -> Request:
    """Ask to be told of changes at `path` and below; the first event comes at once."""
    return Request(MessageType.WATCH, path, pack_strings(encode(token, "WATCH")))


def unwatch(path: str, token: str) -> Request:
    """Take a watch back. Events of it may be on their way still."""
    return Request(MessageType.UNWATCH, path, pack_strings(encode(token, "UNWATCH")))
