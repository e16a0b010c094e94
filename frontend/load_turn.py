"""The phase TURN: a load's next I/O, and what is counted and checked when one finishes.

Owns: which I/O comes next. A flush follows every so many writes (fio's fsync), in an I/O of the
depth; the next I/O waits until it is queued, and it until the one before it is answered. It counts
by itself, and not as an I/O.
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
from common.histogram import bucket_of
from common.steps import END, NEXT, NONE
from frontend import blkfront, journal
from frontend.blkfront_info import NOT_SENT, Blkfront
from frontend.load import BLOCK_TRIES, NOW_NS, STALE, Load
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
def _random(job: Load) -> np.uint64:
    """The next of a xorshift64* sequence."""
    x = job.load[0].random
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    job.load[0].random = x
    return x * np.uint64(0x2545F4914F6CDD1D)


@part
def _choose_block(job: Load) -> np.int64:
    """A block no I/O in flight touches, or -1 if none was found."""
    load = job.load[0]
    for _ in range(BLOCK_TRIES):
        if load.sequential:
            block = load.next_block
            load.next_block = (block + np.uint64(1)) % load.nr_blocks
        else:
            block = (_random(job) >> np.uint64(11)) % load.nr_blocks
        if not job.busy[np.int64(block)]:
            return np.int64(block)
    return np.int64(-1)


@part
def _start(dev: Blkfront, job: Load, now_ns: int) -> bool:
    """Queue one more I/O; False if the depth is reached or the load is over."""
    load = job.load[0]
    if load.idle_ios == 0:
        return False
    if load.fsync > 0 and load.unflushed == load.fsync:
        return _start_flush(dev, job)
    if _over(job, now_ns):
        return False
    block = _choose_block(job)
    if block < 0:
        return False
    load.idle_ios -= np.uint32(1)
    load.ios_left -= np.uint64(1)
    index = np.int64(job.idle[load.idle_ios])
    io = dev.ios[index]
    reads = (_random(job) >> np.uint64(33)) % np.uint64(100) < load.read_percent
    io.operation = np.uint16(BLKIF_OP_READ if reads else load.writes_as)
    io.sector = np.uint64(block) * np.uint64(load.block_sectors)
    io.started_ns = np.uint64(now_ns)
    job.busy[block] = np.uint8(1)
    if not reads:
        _prepare_write(dev, job, index)
    blkfront.enqueue(dev, index)
    return True


@part
def _prepare_write(dev: Blkfront, job: Load, index: int) -> None:
    """What is to be written, and who is to know before it is."""
    load, io = job.load[0], dev.ios[index]
    sector, nr_sectors = np.int64(io.sector), np.int64(io.nr_sectors)
    load.unflushed += np.uint32(load.writes_as == BLKIF_OP_WRITE)
    keeps = job.journal.head[0].keeps != 0
    if not load.verify or load.writes_as == BLKIF_OP_DISCARD:
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
    load.flushing, load.unflushed = np.uint32(1), np.uint32(0)
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
        if io.status != BLKIF_RSP_OKAY:
            counters.io_errors += np.uint64(1)
            if io.operation != BLKIF_OP_READ:
                _forget(job, io.sector, io.nr_sectors)
        elif io.operation == BLKIF_OP_READ:
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
        elif io.operation == BLKIF_OP_DISCARD:
            counters.bytes_discarded += nr_bytes
        else:
            counters.bytes_written += nr_bytes
            if load.verify and job.journal.head[0].keeps:
                journal.complete(job.journal, np.int64(io.sector), np.int64(io.nr_sectors))
        counters.ios += np.uint64(1)
        job.latency[bucket_of(np.int64(np.uint64(now_ns) - io.started_ns))] += np.uint64(1)
        job.busy[np.int64(io.sector) // np.int64(load.block_sectors)] = np.uint8(0)
        job.idle[load.idle_ios] = np.int32(index)
        load.idle_ios += np.uint32(1)
    front.done = np.uint32(0)
