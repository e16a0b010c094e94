"""The phase TURN: a load's next I/O, and what is counted and checked when one finishes.

Owns: which I/O comes next. A flush follows every so many writes (fio's fsync), in an I/O of the
depth; the next I/O waits until it is queued, and it until the one before it is answered. It counts
by itself, and not as an I/O.
What comes next of a load with a shape says `load_shape.py`.
Rules: no two I/Os in flight touch the same block, so that what a read must return is certain. A
seed fixes the sequence of choices for a given order of completions: a block that is still busy is
passed over.
"""

import numpy as np

from common.abi import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_RSP_OKAY,
    SECTOR_SIZE,
    XEN_PAGE_SIZE,
)
from common.clock import monotonic_ns
from common.compiled import part
from common.counters import READS, TRIMS
from common.histogram import BUCKETS, bucket_of
from common.steps import ARM, END, NEXT, NONE
from frontend import blkfront, journal
from frontend.blkfront_info import NOT_SENT, Blkfront
from frontend.load import Load
from frontend.load_shape import CHOSEN, FLUSH, LATER, choose, random, thought_of, unmark
from frontend.load_state import BLOCK_TRIES, NOW_NS, STALE
from frontend.pattern import UNKNOWN, fill, mismatches


@part
def turn(dev: Blkfront, job: Load) -> int:
    """TURN: look at what is done, and queue one more I/O if none waits."""
    front = dev.front[0]
    if job.load[0].counts:
        now_ns = _now_ns(dev, job)
        _finish(dev, job, now_ns)
        if front.queued == 0:
            _start(dev, job, now_ns)
    if front.queued > 0:
        return NEXT
    rest = blkfront.rest(dev)
    if front.outstanding == 0 and rest == NONE and _over(job, job.clock[NOW_NS]):
        return END
    if rest == NONE and job.load[0].due_ns > 0:
        return ARM  # nobody spins for a time
    return rest


@part
def _now_ns(dev: Blkfront, job: Load) -> np.int64:
    """The time: read once a turn in which something has happened."""
    clock = job.clock
    if job.load[0].real_time and (clock[STALE] or dev.front[0].done > 0):
        clock[NOW_NS] = monotonic_ns(clock)
        clock[STALE] = 0
    return clock[NOW_NS]


@part
def _over(job: Load, now_ns: int) -> bool:
    load = job.load[0]
    return load.ios_left == 0 or load.stop != 0 or np.uint64(now_ns) >= load.deadline_ns


@part
def _choose_block(job: Load) -> np.int64:
    """A block no I/O in flight touches, or -1 if none was found."""
    load = job.load[0]
    for _ in range(BLOCK_TRIES):
        if load.sequential:
            block = load.next_block
            load.next_block = (block + np.uint64(1)) % load.nr_blocks
        else:
            block = (random(job.load) >> np.uint64(11)) % load.nr_blocks
        if not job.busy[np.int64(block)]:
            return np.int64(block)
    return np.int64(-1)


@part
def _start(dev: Blkfront, job: Load, now_ns: int) -> bool:
    """Queue one more I/O; False if the depth is reached or there is none now."""
    load = job.load[0]
    if load.idle_ios == 0:
        return False
    chosen = _choose(job, now_ns)
    if chosen == FLUSH:
        return _start_flush(dev, job)
    if chosen == LATER:
        return False
    load.idle_ios -= np.uint32(1)
    index = np.int64(job.idle[load.idle_ios])
    io = dev.ios[index]
    io.operation, io.sector, io.nr_sectors = np.uint16(load.operation), load.sector, load.sectors
    io.started_ns = np.uint64(now_ns)
    if load.operation != BLKIF_OP_READ:
        _prepare_write(dev, job, index)
    blkfront.enqueue(dev, index)
    return True


@part
def _choose(job: Load, now_ns: int) -> int:
    """What comes next: see `load_shape.choose`. Here it is what a load without a shape does."""
    load = job.load[0]
    if load.fsync > 0 and load.unflushed == load.fsync:
        return FLUSH
    if _over(job, now_ns):
        load.due_ns = np.uint64(0)
        return LATER
    if load.shaped:
        return choose(job.load, job.busy, job.sizes, job.trace, now_ns)
    block = _choose_block(job)
    if block < 0:
        return LATER
    load.ios_left -= np.uint64(1)
    reads = (random(job.load) >> np.uint64(33)) % np.uint64(100) < load.read_percent
    load.operation = np.uint32(BLKIF_OP_READ if reads else load.writes_as)
    load.sector = load.first_sector + np.uint64(block) * np.uint64(load.block_sectors)
    load.sectors = np.uint64(load.block_sectors)
    job.busy[block] = np.uint8(1)
    return CHOSEN


