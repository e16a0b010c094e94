"""The pieces that an export's requests are cut to, compiled: each an I/O with a buffer of its own.

Owns: which I/O a piece has, from when it is taken to when it is queued; and when a request's reply
is due. What is asked and what is told, `frontend/nbd_asked.py` and `nbd_answers.py`, both use it.
"""

import numpy as np

from common.abi import SECTOR_SIZE, XEN_PAGE_SIZE
from common.compiled import part
from frontend import blkfront, journal
from frontend.blkfront_info import Blkfront
from frontend.load import Load
from frontend.nbd_export import NOBODY, REQUESTS, Export
from frontend.pattern import UNKNOWN


@part
def buffer_of(dev: Blkfront, io: int) -> np.int64:
    """The address of an I/O's buffer."""
    return np.int64(dev.front[0].ram) + np.int64(dev.ios[io].frame) * XEN_PAGE_SIZE


@part
def take_io(x: Export, number: int, index: int) -> np.int64:
    """An I/O of a connection that has one, for its request `index`."""
    c = x.connections[number]
    c.free_ios -= np.uint32(1)
    io = np.int64(x.idle[number, c.free_ios])
    piece = x.pieces[io]
    piece.request, piece.next, piece.done = np.int32(index), np.int32(NOBODY), np.uint32(0)
    x.requests[number, index].under_way += np.uint32(1)
    return io


@part
def say_ready(x: Export, number: int, index: int) -> None:
    """A request's reply, or its beginning, may be sent when it is its turn."""
    c = x.connections[number]
    if x.requests[number, index].queued == 0:
        x.requests[number, index].queued = np.uint32(1)
        x.ready[number, (c.ready_first + c.nr_ready) % np.uint32(REQUESTS)] = np.int32(index)
        c.nr_ready += np.uint32(1)


@part
def forget(job: Load, sector: int, nr_sectors: int) -> None:
    """A user writes here: no load knows what it holds."""
    for at in range(sector, sector + nr_sectors):
        job.versions[at] = np.uint32(UNKNOWN)
    if job.journal.head[0].keeps != 0:
        journal.forget(job.journal, sector, nr_sectors)


@part
def enqueue(dev: Blkfront, io: int, operation: int, offset: int, nbytes: int) -> None:
    """Queue an I/O. offset, nbytes: of the disk."""
    queued = dev.ios[io]
    queued.operation, queued.secure = np.uint16(operation), np.uint16(0)
    queued.sector = np.uint64(offset // SECTOR_SIZE)
    queued.nr_sectors = np.uint64(nbytes // SECTOR_SIZE)
    blkfront.enqueue(dev, io)
