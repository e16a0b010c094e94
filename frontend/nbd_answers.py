"""What an export's clients are told, compiled: finished I/Os into replies, and these into sockets.

Owns: the order of a connection's replies (`frontend/nbd_export.py`, rule 4), and when its I/Os and
requests are free again: an I/O that a read's bytes lie in when they are sent, any other when it is
done.
Rules
1. A read that fails is an error if nothing of it has been sent. After that a simple reply has no
   place for one: the connection is lost. A structured one has.
2. With FUA the reply follows a flush that was queued when all of the request was done.
3. What is sent is gathered from headers and I/O buffers in one system call, and copied by nobody.
"""

import numpy as np

from common.abi import BLKIF_OP_FLUSH_DISKCACHE, BLKIF_RSP_EOPNOTSUPP, BLKIF_RSP_OKAY, SECTOR_SIZE
from common.compiled import part
from common.nbd_wire import (
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    EIO,
    ENOTSUP,
    ERROR_BYTES,
    OFFSET_DATA_BYTES,
    REPLY_ERROR,
    REPLY_OFFSET_DATA,
    SIMPLE_REPLY_BYTES,
    STRUCTURED_REPLY_BYTES,
    put_chunk,
    put_number,
    put_simple_reply,
)
from common.stream_socket import AGAIN, INTERRUPTED, send_from
from frontend.blkfront_info import Blkfront
from frontend.nbd_export import (
    ENDING,
    HEADER_BYTES,
    IOS,
    LIVE,
    LOST,
    NOBODY,
    OUTS,
    REQUESTS,
    Export,
)
from frontend.nbd_pieces import buffer_of, enqueue, say_ready, take_io


@part
def take_done(dev: Blkfront, x: Export) -> None:
    """Look at every I/O that is done."""
    front = dev.front[0]
    for place in range(front.done):
        io = np.int64(dev.done[place])
        number = io // IOS
        _finish(dev, x, number, io)
    front.done = np.uint32(0)


@part
def _finish(dev: Blkfront, x: Export, number: int, io: int) -> None:
    index = np.int64(x.pieces[io].request)
    request, piece = x.requests[number, index], x.pieces[io]
    request.under_way -= np.uint32(1)
    _count(dev, io, request.command)
    if dev.ios[io].status != BLKIF_RSP_OKAY and request.error == 0:
        known = dev.ios[io].status != BLKIF_RSP_EOPNOTSUPP
        request.error = np.uint32(EIO if known else ENOTSUP)
    piece.done = np.uint32(1)
    if x.connections[number].state not in (LIVE, ENDING):
        return
    if request.command != CMD_READ:
        _free_io(x, number, io)
        if request.under_way == 0 and request.begun >= request.length:
            _end(dev, x, number, index)
    elif request.dropped != 0:
        _free_io(x, number, io)
        _free_request(x, number, index)
    elif request.first == io or request.error != 0:
        say_ready(x, number, index)


@part
def _end(dev: Blkfront, x: Export, number: int, index: int) -> None:
    """All of a request that is no read is done; now for what makes it last, if that was asked."""
    request = x.requests[number, index]
    if request.fua != 0 and request.error == 0:
        request.fua = np.uint32(0)
        io = take_io(x, number, index)  # there is one: its own was given back just now
        enqueue(dev, io, BLKIF_OP_FLUSH_DISKCACHE, 0, 0)
        return
    say_ready(x, number, index)


@part
def _count(dev: Blkfront, io: int, command: int) -> None:
    """It counts as a load's I/O does."""
    counters = dev.counters[0]
    nbytes = dev.ios[io].nr_sectors * np.uint64(SECTOR_SIZE)
    if dev.ios[io].operation == BLKIF_OP_FLUSH_DISKCACHE:
        nbytes = np.uint64(0)
    else:
        counters.ios += np.uint64(1)
    if dev.ios[io].status != BLKIF_RSP_OKAY:
        counters.io_errors += np.uint64(1)
    elif command == CMD_READ:
        counters.bytes_read += nbytes
    elif command == CMD_TRIM:
        counters.bytes_discarded += nbytes
    elif command != CMD_FLUSH:
        counters.bytes_written += nbytes


@part
def _free_io(x: Export, number: int, io: int) -> None:
    c = x.connections[number]
    x.idle[number, c.free_ios] = np.int32(io)
    c.free_ios += np.uint32(1)


@part
def _free_request(x: Export, number: int, index: int) -> None:
    """If it is answered, and nothing of it is under way."""
    c, request = x.connections[number], x.requests[number, index]
    if request.answered != 0 and request.under_way == 0:
        x.spare[number, c.free_requests] = np.int32(index)
        c.free_requests += np.uint32(1)


# --- what is to be sent -----------------------------------------------------------------------


@part
def arrange(x: Export, number: int) -> None:
    """Put what may be sent in its order."""
    c = x.connections[number]
    while c.state in (LIVE, ENDING):
        if c.speaker != NOBODY:
            if not _speak(x, number, np.int64(c.speaker)):
                return
        elif c.nr_ready > 0:
            index = np.int64(x.ready[number, c.ready_first])
            c.ready_first = np.uint32((c.ready_first + np.uint32(1)) % np.uint32(REQUESTS))
            c.nr_ready -= np.uint32(1)
            if x.requests[number, index].command == CMD_READ:
                if x.requests[number, index].error != 0:
                    _give_up_read(x, number, index)
                else:
                    c.speaker = np.int32(index)
            else:
                _say(x, number, index)
        else:
            return


