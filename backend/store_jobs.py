"""What a store is asked to do for a request, as numbers: one job a slot of the ring.

Owns: the layouts of a job and of where its bytes lie, and the protocol of stores that answer later.
A job is one of READ, WRITE, FLUSH and DISCARD (`backend/slots.py`): what takes several of these (a
barrier, a flush that brings data) is as many jobs of its slot, one after the other
(`backend/at_store.py`).
Rules
1. A slot has one job at a time, and its pages stay mapped until the job is answered.
2. A job is answered once, with BLKIF_RSP_OKAY or an error, by the thread that serves the ring.
3. A WRITE that is answered before a FLUSH is begun is covered by that FLUSH; one that is on its way
   may be or not.
"""

from typing import Final, NamedTuple, Protocol, runtime_checkable

import numpy as np

from backend.stores import Features

JOB: Final = np.dtype(
    [
        ("offset", "<u8"),  # in the store, bytes
        ("nr_bytes", "<u8"),  # all of `iovecs`, or those to discard
        ("kind", "<u4"),  # READ, WRITE, FLUSH or DISCARD
        ("nr_iovecs", "<u4"),
    ]
)

# `struct iovec` of <sys/uio.h>, x86-64.
IOVEC: Final = np.dtype([("address", "<u8"), ("nr_bytes", "<u8")])


class Jobs(NamedTuple):
    """jobs: JOB (nr_ents,), iovecs: IOVEC (nr_ents, 11), a row for each slot of the ring; answered:
    u32 (nr_ents,) and statuses: i32 (nr_ents,), where a store says which slots it has finished.
    """

    jobs: np.ndarray
    iovecs: np.ndarray
    answered: np.ndarray
    statuses: np.ndarray


@runtime_checkable
class LaterStore(Protocol):
    """A store without memory that answers when it is ready; used by one thread, which polls.

    As a `Store`, but for the callbacks. `start` and `ready` return how many slots they have put
    into `answered` and `statuses`.
    """

    nr_sectors: int
    sector_size: int
    features: Features
    memory: np.ndarray | None

    def attach(self, jobs: Jobs) -> None:
        """A ring is served from now on, whose jobs these are. None is at the store."""

    def start(self, slots: np.ndarray) -> int:
        """Begin the jobs of `slots` (u32), in that order."""

    def ready(self) -> int:
        """The descriptor is ready, or `due_ns` has come."""

    def fileno(self) -> int:
        """What to poll; -1 while there is nothing."""

    def events(self) -> int:
        """What to poll for: POLLIN, POLLOUT."""

    def due_ns(self) -> int | None:
        """When to call `ready` at the latest, by CLOCK_MONOTONIC; None: never."""

    def closing(self) -> None:
        """No more jobs come: all there are are answered within CLOSE_S, as errors if need be."""

    def close(self) -> None:
        """Give up what the store holds."""


CLOSE_S: Final = 5.0
