"""What an export's clients ask, compiled: requests out of a connection's bytes, cut to I/Os.

Owns: which request is sound, and the way of a write's bytes: what came along with other requests is
copied out of `incoming`, the rest received straight into the I/O's buffer.
Rules: a client is not trusted. What is not sound is refused by the protocol's error; what is no
request at all, or brings more than may be, loses its connection. A request is looked at once, when
all of it is there.
"""

from typing import Final

import numpy as np

from common.abi import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    SECTOR_SIZE,
)
from common.compiled import part
from common.copying import copy_bytes, zero_bytes
from common.nbd_wire import (
    CMD_DISC,
    CMD_FLAG_FUA,
    CMD_FLAG_NO_HOLE,
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    CMD_WRITE_ZEROES,
    EINVAL,
    ENOSPC,
    EPERM,
    FLAG_READ_ONLY,
    FLAG_SEND_FLUSH,
    FLAG_SEND_FUA,
    FLAG_SEND_TRIM,
    PAYLOAD_MAX,
    REQUEST_BYTES,
    REQUEST_MAGIC,
    take_number,
)
from common.stream_socket import AGAIN, INTERRUPTED, receive_into
from frontend.blkfront_info import Blkfront
from frontend.load import Load
from frontend.nbd_export import (
    ENDED,
    ENDING,
    INCOMING_BYTES,
    LIVE,
    LOST,
    NOBODY,
    Export,
)
from frontend.nbd_pieces import buffer_of, enqueue, forget, say_ready, take_io

# What a connection waits for.
BYTES: Final = 0
OTHERS: Final = 1  # its I/Os, its requests, or nothing any more


@part
def take_all(dev: Blkfront, job: Load, x: Export, number: int) -> int:
    """Take in what has come on a connection, as far as there is room: what it waits for then."""
    c = x.connections[number]
    while c.state == LIVE or (c.state == ENDING and c.current != NOBODY):
        there = c.in_to - c.in_from
        if c.skip > 0:
            size = min(there, c.skip)
            if size == 0:
                return BYTES
            c.in_from += size
            c.skip -= size
        elif c.current != NOBODY:
            if not _go_on(dev, job, x, number):
                return BYTES if c.filling != NOBODY else OTHERS
        elif there < REQUEST_BYTES:
            return BYTES
        elif c.free_requests == 0:
            return OTHERS
        else:
            _look(x, number)
    return OTHERS


@part
def receive(dev: Blkfront, x: Export, number: int) -> bool:
    """Receive once; did anything come? Of a write that is being taken in, into its buffer first."""
    c, count = x.connections[number], np.int64(0)
    there = c.in_to - c.in_from
    if c.in_from > 0:  # less than one request's fields
        for at in range(there):
            x.incoming[number, at] = x.incoming[number, c.in_from + at]
        c.in_from, c.in_to = 0, there
    direct = np.int64(0)
    if there == 0 and c.filling != NOBODY:
        direct = x.pieces[c.filling].nbytes - c.filled
        x.iovecs[0].address = np.uint64(buffer_of(dev, np.int64(c.filling)) + c.filled)
        x.iovecs[0].nbytes = np.uint64(direct)
        count += 1
    room = np.int64(INCOMING_BYTES) - there
    row = np.int64(x.incoming.ctypes.data) + number * INCOMING_BYTES
    x.iovecs[count].address = np.uint64(row + there)
    x.iovecs[count].nbytes = np.uint64(room)
    got = receive_into(c.fd, x.iovecs.ctypes.data, count + 1)
    if got <= 0:
        if got == AGAIN:
            c.readable = np.uint32(0)
        elif got != INTERRUPTED:  # an end between two requests is as good as a farewell
            whole = there == 0 and c.skip == 0 and c.current == NOBODY
            c.state = np.uint32(ENDING if got == 0 and whole else LOST)
        return got == INTERRUPTED
    if got < direct + room and c.readable != ENDED:  # no more is there: it will be told anew
        c.readable = np.uint32(0)
    c.filled += min(got, direct)
    c.in_to += max(got - direct, 0)
    return True


@part
def _look(x: Export, number: int) -> None:
    """At a request: all of its fields are there."""
    c, at = x.connections[number], x.connections[number].in_from
    row = x.incoming[number]
    if np.int64(take_number(row, at, 4)) != REQUEST_MAGIC:
        c.state = np.uint32(LOST)
        return
    flags, command = np.int64(take_number(row, at + 4, 2)), np.int64(take_number(row, at + 6, 2))
    cookie, offset = take_number(row, at + 8, 8), take_number(row, at + 16, 8)
    length = np.int64(take_number(row, at + 24, 4))
    c.in_from += REQUEST_BYTES
    if command == CMD_DISC or (command == CMD_WRITE and length > PAYLOAD_MAX):
        c.state = np.uint32(ENDING if command == CMD_DISC else LOST)
        return
    c.free_requests -= np.uint32(1)
    index = np.int64(x.spare[number, c.free_requests])
    request = x.requests[number, index]
    request.cookie, request.length, request.command = cookie, length, np.uint32(command)
    request.begun = request.told = 0
    changes = command in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES)
    request.fua = np.uint32(flags & CMD_FLAG_FUA if changes else 0)
    request.under_way = request.queued = np.uint32(0)
    request.answered = request.dropped = np.uint32(0)
    request.first = request.last = NOBODY
    error = _refused(x, command, flags, offset, length)
    request.error = np.uint32(error)
    if error == 0:
        request.offset = np.int64(offset)
        c.current = np.int32(index)
        return
    request.offset = request.fua = 0
    if command == CMD_WRITE:
        c.skip = length
    say_ready(x, number, index)