@part
def _speak(x: Export, number: int, index: int) -> bool:
    """Arrange the next piece of a read; False if that is not done yet."""
    c, request = x.connections[number], x.requests[number, index]
    io = np.int64(request.first)
    if request.error != 0:  # of this piece, or another
        if request.told > 0 and c.structured == 0:
            c.state = np.uint32(LOST)
            return False
        c.speaker = np.int32(NOBODY)
        _give_up_read(x, number, index)
        return True
    if io == NOBODY or x.pieces[io].done == 0:
        return False
    piece = x.pieces[io]
    last = piece.at + piece.nbytes == request.length
    slot = np.int64((c.out_first + c.nr_outs) % np.uint32(OUTS))
    at, header = slot * HEADER_BYTES, np.int64(0)
    row = x.headers[number]
    if c.structured != 0:
        length = OFFSET_DATA_BYTES + piece.nbytes
        put_chunk(row, at, last, REPLY_OFFSET_DATA, request.cookie, length)
        put_number(row, at + STRUCTURED_REPLY_BYTES, 8, request.offset + piece.at)
        header = np.int64(STRUCTURED_REPLY_BYTES + OFFSET_DATA_BYTES)
    elif piece.at == 0:
        put_simple_reply(row, at, 0, request.cookie)
        header = np.int64(SIMPLE_REPLY_BYTES)
    _put_out(x, number, index, header, io, last)
    request.told += piece.nbytes
    request.first = piece.next
    if last:
        c.speaker = np.int32(NOBODY)
    return True


@part
def _give_up_read(x: Export, number: int, index: int) -> None:
    """A read has failed: its error is told, and no more of it is begun."""
    c, request = x.connections[number], x.requests[number, index]
    if c.current == index:
        c.current = np.int32(NOBODY)
    io = np.int64(request.first)
    while io != NOBODY:
        following = np.int64(x.pieces[io].next)
        if x.pieces[io].done != 0:
            _free_io(x, number, io)
        io = following
    request.first, request.dropped = np.int32(NOBODY), np.uint32(1)
    _say(x, number, index)


@part
def _say(x: Export, number: int, index: int) -> None:
    """Arrange a reply that brings no bytes."""
    c, request = x.connections[number], x.requests[number, index]
    at = np.int64((c.out_first + c.nr_outs) % np.uint32(OUTS)) * HEADER_BYTES
    row, header = x.headers[number], np.int64(SIMPLE_REPLY_BYTES)
    if c.structured != 0 and request.command == CMD_READ:
        put_chunk(row, at, 1, REPLY_ERROR, request.cookie, ERROR_BYTES)
        put_number(row, at + STRUCTURED_REPLY_BYTES, 4, np.int64(request.error))
        put_number(row, at + STRUCTURED_REPLY_BYTES + 4, 2, 0)  # no message
        header = np.int64(STRUCTURED_REPLY_BYTES + ERROR_BYTES)
    else:
        put_simple_reply(row, at, np.int64(request.error), request.cookie)
    _put_out(x, number, index, header, NOBODY, True)


@part
def _put_out(x: Export, number: int, index: int, header: int, io: int, last: bool) -> None:
    c = x.connections[number]
    out = x.outs[number, np.int64((c.out_first + c.nr_outs) % np.uint32(OUTS))]
    out.header, out.io, out.request = np.int32(header), np.int32(io), np.int32(index)
    out.nbytes, out.last = 0 if io == NOBODY else x.pieces[io].nbytes, np.uint32(last)
    c.nr_outs += np.uint32(1)


# --- sending ----------------------------------------------------------------------------------


@part
def send_all(dev: Blkfront, x: Export, number: int) -> bool:
    """Send what is arranged, as far as the socket takes it; was anything?"""
    c = x.connections[number]
    count, at, skipped = np.int64(0), np.int64(c.out_first), c.sent
    headers = np.int64(x.headers.ctypes.data) + number * OUTS * HEADER_BYTES
    for _ in range(c.nr_outs):
        out = x.outs[number, at]
        header = np.int64(out.header)
        if skipped < header:
            address = headers + at * HEADER_BYTES + skipped
            count = _gather(x, count, address, header - skipped)
        skipped = max(skipped - header, 0)
        if out.io != NOBODY:
            address = buffer_of(dev, np.int64(out.io)) + skipped
            count = _gather(x, count, address, out.nbytes - skipped)
        skipped = 0
        at = (at + 1) % OUTS
    sent = send_from(c.fd, x.iovecs.ctypes.data, count)
    if sent < 0:
        if sent == AGAIN:
            c.writable = np.uint32(0)
        elif sent != INTERRUPTED:
            c.state = np.uint32(LOST)
        return sent == INTERRUPTED
    _take_off(x, number, sent)
    return True


@part
def _gather(x: Export, count: int, address: int, nbytes: int) -> np.int64:
    x.iovecs[count].address, x.iovecs[count].nbytes = np.uint64(address), np.uint64(nbytes)
    return np.int64(count + 1)


@part
def _take_off(x: Export, number: int, nbytes: int) -> None:
    """So many bytes are sent: what they were in is free."""
    c = x.connections[number]
    c.sent += nbytes
    while c.nr_outs > 0:
        out = x.outs[number, np.int64(c.out_first)]
        whole = np.int64(out.header) + out.nbytes
        if c.sent < whole:
            return
        c.sent -= whole
        if out.io != NOBODY:
            _free_io(x, number, np.int64(out.io))
        if out.last != 0:
            x.requests[number, np.int64(out.request)].answered = np.uint32(1)
            _free_request(x, number, np.int64(out.request))
        c.out_first = np.uint32((c.out_first + np.uint32(1)) % np.uint32(OUTS))
        c.nr_outs -= np.uint32(1)
