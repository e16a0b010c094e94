"""What an NBD server answers, compiled: simple and structured replies, cut at any byte.

Owns: how replies are told apart and what is believed of them. A reply's fields are looked at once
all of them are there, a read's bytes as they come.
Rules: a server is not trusted: whatever names nothing that is asked, or lies outside of it, or
comes twice, loses the connection (`state.lost`). A read of which not every byte came is an error.
"""

import numpy as np

from backend.nbd_requests import finish, move
from backend.nbd_state import (
    BAD_CHUNK,
    ENDED,
    ENTRY_BITS,
    HELD,
    NO_REPLY,
    NO_SLOT,
    NOT_ASKED,
    NOT_STRUCTURED,
    PARTS_MAX,
    STOPPING,
    TWICE,
    Connection,
)
from backend.slots import READ
from common.compiled import kernel
from common.nbd_uri import STRING_MAX
from common.nbd_wire import (
    EINVAL,
    EIO,
    ERROR_BYTES,
    ESHUTDOWN,
    OFFSET_DATA_BYTES,
    OFFSET_HOLE_BYTES,
    REPLY_ERROR_BIT,
    REPLY_ERROR_OFFSET,
    REPLY_FLAG_DONE,
    REPLY_NONE,
    REPLY_OFFSET_DATA,
    REPLY_OFFSET_HOLE,
    SIMPLE_REPLY_BYTES,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_BYTES,
    STRUCTURED_REPLY_MAGIC,
    take_number,
)
from common.stream_socket import AGAIN, INTERRUPTED, receive_some


@kernel
def receive_all(c: Connection, now_ns: int) -> None:
    """Receive once, as much as there is room for, and look at all that is whole."""
    state = c.state[0]
    address = np.int64(c.incoming.ctypes.data)
    there = state.in_to - state.in_from
    if state.in_from > 0:  # less than one reply's fields; its new place lies before it
        for at in range(there):
            c.incoming[at] = c.incoming[state.in_from + at]
        state.in_from, state.in_to = 0, there
    got = receive_some(state.fd, address + there, len(c.incoming) - there)
    if got <= 0:
        if got == 0:
            state.lost = ENDED
        elif got not in (AGAIN, INTERRUPTED):
            state.lost = np.int32(got)
        return
    state.in_to += got
    state.received_ns = now_ns
    while state.lost == HELD and _look(c):
        pass


@kernel
def _look(c: Connection) -> bool:
    """At one reply, or some of a read's bytes; False if more must come first."""
    state = c.state[0]
    there = state.in_to - state.in_from
    if state.body_left > 0:
        return _take_body(c, there)
    if there < SIMPLE_REPLY_BYTES:
        return False
    magic = np.int64(take_number(c.incoming, state.in_from, 4))
    if magic == SIMPLE_REPLY_MAGIC:
        return _look_at_simple(c)
    if magic != STRUCTURED_REPLY_MAGIC or state.structured == 0:
        state.lost = NO_REPLY
        return False
    if there < STRUCTURED_REPLY_BYTES:
        return False
    return _look_at_chunk(c, there)


@kernel
def _take_body(c: Connection, there: int) -> bool:
    """Some of a read's bytes: to its pages, or nowhere if its job is given up."""
    state, entry = c.state[0], c.entries[c.state[0].body_entry]
    size = min(there, state.body_left)
    if size == 0:
        return False
    if entry.slot != NO_SLOT:
        at = c.slots[entry.slot].at + state.body_at
        address = np.int64(c.incoming.ctypes.data) + state.in_from
        move(c, entry.slot, at, address, size, False)
    state.in_from += size
    state.body_at += size
    state.body_left -= size
    if state.body_left == 0 and state.body_done != 0:
        _end(c, state.body_entry)
    return True


@kernel
def _end(c: Connection, index: int) -> None:
    """An entry's reply is whole. If the server shuts down it asks to be left, and asked again."""
    if c.entries[index].error == ESHUTDOWN:
        c.state[0].lost = STOPPING
    else:
        finish(c, index)


@kernel
def _asked(c: Connection, cookie: int) -> np.int64:
    """The entry that a cookie names, or -1."""
    index = np.int64(cookie & np.uint64((1 << ENTRY_BITS) - 1))
    if cookie == np.uint64(0) or index >= len(c.entries) or c.entries[index].cookie != cookie:
        c.state[0].lost = NOT_ASKED
        return np.int64(-1)
    return index


@kernel
def _look_at_simple(c: Connection) -> bool:
    state, at = c.state[0], c.state[0].in_from
    error = np.uint32(take_number(c.incoming, at + 4, 4))
    index = _asked(c, take_number(c.incoming, at + 8, 8))
    if index < 0:
        return False
    entry = c.entries[index]
    state.in_from += SIMPLE_REPLY_BYTES
    if error == 0 and entry.kind == READ:
        if state.structured != 0:
            state.lost = NOT_STRUCTURED
            return False
        entry.got = entry.nr_bytes
        _expect_body(c, index, 0, entry.nr_bytes, 1)
        return True
    entry.error = error
    _end(c, index)
    return True


