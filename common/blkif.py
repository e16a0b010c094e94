"""blkif requests and responses as the u64 words they are made of, for compiled code.

Owns: how fields are packed into a slot (the layouts themselves are in `common/abi.py`, and the
tests hold one against the other). `at` is the slot's first word in `qwords` (`ring.slot`).
Rule: a request is copied out of shared memory once, word by word with atomic loads that no compiler
may repeat (XSA-155), and everything after that reads the copy.
"""

from typing import Final

import numpy as np

from common.atomics import load_acquire
from common.compiled import kernel
from common.ring import SLOT_QWORDS

# Words of a read/write request: op, nr_segments, handle | id | sector_number | segments.
# Of a discard: op, flag, handle | id | sector_number | nr_sectors.
ID: Final = 1
SECTOR: Final = 2
SEGMENTS: Final = 3
NR_SECTORS: Final = 3


@kernel
def put_request(
    qwords: np.ndarray,
    at: int,
    operation: int,
    nr_segments: int,
    handle: int,
    id_: int,
    sector: int,
) -> None:
    """Write all of a request but its segments (x86-64)."""
    qwords[at] = np.uint64(operation | (nr_segments << 8) | (handle << 16))
    qwords[at + ID] = np.uint64(id_)
    qwords[at + SECTOR] = np.uint64(sector)


@kernel
def put_segment(
    qwords: np.ndarray, at: int, index: int, gref: int, first_sect: int, last_sect: int
) -> None:
    """Write segment `index` of a request."""
    qwords[at + SEGMENTS + index] = np.uint64(
        np.int64(gref) | (np.int64(first_sect) << 32) | (np.int64(last_sect) << 40)
    )


@kernel
def put_discard(qwords: np.ndarray, at: int, nr_sectors: int, flag: int) -> None:
    """Make the request at `at` a discard of so many sectors; flag: BLKIF_DISCARD_SECURE or 0."""
    qwords[at] |= np.uint64(np.int64(flag) << 8)
    qwords[at + NR_SECTORS] = np.uint64(nr_sectors)


@kernel
def copy_request(qwords: np.ndarray, at: int, copy: np.ndarray) -> None:
    """Copy a slot into `copy` (u64, shape (14,)), each word once."""
    for word in range(SLOT_QWORDS):
        copy[word] = load_acquire(qwords, at + word)


@kernel
def put_response(qwords: np.ndarray, at: int, id_: int, operation: int, status: int) -> None:
    """Write a response over its slot: 16 bytes, the padding always zero (XSA-216)."""
    qwords[at] = np.uint64(id_)
    qwords[at + 1] = np.uint64(operation | ((status & 0xFFFF) << 16))


@kernel
def operation_of(word: int) -> np.int64:
    """`operation` in a request's first word or a response's second."""
    return np.int64(word) & 0xFF


@kernel
def nr_segments_of(word: int) -> np.int64:
    """`nr_segments` in a request's first word."""
    return (np.int64(word) >> 8) & 0xFF


@kernel
def status_of(word: int) -> np.int64:
    """`status` in a response's second word, sign-extended."""
    status = (np.int64(word) >> 16) & 0xFFFF
    return status - 0x10000 if status & 0x8000 else status


@kernel
def gref_of(word: int) -> np.int64:
    """`gref` of a segment's word."""
    return np.int64(word) & 0xFFFFFFFF


@kernel
def first_sect_of(word: int) -> np.int64:
    """`first_sect` of a segment's word."""
    return (np.int64(word) >> 32) & 0xFF


@kernel
def last_sect_of(word: int) -> np.int64:
    """`last_sect` of a segment's word."""
    return (np.int64(word) >> 40) & 0xFF
