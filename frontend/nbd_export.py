"""A disk's export over NBD, its state: connections, requests, and the pieces these are cut to.

Owns: the layouts, and who has what of the disk's I/Os and buffers. What clients ask is taken in by
`frontend/nbd_asked.py`, what they are told put together by `frontend/nbd_answers.py`, and both are
called between the phases of the disk's ring by `frontend/nbd_loop.py`. How a client gets here is
`frontend/nbd_greeting.py`'s.
Rules
1. A *request* is cut to *pieces*, an I/O each, which has a buffer of its own in guest RAM.
2. Each connection has its own share of requests, I/Os and buffers: who does not read, or asks for
   much, holds up itself alone.
3. A connection's requests are begun in their order, each wholly before the next: the pieces of one
   that is larger than the share are begun as others of its own are done, and never wait for those
   of a later request.
4. A read's bytes are sent in their order; once the first of them is on its way, no other reply of
   that connection is until the last. Else it is who is done first.
"""

from typing import Final, NamedTuple

import numpy as np

from common.abi import SECTOR_SIZE, XEN_PAGE_SIZE
from common.arena import Arena
from common.nbd_wire import (
    FLAG_CAN_MULTI_CONN,
    FLAG_HAS_FLAGS,
    FLAG_READ_ONLY,
    FLAG_SEND_FLUSH,
    FLAG_SEND_FUA,
    FLAG_SEND_TRIM,
    FLAG_SEND_WRITE_ZEROES,
    PAYLOAD_MAX,
)
from common.rows import Layout
from common.stream_socket import IOVEC
from frontend.blkfront_info import NOT_SENT
from frontend.disk import Disk
from frontend.load import Load, no_load
from frontend.load_state import NO_END

CONNECTIONS_MAX: Final = 8
IOS: Final = 32  # of a connection, as many as a ring of one page has slots
REQUESTS: Final = 32  # of a connection
OUTS: Final = 128  # a power of two, more than I/Os and requests together
HEADER_BYTES: Final = 32  # of what is sent before a piece's bytes, at most
INCOMING_BYTES: Final = 64 * 1024
PIECE_FRAMES: Final = 11  # a request of the ring
PREFERRED_BYTES: Final = 4096
ARENA_BYTES: Final = 1 << 20

NOBODY: Final = -1
ENDED: Final = 2  # `readable`: the client has gone, or sends no more

# Of a connection.
(
    FREE,
    LIVE,
    ENDING,  # nothing more is taken; what was asked for is answered
    LOST,  # nothing is sent or received; its I/Os are awaited
) = range(4)

EXPORT: Final = np.dtype(
    [
        ("nr_bytes", "<i8"),
        ("block", "<i8"),  # bytes, of which each offset and length is a multiple
        ("piece", "<i8"),  # bytes of one, at most
        ("flags", "<u4"),  # of transmission: what is offered
        ("busy", "<u4"),  # something can be done that nobody will tell of
    ]
)

CONNECTION: Final = np.dtype(
    [
        ("skip", "<i8"),  # bytes of a refused write that come next
        ("filled", "<i8"),  # of the I/O that a write's bytes go to
        ("in_from", "<i8"),  # of `incoming`: what is still to be looked at
        ("in_to", "<i8"),
        ("sent", "<i8"),  # bytes of the first of what is to be sent
        ("fd", "<i4"),
        ("state", "<u4"),
        ("structured", "<u4"),
        ("readable", "<u4"),  # as far as is known; ENDED: to its end
        ("writable", "<u4"),
        ("current", "<i4"),  # the request that is being begun
        ("filling", "<i4"),  # the I/O of a write that is not whole
        ("speaker", "<i4"),  # the read whose bytes come next
        ("free_ios", "<u4"),
        ("free_requests", "<u4"),
        ("ready_first", "<u4"),
        ("nr_ready", "<u4"),
        ("out_first", "<u4"),
        ("nr_outs", "<u4"),
    ]
)

REQUEST: Final = np.dtype(
    [
        ("cookie", "<u8"),
        ("offset", "<i8"),
        ("length", "<i8"),
        ("begun", "<i8"),  # bytes that have a piece
        ("told", "<i8"),  # bytes whose sending is arranged
        ("command", "<u4"),
        ("error", "<u4"),  # NBD's number
        ("fua", "<u4"),  # a flush is still to follow
        ("under_way", "<u4"),  # pieces
        ("first", "<i4"),  # a read's pieces that are not sent yet, in their order
        ("last", "<i4"),
        ("queued", "<u4"),  # it is `ready`, or speaks, or is answered
        ("answered", "<u4"),  # wholly sent
        ("dropped", "<u4"),  # a read that has failed: what is under way is for nobody
        ("pad", "<u4"),
    ]
)

PIECE: Final = np.dtype(
    [
        ("nbytes", "<i8"),
        ("at", "<i8"),  # of the request
        ("request", "<i4"),
        ("next", "<i4"),
        ("done", "<u4"),
        ("pad", "<u4"),
    ]
)

OUT: Final = np.dtype(
    [
        ("nbytes", "<i8"),  # of the I/O's buffer
        ("header", "<i4"),  # bytes
        ("io", "<i4"),
        ("request", "<i4"),
        ("last", "<u4"),  # of the request
    ]
)


