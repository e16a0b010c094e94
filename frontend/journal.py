"""What is known of a disk's contents for who asks after a crash, by sector: fio's verify_state.

Owns: for each sector the version that was last given out (`issued`) and the last one that a flush
has covered (`flushed`; UNKNOWN: it may hold anything). What the disk holds lies between, whoever is
killed at whatever moment: these two may lie in a file that all share (`toolstack/state_file.py`).
Rules
1. A version is in `issued` before its write is on the ring.
2. A flush covers what was answered before it was queued. It is in `flushed` only when the flush's
   answer is there and says OKAY; the journal counts for one flush at a time.
3. What a backend has answered that died since, and no flush has covered, it may have lost: no later
   flush covers it (`lose`).
4. What is discarded, or written with something that is no version, is UNKNOWN before the backend
   can see it, also to a flush that is on its way.
"""

from typing import Final, NamedTuple

import numpy as np

from common.arena import Arena
from common.compiled import kernel
from common.rows import Layout
from frontend.pattern import UNKNOWN

NOT_DIRTY: Final = 0  # in `completed`: the sector is not listed

JOURNAL_HEAD: Final = np.dtype(
    [
        ("keeps", "<u4"),  # 0: nothing is kept
        ("list", "<u4"),  # which half of `dirty` is being filled; the other is being flushed
        ("count", "<u8"),  # in that
        ("covered", "<u8"),  # in the other
    ]
)


class Journal(NamedTuple):
    """head: JOURNAL_HEAD (1,); flushed, issued: u32 a sector; completed: u32 a sector, the version
    that was answered and that no flush covers yet; covered: the same of the flush on its way;
    dirty: i64, twice the sectors: which have a version in `completed`, and in `covered`.
    """

    head: np.ndarray
    flushed: np.ndarray
    issued: np.ndarray
    completed: np.ndarray
    covered: np.ndarray
    dirty: np.ndarray


JOURNAL: Final = Layout(
    Journal,
    head=JOURNAL_HEAD,
    flushed=np.uint32,
    issued=np.uint32,
    completed=np.uint32,
    covered=np.uint32,
    dirty=np.int64,
)


def no_journal(arena: Arena) -> Journal:
    """Of a disk of which nothing is kept."""
    none = arena.array(1, np.uint32)
    return Journal(arena.array(1, JOURNAL_HEAD), none, none, none, none, arena.array(2, np.int64))


def new_journal(arena: Arena, flushed: np.ndarray, issued: np.ndarray) -> Journal:
    """Goes on from what two arrays (u32 a sector) say, and keeps it there."""
    head, nr_sectors = arena.array(1, JOURNAL_HEAD), len(flushed)
    head["keeps"] = 1
    completed, covered = arena.array((2, nr_sectors), np.uint32)
    dirty = arena.array(2 * nr_sectors, np.int64)
    return Journal(head, flushed, issued, completed, covered, dirty)


def journal_bytes(nr_sectors: int) -> int:
    """What a journal takes of an arena, at most."""
    return 24 * nr_sectors + 4096


def certain_versions(journal: Journal) -> np.ndarray:
    """What reads are to find (`pattern.py`'s versions, a copy): UNKNOWN where two are possible."""
    certain = journal.flushed == journal.issued
    return np.where(certain, journal.issued, np.uint32(UNKNOWN)).astype(np.uint32)


@kernel
def go_on_from(journal: Journal, sector: int, nr_sectors: int, versions: np.ndarray) -> None:
    """The next versions of these sectors are to follow those last given out."""
    for at in range(sector, sector + nr_sectors):
        versions[at] = journal.issued[at]


@kernel
def issue(journal: Journal, sector: int, nr_sectors: int, versions: np.ndarray) -> None:
    """Before these versions of sectors are written."""
    for at in range(sector, sector + nr_sectors):
        journal.issued[at] = versions[at]


@kernel
def forget(journal: Journal, sector: int, nr_sectors: int) -> None:
    """Before these sectors may hold anything."""
    for at in range(sector, sector + nr_sectors):
        journal.flushed[at] = np.uint32(UNKNOWN)
        journal.covered[at] = np.uint32(UNKNOWN)
        if journal.completed[at] != NOT_DIRTY:
            journal.completed[at] = np.uint32(UNKNOWN)


@kernel
def complete(journal: Journal, sector: int, nr_sectors: int) -> None:
    """These sectors' versions are written."""
    head = journal.head[0]
    half = np.int64(head.list) * np.int64(len(journal.issued))
    for at in range(sector, sector + nr_sectors):
        if journal.completed[at] == NOT_DIRTY:
            journal.dirty[half + np.int64(head.count)] = at
            head.count += np.uint64(1)
        journal.completed[at] = journal.issued[at]


def lose(journal: Journal) -> None:
    """What was answered may be lost, and so may what a flush on its way was to cover."""
    journal.completed[:] = NOT_DIRTY
    journal.head["count"] = journal.head["covered"] = 0


@kernel
def begin_flush(journal: Journal) -> None:
    """A flush is to be queued: what it covers is known now."""
    head = journal.head[0]
    half = np.int64(head.list) * np.int64(len(journal.issued))
    for place in range(np.int64(head.count)):
        at = journal.dirty[half + place]
        journal.covered[at] = journal.completed[at]
        journal.completed[at] = np.uint32(NOT_DIRTY)
    head.covered, head.count = head.count, np.uint64(0)
    head.list = np.uint32(1) - head.list


@kernel
def end_flush(journal: Journal, okay: bool) -> None:
    """It is answered. One that failed covers nothing: the next has its sectors, too."""
    head, nr_sectors = journal.head[0], np.int64(len(journal.issued))
    half, other = np.int64(head.list) * nr_sectors, np.int64(1 - head.list) * nr_sectors
    for place in range(np.int64(head.covered)):
        at = journal.dirty[other + place]
        if okay:
            journal.flushed[at] = journal.covered[at]
        elif journal.completed[at] == NOT_DIRTY:
            journal.completed[at] = journal.covered[at]
            journal.dirty[half + np.int64(head.count)] = at
            head.count += np.uint64(1)
    head.covered = np.uint64(0)
