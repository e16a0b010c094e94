"""A queue to a file with the jobs, the pages and the driver that a ring would have."""

import os
import select
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from backend.file_pool import FilePool
from backend.io_uring import IoUring
from backend.queue_sleep import begin_sleep, end_sleep
from backend.store_jobs import IOVEC, JOB
from backend.store_queue import StoreQueue, enter, has_answers, put, reap

KINDS: Final = ("io_uring", "pool")
MAKERS: Final = {"io_uring": IoUring, "pool": FilePool}
SLOT_BYTES: Final = 11 * 4096
TIMEOUT_S: Final = 10.0


@contextmanager
def file_on(kind: str, folder: Path, nr_bytes: int) -> Iterator[Path]:
    """A file with random bytes: "tmpfs", or "disk" in `folder`, on a real file system."""
    file = (Path("/dev/shm") if kind == "tmpfs" else folder) / f"grantlab-test-{os.getpid()}"
    file.write_bytes(np.random.default_rng(1).bytes(nr_bytes))
    yield file
    file.unlink()


def sleep_on(queue: StoreQueue, polled_fd: int) -> bool:
    """Until there is something to reap, at most a second; did the descriptor say so?"""
    said = not begin_sleep(queue) and select.select([polled_fd], [], [], 1) != ([], [], [])
    end_sleep(queue)
    return said


class Filer:
    """kind: whose queue; path: the file, opened with `flags`."""

    def __init__(self, kind: str, path: Path, nr_slots: int, flags: int = os.O_RDWR) -> None:
        self._fd = os.open(path, flags | os.O_CLOEXEC)
        self._owner = MAKERS[kind](self._fd, nr_slots)
        self.queue, self.polled_fd = self._owner.queue, self._owner.polled_fd
        self.jobs = np.zeros(nr_slots, JOB)
        self.iovecs = np.zeros((nr_slots, 11), IOVEC)
        room = np.zeros((nr_slots + 1) * SLOT_BYTES, np.uint8)
        skip = -room.ctypes.data % 4096
        self.pages = room[skip : skip + nr_slots * SLOT_BYTES].reshape(nr_slots, SLOT_BYTES)
        self._wanted: set[int] = set()
        self._random = np.random.default_rng(3)

    def ask(self, slot: int, kind: int, offset: int = 0, nr_bytes: int = 0) -> None:
        """A job without data."""
        self.jobs[slot] = (offset, nr_bytes, kind, 0)
        self._wanted.add(slot)

    def move(self, slot: int, kind: int, offset: int, pieces: Sequence[int]) -> None:
        """A job whose `pieces` lie one a page of the slot's own."""
        self.jobs[slot] = (offset, sum(pieces), kind, len(pieces))
        for at, nbytes in enumerate(pieces):
            self.iovecs[slot, at] = (self.pages[slot].ctypes.data + at * 4096, nbytes)
        self._wanted.add(slot)

    def fill(self, slot: int, kind: int, offset: int, pieces: Sequence[int]) -> bytes:
        """The same, of new bytes, which are returned."""
        self.move(slot, kind, offset, pieces)
        self.pages[slot] = self._random.integers(0, 256, SLOT_BYTES, np.uint8)
        return self.bytes_of(slot)

    def bytes_of(self, slot: int) -> bytes:
        """What lies in the pieces of a job."""
        nr = int(self.jobs[slot]["nr_iovecs"])
        lengths = self.iovecs[slot, :nr]["nr_bytes"].tolist()
        pages = self.pages[slot].reshape(11, 4096)
        return b"".join(pages[at, :nbytes].tobytes() for at, nbytes in enumerate(lengths))

    def hand_over(self, slots: Iterable[int]) -> None:
        """Begin these jobs."""
        for slot in slots:
            put(self.queue, self.jobs, self.iovecs, slot)
        assert enter(self.queue) == 0
        self._wanted.clear()

    def run(self) -> dict[int, int]:
        """Begin all that was asked for since, and wait: the status of each slot."""
        slots = sorted(self._wanted)
        self.hand_over(slots)
        answers = self.some_answers(len(slots))
        self.check_empty()
        return answers

    def check_empty(self) -> None:
        """The kernel may have had something to do that is no answer: once."""
        assert reap(self.queue, self.jobs) == -1 and not has_answers(self.queue)

    def answers(self) -> dict[int, int]:
        """Hand over what is put already, and wait for all of it."""
        queue = self.queue
        nr = int(queue.head["put"][0]) - int(queue.sq[int(queue.head["sq_head"][0])])
        assert enter(queue) == 0
        return self.some_answers(nr)

    def some_answers(self, count: int) -> dict[int, int]:
        """Sleep on the descriptor until so many are reaped."""
        got: dict[int, int] = {}
        deadline = time.monotonic() + TIMEOUT_S
        while len(got) < count:
            assert time.monotonic() < deadline, f"{len(got)} of {count} answers have come"
            sleep_on(self.queue, self.polled_fd)
            while len(got) < count and (answer := int(reap(self.queue, self.jobs))) >= 0:
                slot = answer >> 32
                assert slot not in got
                got[slot] = int(np.uint32(answer & 0xFFFFFFFF).astype(np.int32))
        return got

    def close(self) -> None:
        """The queue, then the file."""
        self._owner.close()
        os.close(self._fd)