@kernel
def _expect_body(c: Connection, index: int, at: int, nr_bytes: int, done: int) -> None:
    state = c.state[0]
    state.body_entry, state.body_done = np.uint32(index), np.uint32(done)
    state.body_at, state.body_left = at, nr_bytes


@kernel
def _look_at_chunk(c: Connection, there: int) -> bool:
    state, at = c.state[0], c.state[0].in_from
    done = np.int64(take_number(c.incoming, at + 4, 2)) & REPLY_FLAG_DONE
    type_ = np.int64(take_number(c.incoming, at + 6, 2))
    index = _asked(c, take_number(c.incoming, at + 8, 8))
    length = np.int64(take_number(c.incoming, at + 16, 4))
    if index < 0:
        return False
    fields = length
    if type_ & REPLY_ERROR_BIT != 0:
        sound = ERROR_BYTES <= length <= STRING_MAX + ERROR_BYTES + 8
    elif type_ == REPLY_NONE:
        sound = length == 0 and done != 0
    elif type_ == REPLY_OFFSET_DATA:
        fields, sound = np.int64(OFFSET_DATA_BYTES), length > OFFSET_DATA_BYTES
    else:
        sound = type_ == REPLY_OFFSET_HOLE and length == OFFSET_HOLE_BYTES
    if not sound:
        state.lost = BAD_CHUNK
        return False
    if there < STRUCTURED_REPLY_BYTES + fields:
        return False
    at += STRUCTURED_REPLY_BYTES
    state.in_from += STRUCTURED_REPLY_BYTES + fields
    if type_ == REPLY_OFFSET_DATA:
        return _begin_data(c, index, at, length - OFFSET_DATA_BYTES, done)
    if type_ == REPLY_OFFSET_HOLE:
        _fill_hole(c, index, at)
    elif type_ != REPLY_NONE:
        _note_error(c, index, at, length, type_)
    if done != 0 and state.lost == HELD:
        _end(c, index)
    return True


@kernel
def _begin_data(c: Connection, index: int, at: int, size: int, done: int) -> bool:
    from_ = np.int64(take_number(c.incoming, at, 8))
    if _cover(c, index, from_, size):
        _expect_body(c, index, from_ - c.entries[index].offset, size, done)
    return True


@kernel
def _fill_hole(c: Connection, index: int, at: int) -> None:
    from_ = np.int64(take_number(c.incoming, at, 8))
    left = np.int64(take_number(c.incoming, at + 8, 4))
    entry = c.entries[index]
    if not _cover(c, index, from_, left) or entry.slot == NO_SLOT:
        return
    to = c.slots[entry.slot].at + (from_ - entry.offset)
    while left > 0:
        size = left if left < len(c.zeros) else np.int64(len(c.zeros))
        move(c, entry.slot, to, np.int64(c.zeros.ctypes.data), size, False)
        to += size
        left -= size


@kernel
def _note_error(c: Connection, index: int, at: int, length: int, type_: int) -> None:
    """An error chunk: the reply goes on, but the request has failed."""
    error = np.uint32(take_number(c.incoming, at, 4))
    message = np.int64(take_number(c.incoming, at + 4, 2))
    with_offset = 8 if type_ == REPLY_ERROR_OFFSET else 0
    if ERROR_BYTES + message + with_offset > length:
        c.state[0].lost = BAD_CHUNK
    else:
        c.entries[index].error = error if error != 0 else np.uint32(EINVAL)


@kernel
def _cover(c: Connection, index: int, from_: int, size: int) -> bool:
    """Note that these bytes of the store come; False, and the connection is lost, if they were not
    asked for or have come before. More runs of bytes than can be noted fail the request."""
    entry, parts = c.entries[index], c.parts[index]
    inside = entry.offset <= from_ and size <= entry.nr_bytes
    if entry.kind != READ or size == 0 or not inside:
        c.state[0].lost = BAD_CHUNK
        return False
    begin = from_ - entry.offset
    if begin > entry.nr_bytes - size:
        c.state[0].lost = BAD_CHUNK
        return False
    end, joined = begin + size, -1
    for part in range(np.int64(entry.nr_parts)):
        if begin < parts[part, 1] and parts[part, 0] < end:
            c.state[0].lost = TWICE
            return False
        if parts[part, 1] == begin or parts[part, 0] == end:
            joined = part
    if joined >= 0:
        parts[joined, 0] = min(parts[joined, 0], begin)
        parts[joined, 1] = max(parts[joined, 1], end)
    elif entry.nr_parts == PARTS_MAX:
        entry.error = np.uint32(EIO)
    else:
        parts[entry.nr_parts, 0], parts[entry.nr_parts, 1] = begin, end
        entry.nr_parts += np.uint32(1)
    entry.got += size
    return True
