"""What is kept of an NBD connection: its own state, its slots', its entries'.

Owns: the layouts, and what they count by. The rules are `backend/nbd_requests.py`'s.
"""

from typing import Final, NamedTuple

import numpy as np

ENTRIES: Final = 1024  # requests on their way and late ones: a ring has 512 slots at most
ENTRY_BITS: Final = 16  # of a cookie
PARTS_MAX: Final = 8  # runs of bytes that a read may come in, none next to another
BUFFER_BYTES: Final = 256 * 1024
TRIM_MAX: Final = 1 << 30  # bytes in one request
NO_ENTRY: Final = -1
NO_SLOT: Final = -1

# Why a connection is lost: a number here, or minus an errno.
(
    HELD,
    ENDED,
    NO_REPLY,
    NOT_ASKED,
    BAD_CHUNK,
    TWICE,
    NOT_STRUCTURED,
    STOPPING,
    SILENT,
    CROWDED,
) = range(10)
REASONS: Final = (
    "",
    "the server ended it",
    "the server sent what is no reply",
    "the server answered what was not asked",
    "the server sent a chunk that has no sound form",
    "the server sent the same bytes twice",
    "the server sent a read's bytes without their structure",
    "the server is shutting down",
    "the server says nothing",
    "the server is late with too many answers",
)

# What `failures` counts by, beside errnos.
INCOMPLETE, OTHER, TIMED_OUT, CUT_OFF, CODES = 0, 253, 254, 255, 256

CONNECTION: Final = np.dtype(
    [
        ("timeout_ns", "<i8"),
        ("closing_ns", "<i8"),  # by then all is answered; 0: it does not close
        ("deadline_ns", "<i8"),  # no job is due before; 0: there are none
        ("received_ns", "<i8"),  # when something came last
        ("serial", "<u8"),  # of the last request
        ("max_payload", "<i8"),
        ("trim_max", "<i8"),
        ("out_from", "<i8"),  # of `outgoing`: what is still to be sent
        ("out_to", "<i8"),
        ("in_from", "<i8"),  # of `incoming`: what is still to be looked at
        ("in_to", "<i8"),
        ("body_left", "<i8"),  # bytes of a read that come next, and have no header
        ("body_at", "<i8"),  # of the request
        ("body_entry", "<u4"),
        ("body_done", "<u4"),  # they are the last of it
        ("fd", "<i4"),
        ("lost", "<i4"),
        ("connected", "<u4"),
        ("structured", "<u4"),
        ("can_flush", "<u4"),
        ("can_trim", "<u4"),
        ("waiting_from", "<u4"),
        ("nr_waiting", "<u4"),
        ("nr_free", "<u4"),
        ("nr_active", "<u4"),  # slots
        ("nr_answered", "<u4"),
        ("nr_failed", "<u4"),  # ever
    ]
)

SLOT: Final = np.dtype(
    [
        ("due_ns", "<i8"),
        ("at", "<i8"),  # bytes of the job that are done
        ("entry", "<i4"),
        ("active", "<u4"),
        ("sent_again", "<u4"),
        ("pad", "<u4"),
    ]
)

ENTRY: Final = np.dtype(
    [
        ("cookie", "<u8"),  # 0: it is free
        ("offset", "<i8"),
        ("nr_bytes", "<i8"),
        ("got", "<i8"),
        ("sent_ns", "<i8"),
        ("slot", "<i4"),
        ("kind", "<u4"),
        ("error", "<u4"),
        ("nr_parts", "<u4"),
    ]
)


class Connection(NamedTuple):
    """state: CONNECTION (1,); jobs to statuses: a ring's `Jobs`; slots: SLOT, one each; waiting:
    u32, a round of slots; entries: ENTRY; free: u32, a stack of entries; parts: i64 (ENTRIES,
    PARTS_MAX, 2), from and to; failures: u64 (kinds, CODES); incoming, outgoing, zeros: u8; clock:
    i64 (2,), scratch."""

    state: np.ndarray
    jobs: np.ndarray
    iovecs: np.ndarray
    answered: np.ndarray
    statuses: np.ndarray
    slots: np.ndarray
    waiting: np.ndarray
    entries: np.ndarray
    free: np.ndarray
    parts: np.ndarray
    failures: np.ndarray
    incoming: np.ndarray
    outgoing: np.ndarray
    zeros: np.ndarray
    clock: np.ndarray
