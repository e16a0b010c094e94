"""What is handed over to the store, and comes back in an order of the store's own.

Owns: which jobs a request is (`JOBS_OF`), and which slots are where: `started`, whose next job is
still to be handed over; `held`, which wait for a barrier; and `finished`, which the ring has still
to answer. What a store's memory serves is moved by `phases.move` instead, and is no job.
Rules
1. What has been started is handed over together, once the ring has no more requests (Linux: a
   plugged queue), and `answer`ed once for each slot, from the thread that runs the ring's loop,
   between two of its calls or in LOOK.
2. What is finished is answered before new requests are looked at, the first to finish first.
3. A ring does not close while the store has one of its slots: it would have the pages unmapped
   under a running copy.
4. A barrier begins when nothing else is at the store, and nothing begins before it is finished. A
   flush waits for nobody: it is about the writes that were answered before it was asked for.
"""

from typing import Final

import numpy as np

from backend.blkback import BLKBACK, NOTHING, QUEUE, Blkback
from backend.pages import page_address, touch
from backend.slots import BAD, BARRIER, DISCARD, FLUSH, IO, READ, WRITE
from backend.store_queue import enter, has_answers, put, reap
from common.abi import BLKIF_RSP_OKAY, SECTOR_SIZE
from common.compiled import kernel, part, whole
from common.not_done import NOT_DONE
from common.steps import COPY, NEXT, NONE, ON

# What is asked of the store for a request, one after the other: by kind, and whether it has data.
JOBS_OF: Final = {
    (READ, True): (READ,),
    (WRITE, True): (WRITE,),
    (FLUSH, False): (FLUSH,),
    (FLUSH, True): (FLUSH, WRITE),
    (BARRIER, False): (FLUSH,),
    (BARRIER, True): (FLUSH, WRITE, FLUSH),
    (DISCARD, False): (DISCARD,),
}
_view = BLKBACK.view
_JOBS: Final = np.full((BAD + 1, 2, 4), BAD, np.uint32)
for (_kind, _has_data), _jobs in JOBS_OF.items():
    _JOBS[_kind, int(_has_data), : len(_jobs)] = _jobs


@part
def submit(dev: Blkback) -> int:
    """MOVE, where the store has no memory: start the sound ones of the group; NONE if that is all.

    Those that have failed already stay; by a null store all is OKAY at once, and nothing moves.
    """
    back = dev.back[0]
    stay = np.uint32(0)
    for at in range(back.gathered):
        slot = np.int64(dev.group[at])
        request = dev.requests[slot]
        if request.status == NOT_DONE:
            request.state = np.uint32(IO)
            if back.store_door != NOTHING:
                _start_or_hold(dev, slot)
                continue
            request.status = np.int32(BLKIF_RSP_OKAY)
        dev.group[stay] = np.uint32(slot)
        stay += np.uint32(1)
    back.gathered = stay
    if stay == 0:
        return NONE
    return COPY if back.copies else ON


@kernel
def _start_or_hold(dev: Blkback, slot: int) -> None:
    back = dev.back[0]
    if back.held > 0 or _must_wait(dev, slot):
        dev.held[(back.held_first + back.held) % len(dev.held)] = np.uint32(slot)
        back.held += np.uint32(1)
    else:
        _start(dev, slot)


@kernel
def _must_wait(dev: Blkback, slot: int) -> bool:
    back = dev.back[0]
    return back.barrier != 0 or (dev.requests[slot].kind == BARRIER and back.at_store > 0)


@kernel
def _start(dev: Blkback, slot: int) -> None:
    """The first job of a request."""
    back = dev.back[0]
    back.at_store += np.uint32(1)
    if dev.requests[slot].kind == BARRIER:
        back.barrier = np.uint32(1)
    dev.requests[slot].job = np.uint32(0)
    _start_job(dev, slot)


@kernel
def _job_of(dev: Blkback, slot: int) -> np.int64:
    """What is asked for now; BAD if all has been."""
    request = dev.requests[slot]
    has_data = np.int64(request.nr_segments > 0)
    return np.int64(_JOBS[np.int64(request.kind), has_data, np.int64(request.job)])