@part
def _prepare_write(dev: Blkfront, job: Load, index: int) -> None:
    """What is to be written, and who is to know before it is."""
    load, io = job.load[0], dev.ios[index]
    sector, nr_sectors = np.int64(io.sector), np.int64(io.nr_sectors)
    load.unflushed += np.uint32(io.operation == BLKIF_OP_WRITE)
    keeps = job.journal.head[0].keeps != 0
    if not load.verify or io.operation == BLKIF_OP_DISCARD:
        _forget(job, sector, nr_sectors)
        if keeps:
            journal.forget(job.journal, sector, nr_sectors)
        return
    if keeps:
        journal.go_on_from(job.journal, sector, nr_sectors, job.versions)
    address = np.int64(dev.front[0].ram) + np.int64(io.frame) * XEN_PAGE_SIZE
    fill(address, np.int64(load.disk), sector, nr_sectors, job.versions)
    if keeps:
        journal.issue(job.journal, sector, nr_sectors, job.versions)


@part
def _start_flush(dev: Blkfront, job: Load) -> bool:
    """Queue the flush that is due; False if the one before it is still on its way."""
    load = job.load[0]
    if load.flushing:
        return False
    load.flushing, load.unflushed, load.due_ns = np.uint32(1), np.uint32(0), np.uint64(0)
    load.idle_ios -= np.uint32(1)
    index = np.int64(job.idle[load.idle_ios])
    io = dev.ios[index]
    io.operation, io.sector = np.uint16(BLKIF_OP_FLUSH_DISKCACHE), np.uint64(0)
    io.nr_sectors = np.uint64(0)
    if job.journal.head[0].keeps:
        journal.begin_flush(job.journal)
    blkfront.enqueue(dev, index)
    return True


@part
def _forget(job: Load, sector: int, nr_sectors: int) -> None:
    """Nobody knows what these sectors hold now: not checked until they are written again."""
    for at in range(np.int64(sector), np.int64(sector) + np.int64(nr_sectors)):
        job.versions[at] = np.uint32(UNKNOWN)


@part
def _finish_flush(dev: Blkfront, job: Load, index: int) -> None:
    """A flush is done: its I/O is as those of the others are again."""
    load, io = job.load[0], dev.ios[index]
    okay = io.status == BLKIF_RSP_OKAY
    dev.counters[0].io_errors += np.uint64(not okay)
    if job.journal.head[0].keeps:  # what counts as done where the backend does not flush is none
        journal.end_flush(job.journal, okay and dev.front[0].flushes_as != NOT_SENT)
    load.flushing, io.nr_sectors = np.uint32(0), np.uint64(load.block_sectors)
    job.idle[load.idle_ios] = np.int32(index)
    load.idle_ios += np.uint32(1)


@part
def _finish(dev: Blkfront, job: Load, now_ns: int) -> None:
    """Check, count and free every I/O that is done."""
    front = dev.front[0]
    load = job.load[0]
    counters = dev.counters[0]
    for place in range(front.done):
        index = np.int64(dev.done[place])
        io = dev.ios[index]
        if io.operation == BLKIF_OP_FLUSH_DISKCACHE:
            _finish_flush(dev, job, index)
            continue
        nr_bytes = np.uint64(io.nr_sectors) * np.uint64(SECTOR_SIZE)
        what = min(np.int64(io.operation), np.int64(TRIMS))  # READS and WRITES are their numbers
        if io.status != BLKIF_RSP_OKAY:
            counters.io_errors += np.uint64(1)
            if what != READS:
                _forget(job, io.sector, io.nr_sectors)
        elif what == READS:
            counters.bytes_read += nr_bytes
            if load.verify:
                address = np.int64(dev.front[0].ram) + np.int64(io.frame) * XEN_PAGE_SIZE
                wrong = mismatches(
                    address,
                    np.int64(load.disk),
                    np.int64(io.sector),
                    np.int64(io.nr_sectors),
                    job.versions,
                )
                counters.verify_errors += np.uint64(wrong > 0)
        elif what == TRIMS:
            counters.bytes_discarded += nr_bytes
        else:
            counters.bytes_written += nr_bytes
            if load.verify and job.journal.head[0].keeps:
                journal.complete(job.journal, np.int64(io.sector), np.int64(io.nr_sectors))
        counters.ios += np.uint64(1)
        took = bucket_of(np.int64(np.uint64(now_ns) - io.started_ns))
        job.latency[what * BUCKETS + took] += np.uint64(1)
        if load.shaped:
            unmark(job.load, job.busy, what == READS, io.sector, io.nr_sectors)
            thought_of(job.load, now_ns)
        else:
            at = np.int64(io.sector) - np.int64(load.first_sector)
            job.busy[at // np.int64(load.block_sectors)] = np.uint8(0)
        job.idle[load.idle_ios] = np.int32(index)
        load.idle_ios += np.uint32(1)
    front.done = np.uint32(0)