@part
def _refused(x: Export, command: int, flags: int, offset: int, length: int) -> int:
    """The error that a request is answered with at once, or 0."""
    head, allowed = x.head[0], np.int64(0)
    offered = np.int64(head.flags)
    changes = command in (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES)
    if changes and offered & FLAG_READ_ONLY != 0:
        return EPERM
    if offered & FLAG_SEND_FUA != 0:  # with any command, as the protocol has it
        allowed |= CMD_FLAG_FUA
    if command == CMD_WRITE_ZEROES:
        allowed |= CMD_FLAG_NO_HOLE
    if flags & ~allowed != 0:
        return EINVAL
    if command == CMD_FLUSH:
        asked = offset == np.uint64(0) and length == 0
        return 0 if asked and offered & FLAG_SEND_FLUSH != 0 else EINVAL
    if command == CMD_TRIM and offered & FLAG_SEND_TRIM == 0:
        return EINVAL
    if command == CMD_READ and length > PAYLOAD_MAX:
        return EINVAL
    if not (changes or command == CMD_READ) or length == 0:
        return EINVAL
    size = np.uint64(head.nr_bytes)
    if offset > size or np.uint64(length) > size - offset:
        return EINVAL if command in (CMD_READ, CMD_TRIM) else ENOSPC
    block = np.uint64(head.block)
    return EINVAL if offset % block != 0 or np.uint64(length) % block != 0 else 0


@part
def _go_on(dev: Blkfront, job: Load, x: Export, number: int) -> bool:
    """Begin another piece of the current request; False if something is missing."""
    c = x.connections[number]
    index = np.int64(c.current)
    request = x.requests[number, index]
    if c.filling != NOBODY:
        return _fill(dev, job, x, number)
    if c.free_ios == 0:
        return False
    io = take_io(x, number, index)
    piece, left = x.pieces[io], request.length - request.begun
    piece.at, piece.nbytes = request.begun, min(left, x.head[0].piece)
    if request.command == CMD_FLUSH:
        enqueue(dev, io, BLKIF_OP_FLUSH_DISKCACHE, 0, 0)
    elif request.command == CMD_TRIM:
        piece.nbytes = left
        forget(job, request.offset // SECTOR_SIZE, left // SECTOR_SIZE)
        enqueue(dev, io, BLKIF_OP_DISCARD, request.offset, left)
    elif request.command == CMD_READ:
        if request.first == NOBODY:
            request.first = np.int32(io)
        else:
            x.pieces[request.last].next = np.int32(io)
        request.last = np.int32(io)
        enqueue(dev, io, BLKIF_OP_READ, request.offset + piece.at, piece.nbytes)
    elif request.command == CMD_WRITE_ZEROES:
        zero_bytes(buffer_of(dev, io), piece.nbytes)
        _write(dev, job, x, io, request.offset + piece.at)
    else:
        c.filling, c.filled = np.int32(io), 0
    request.begun += piece.nbytes
    if request.begun >= request.length and c.filling == NOBODY:
        c.current = np.int32(NOBODY)
    return True


@part
def _fill(dev: Blkfront, job: Load, x: Export, number: int) -> bool:
    """More of a write's bytes; False if none are there."""
    c = x.connections[number]
    io = np.int64(c.filling)
    piece, request = x.pieces[io], x.requests[number, np.int64(c.current)]
    size = min(piece.nbytes - c.filled, c.in_to - c.in_from)
    if size > 0:
        row = np.int64(x.incoming.ctypes.data) + number * INCOMING_BYTES
        copy_bytes(buffer_of(dev, io) + c.filled, row + c.in_from, size)
        c.filled += size
        c.in_from += size
    if c.filled < piece.nbytes:
        return False
    c.filling = np.int32(NOBODY)
    _write(dev, job, x, io, request.offset + piece.at)
    if request.begun >= request.length:
        c.current = np.int32(NOBODY)
    return True


@part
def _write(dev: Blkfront, job: Load, x: Export, io: int, offset: int) -> None:
    nbytes = x.pieces[io].nbytes
    forget(job, offset // SECTOR_SIZE, nbytes // SECTOR_SIZE)
    enqueue(dev, io, BLKIF_OP_WRITE, offset, nbytes)
