"""The next I/O of a load with a shape: what of which size, where, and when.

Owns: fio's bssplit, random_distribution, rate_iops, thinktime, startdelay, ramp_time, and a trace.
Rules
1. What comes next is drawn once, and waits until it can be: a seed fixes what is done, whatever the
   time. Rates alone may change it: where reads are ahead of theirs and writes are not, a write is.
2. Nobody spins for a time: until `due_ns` there is nothing to do, and `frontend/driver.py` sleeps.
3. By a rate the nth I/O is due n/rate after the beginning, however late the one before it was.
4. If nothing is on its way, and it is time, there always is a place.
5. Of a load that is verified a write has its sectors alone, while reads share theirs: what is drawn
   in its way is drawn anew, what is next of a trace waits. Who verifies nothing need not care.
"""

from typing import Final

import numpy as np

from common.abi import BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_READ, SECTOR_SIZE
from common.compiled import part, whole
from frontend.load_state import BLOCK_TRIES, PARETO, RANDOM, REPLAY, SHARES
from frontend.ranks import pareto, zipf_try

# What `choose` returns.
LATER: Final = 0
CHOSEN: Final = 1  # `operation`, `sector` and `sectors` are what comes next
FLUSH: Final = 2

# Of a unit in `busy`: how many reads of it are on their way, at most, or that a write is.
READ_MAX: Final = 253
WRITTEN: Final = 255

SECOND_NS: Final = 1_000_000_000


@part
def random(state: np.ndarray) -> np.uint64:
    """The next of a xorshift64* sequence."""
    x = state[0].random
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0].random = x
    return x * np.uint64(0x2545F4914F6CDD1D)


@whole
def choose(
    state: np.ndarray, busy: np.ndarray, sizes: np.ndarray, trace: np.ndarray, now_ns: int
) -> int:
    """The next I/O, if it can be queued now. state: LOAD_STATE; the rest is a Load's."""
    load = state[0]
    now, load.due_ns = np.uint64(now_ns), np.uint64(0)
    if now < load.not_before_ns:
        load.due_ns = min(load.not_before_ns, load.deadline_ns)
        return LATER
    if load.think_ns > 0 and load.begun == load.think_ios:
        return LATER
    if load.distribution == REPLAY:
        chosen = _next_of_trace(state, busy, trace, now)
    else:
        chosen = _drawn(state, busy, sizes, now)
    if chosen == CHOSEN:
        _take_off(state, busy, now)
    return chosen


@part
def _take_off(state: np.ndarray, busy: np.ndarray, now: np.uint64) -> None:
    """It is queued: what is left after it."""
    load = state[0]
    _mark(state, busy)
    load.drawn = np.uint32(0)
    load.begun += np.uint32(load.think_ns > 0)
    if now < load.ramped_ns:
        return
    nr_bytes = load.sectors * np.uint64(SECTOR_SIZE)
    load.ios_left -= np.uint64(load.ios_left > 0)  # none is left at the end of a trace
    load.bytes_left -= min(nr_bytes, load.bytes_left)
    if load.bytes_left == 0:
        load.ios_left = np.uint64(0)