@kernel
def _start_job(dev: Blkback, slot: int) -> None:
    back, request, job = dev.back[0], dev.requests[slot], dev.jobs[slot]
    job.kind, job.nr_iovecs = np.uint32(_job_of(dev, slot)), np.uint32(0)
    job.offset, job.nr_bytes = np.uint64(0), np.uint64(0)
    if job.kind == FLUSH:
        dev.counters[0].store_flushes += np.uint64(1)
    else:
        job.offset = request.sector * np.uint64(SECTOR_SIZE)
        job.nr_bytes = request.nr_sectors * np.uint64(SECTOR_SIZE)
    if job.kind == DISCARD:
        dev.counters[0].store_discards += np.uint64(1)
    elif job.kind != FLUSH:
        job.nr_iovecs = request.nr_segments
        for at in range(request.nr_segments):
            iovec = dev.iovecs[slot, at]
            iovec.address = np.uint64(page_address(dev, slot, at))
            iovec.nr_bytes = np.uint64(dev.segments[slot, at].nr_sectors) * np.uint64(SECTOR_SIZE)
            touch(dev, slot, at)
    dev.started[back.started] = np.uint32(slot)
    back.started += np.uint32(1)


@part
def hand_over(dev: Blkback) -> int:
    """HAND_OVER: what has been started goes to the store; NONE if there is nothing, NEXT if the
    driver is to do it.
    """
    back = dev.back[0]
    if back.started == 0:
        return NONE
    if back.store_door != QUEUE:
        return NEXT
    for at in range(back.started):
        put(dev.queue, dev.jobs, dev.iovecs, np.int64(dev.started[at]))
    back.started = np.uint32(0)
    enter(dev.queue)
    return ON


@kernel
def answer(dev: Blkback, slot: int, status: int) -> None:
    """The store has done what it can for `slot`'s job: BLKIF_RSP_*. The next one of its request is
    started, or the request is finished; and with it, perhaps, what others have waited for.
    """
    back, request = dev.back[0], dev.requests[slot]
    assert request.state == IO and request.status == NOT_DONE, "not at the store"
    back.answers += np.uint64(1)
    if status == BLKIF_RSP_OKAY:
        request.job += np.uint32(1)
        if _job_of(dev, slot) != BAD:
            _start_job(dev, slot)
            return
    request.status = np.int32(status)
    dev.finished[back.finished] = np.uint32(slot)
    back.finished += np.uint32(1)
    back.at_store -= np.uint32(1)
    if request.kind == BARRIER:
        back.barrier = np.uint32(0)
    while back.held > 0 and not _must_wait(dev, np.int64(dev.held[back.held_first])):
        first = np.int64(dev.held[back.held_first])
        back.held_first = np.uint32((back.held_first + np.uint32(1)) % len(dev.held))
        back.held -= np.uint32(1)
        _start(dev, first)


@whole
def answer_all(rings: np.ndarray, count: int) -> None:
    """`count` answers, as a store says them (`backend/store_jobs.py`).

    rings: BLKBACK's rows, of which the first is the ring's.
    """
    dev = _view(rings, 0)
    for at in range(count):
        answer(dev, np.int64(dev.answered[at]), np.int64(dev.statuses[at]))


@part
def collect(dev: Blkback) -> None:
    """LOOK, by a queue: what its store has answered."""
    if dev.back[0].store_door == QUEUE and has_answers(dev.queue):
        answered = reap(dev.queue, dev.jobs)
        while answered >= 0:
            answer(dev, answered >> 32, np.int64(np.int32(answered & 0xFFFFFFFF)))
            answered = reap(dev.queue, dev.jobs)


@part
def pick_up(dev: Blkback) -> int:
    """LOOK, where some are finished: as many as a step takes are the next group."""
    back = dev.back[0]
    back.gathered = min(back.finished - back.picked_up, back.gather_max)
    for at in range(back.gathered):
        dev.group[at] = dev.finished[back.picked_up + np.uint32(at)]
    back.picked_up += back.gathered
    if back.picked_up == back.finished:  # always before a slot can be finished once more
        back.picked_up, back.finished = np.uint32(0), np.uint32(0)
    return COPY if back.copies else NEXT


def take_started(dev: Blkback) -> np.ndarray:
    """The slots (u32) that the effect IO hands over: each of them is to be answered."""
    slots: np.ndarray = dev.started[: int(dev.back["started"][0])].copy()
    dev.back["started"] = 0
    return slots