class Export(NamedTuple):
    """head: EXPORT (1,); connections: CONNECTION (n,); requests: REQUEST, ready: i32, spare: i32,
    a stack, idle: i32, a stack of I/Os, outs: OUT, headers, incoming: u8, each a row a connection;
    pieces: PIECE, by I/O; iovecs: IOVEC, scratch."""

    head: np.ndarray
    connections: np.ndarray
    requests: np.ndarray
    spare: np.ndarray
    ready: np.ndarray
    idle: np.ndarray
    outs: np.ndarray
    headers: np.ndarray
    incoming: np.ndarray
    pieces: np.ndarray
    iovecs: np.ndarray


EXPORTS: Final = Layout(
    Export,
    head=EXPORT,
    connections=CONNECTION,
    requests=(REQUEST, 2),
    spare=(np.int32, 2),
    ready=(np.int32, 2),
    idle=(np.int32, 2),
    outs=(OUT, 2),
    headers=(np.uint8, 2),
    incoming=(np.uint8, 2),
    pieces=PIECE,
    iovecs=IOVEC,
)


def flags_of(disk: Disk) -> int:
    """The transmission flags: what the disk's backend can do is offered, and nothing else."""
    flags = FLAG_HAS_FLAGS | FLAG_CAN_MULTI_CONN
    if disk.flushes_as != NOT_SENT:
        flags |= FLAG_SEND_FLUSH
    if disk.read_only:
        return flags | FLAG_READ_ONLY
    if disk.flushes_as != NOT_SENT:
        flags |= FLAG_SEND_FUA
    if disk.discard:
        flags |= FLAG_SEND_TRIM
    return flags | FLAG_SEND_WRITE_ZEROES


def new_export(
    disk: Disk, nr_sectors: int, ios: np.ndarray, first_frame: int, nr_frames: int
) -> Export:
    """Of the first `nr_sectors` of a disk whose device has these `ios`, which are given their
    buffers in the `nr_frames` frames from `first_frame` on. There is a frame for each I/O."""
    arena, shape = Arena(ARENA_BYTES), (CONNECTIONS_MAX, REQUESTS)
    nr_ios = CONNECTIONS_MAX * IOS
    assert len(ios) >= nr_ios <= nr_frames, "too few I/Os or buffers"
    frames = min(PIECE_FRAMES, nr_frames // nr_ios)
    ios["frame"][:nr_ios] = first_frame + np.arange(nr_ios) * frames
    head = arena.array(1, EXPORT)
    head["nr_bytes"], head["block"] = nr_sectors * SECTOR_SIZE, disk.sector_size
    head["piece"], head["flags"] = frames * XEN_PAGE_SIZE, flags_of(disk)
    return Export(
        head,
        arena.array(CONNECTIONS_MAX, CONNECTION),
        arena.array(shape, REQUEST),
        arena.array(shape, np.int32),
        arena.array(shape, np.int32),
        arena.array((CONNECTIONS_MAX, IOS), np.int32),
        arena.array((CONNECTIONS_MAX, OUTS), OUT),
        arena.array((CONNECTIONS_MAX, OUTS * HEADER_BYTES), np.uint8),
        arena.array((CONNECTIONS_MAX, INCOMING_BYTES), np.uint8),
        arena.array(nr_ios, PIECE),
        arena.array(2 * OUTS, IOVEC),
    )


def begin_connection(x: Export, number: int, fd: int, structured: bool, came: bytes) -> None:
    """Connection `number`, which is FREE, is `fd`'s from now on; came: what its client has sent
    after the greeting."""
    assert len(came) <= INCOMING_BYTES, "more than there is room for"
    c = x.connections[number : number + 1]
    assert c["state"][0] == FREE, "it is in use"
    c[:] = np.zeros(1, CONNECTION)
    c["fd"], c["structured"], c["state"] = fd, structured, LIVE
    c["readable"] = c["writable"] = 1
    c["current"] = c["filling"] = c["speaker"] = NOBODY
    c["free_ios"], c["free_requests"] = IOS, REQUESTS
    x.idle[number] = number * IOS + np.arange(IOS)[::-1]
    x.spare[number] = np.arange(REQUESTS)[::-1]
    x.requests[number] = np.zeros(REQUESTS, REQUEST)
    x.incoming[number, : len(came)] = np.frombuffer(came, np.uint8)
    c["in_to"] = len(came)
    x.head["busy"] = 1


def is_over(x: Export, number: int) -> bool:
    """Has a connection ended, and is nothing of it under way?"""
    c = x.connections[number]
    begun = int(x.requests["under_way"][number].sum()) - int(c["filling"] != NOBODY)
    return bool(c["state"] == LOST and begun == 0)


def export_load(arena: Arena, versions: np.ndarray, kept: object) -> Load:
    """The job of a ring that an export has: it never ends by itself. versions, kept: what is known
    of the disk, and a journal of it, if there is one (`Load`)."""
    job = no_load(arena)
    job.load["stop"], job.load["ios_left"], job.load["deadline_ns"] = 0, 1, NO_END
    job = job._replace(versions=versions)
    return job if kept is None else job._replace(journal=kept)  # type: ignore[arg-type]


def payload_max(block: int) -> int:
    """Bytes of one request that brings or takes some, at most."""
    return PAYLOAD_MAX - PAYLOAD_MAX % block