@part
def _mark(state: np.ndarray, busy: np.ndarray) -> None:
    """What comes next is on its way."""
    load = state[0]
    if not load.verify:
        return
    first = np.int64(load.sector - load.first_sector) // np.int64(load.unit_sectors)
    for unit in range(first, first + np.int64(load.sectors) // np.int64(load.unit_sectors)):
        busy[unit] = busy[unit] + np.uint8(1) if load.reads else np.uint8(WRITTEN)


@part
def unmark(state: np.ndarray, busy: np.ndarray, read: bool, sector: int, sectors: int) -> None:
    """These sectors, of the disk, are on their way no more."""
    load = state[0]
    if not load.verify:
        return
    first = (np.int64(sector) - np.int64(load.first_sector)) // np.int64(load.unit_sectors)
    for unit in range(first, first + np.int64(sectors) // np.int64(load.unit_sectors)):
        busy[unit] = busy[unit] - np.uint8(1) if read else np.uint8(0)


@part
def thought_of(state: np.ndarray, now_ns: int) -> None:
    """An I/O is done: is it time to think?"""
    load = state[0]
    load.ended += np.uint32(1)
    if load.think_ns > 0 and load.ended == load.think_ios:
        load.begun, load.ended = np.uint32(0), np.uint32(0)
        load.not_before_ns = np.uint64(now_ns) + load.think_ns


# --- what is drawn ----------------------------------------------------------------------------


@part
def _drawn(state: np.ndarray, busy: np.ndarray, sizes: np.ndarray, now: np.uint64) -> int:
    load = state[0]
    if not load.drawn:
        load.drawn = np.uint32(1)
        load.reads = np.uint32(
            (random(state) >> np.uint64(33)) % np.uint64(100) < load.read_percent
        )
        load.sectors = _size(state, sizes)
    if not _in_time(state, sizes, now):
        return LATER
    for _ in range(BLOCK_TRIES):
        place = _place(state)
        if _is_free(state, busy, place, np.int64(load.sectors)):
            load.sector = load.first_sector + np.uint64(place)
            load.operation = np.uint32(BLKIF_OP_READ) if load.reads else load.writes_as
            load.paced[1 - load.reads] += np.uint64(1)
            return CHOSEN
    return LATER


@part
def _size(state: np.ndarray, sizes: np.ndarray) -> np.uint64:
    load = state[0]
    at = np.int64(0) if load.reads else np.int64(load.read_sizes)
    last = (np.int64(load.read_sizes) if load.reads else np.int64(len(sizes))) - 1
    share = random(state) % np.uint64(SHARES) if last > at else np.uint64(0)
    while at < last and share >= sizes[at].below:
        at += 1
    return np.uint64(sizes[at].sectors)


@part
def _in_time(state: np.ndarray, sizes: np.ndarray, now: np.uint64) -> bool:
    """Is what was drawn due, or something of the other kind instead of it?"""
    load = state[0]
    mixed = 0 < load.read_percent < 100
    due = _due(state, np.int64(1 - load.reads))
    if due > now and mixed:
        other = _due(state, np.int64(load.reads))
        if other <= now:
            load.reads = np.uint32(1) - load.reads
            load.sectors = _size(state, sizes)
            return True
        due = min(due, other)
    if due > now:
        load.due_ns = min(due, load.deadline_ns)
        return False
    return True


@part
def _due(state: np.ndarray, kind: int) -> np.uint64:
    """When the next read (0), or the next of the rest, may be queued."""
    load = state[0]
    if load.rate[kind] == 0:
        return np.uint64(0)
    return load.began_ns + load.paced[kind] * np.uint64(SECOND_NS) // load.rate[kind]


@part
def _place(state: np.ndarray) -> np.int64:
    """Where in the region."""
    load = state[0]
    sectors, region = np.int64(load.sectors), np.int64(load.region)
    if load.sequential:
        place = np.int64(load.place)
        if place + sectors > region:
            place = np.int64(0)
        load.place = np.uint64(place + sectors)
        return place
    nr_blocks = np.int64(load.nr_blocks)
    places = (region - sectors) // np.int64(load.block_sectors) + 1
    if load.distribution == RANDOM:
        block = np.int64((random(state) >> np.uint64(11)) % np.uint64(places))
    else:
        rank = np.uint64(_rank(state, nr_blocks))
        block = np.int64(rank * load.spread % load.nr_blocks) % places
    return block * np.int64(load.block_sectors)


@part
def _rank(state: np.ndarray, nr: int) -> np.int64:
    load = state[0]
    rank = -1
    while rank < 0:
        uniform = float(random(state) >> np.uint64(11)) / float(1 << 53)
        if load.distribution == PARETO:
            rank = pareto(uniform, nr, load.skew)
        else:
            rank = zipf_try(uniform, nr, load.skew, load.from_first, load.to_last, load.sure)
    return np.int64(rank)


@part
def _is_free(state: np.ndarray, busy: np.ndarray, place: int, sectors: int) -> bool:
    """May what comes next, a read or not, go on its way there?"""
    load = state[0]
    if not load.verify:
        return True
    most = READ_MAX if load.reads else 0
    unit = np.int64(load.unit_sectors)
    free = True
    for at in range(place // unit, place // unit + sectors // unit):
        free = free and busy[at] <= most
    return free


# --- a trace ----------------------------------------------------------------------------------


@part
def _next_of_trace(state: np.ndarray, busy: np.ndarray, trace: np.ndarray, now: np.uint64) -> int:
    """In its order: what touches something that is on its way waits until that is done."""
    load = state[0]
    entry = trace[np.int64(load.entry)]
    due = load.began_ns + entry.at_ns
    if load.timed and due > now:
        load.due_ns = min(due, load.deadline_ns)
        return LATER
    flushes = entry.operation == BLKIF_OP_FLUSH_DISKCACHE
    if flushes and load.flushing:
        return LATER
    load.reads = np.uint32(entry.operation == BLKIF_OP_READ)
    if not _is_free(state, busy, np.int64(entry.sector), np.int64(entry.nr_sectors)):
        return LATER
    load.sector = load.first_sector + entry.sector
    load.sectors, load.operation = np.uint64(entry.nr_sectors), entry.operation
    load.entry += np.uint64(1)
    if np.int64(load.entry) == len(trace):
        _begin_again(state, now)
    return FLUSH if flushes else CHOSEN


@part
def _begin_again(state: np.ndarray, now: np.uint64) -> None:
    """The trace is at its end: once more, or no more."""
    load = state[0]
    load.entry, load.began_ns = np.uint64(0), now
    load.loops_left -= np.uint64(1)
    if load.loops_left == 0:
        load.ios_left = np.uint64(0)
