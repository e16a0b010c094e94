"""The compiled steps of a guest and of a ring's worker in virtual time.

Owns: how many phases run at one moment of virtual time. Each function is one step between two
waits, made of the cores' own phases; `report` (i64, one a thread) says what was done, so that the
thread knows what to pay. What a step publishes was paid for before it.
"""

from typing import Final

import numpy as np

from backend import phases
from backend.blkback import Blkback
from backend.grant_copy import settle
from common.abi import (
    GNTST_OKAY,
    SECTOR_SIZE,
    XEN_PAGE_SIZE,
)
from common.atomics import load_acquire
from common.compiled import kernel
from common.event_channel import clear_pending, set_pending
from common.ring import RING_BROKEN
from frontend import blkfront
from frontend.blkfront_info import Blkfront
from frontend.load import Load, _finish, _over, _start
from hypervisor.cpus import ACCESSED_WORDS, PRECISE

# What a report holds.
TAKEN: Final = 0  # requests or responses taken off the ring; RING_BROKEN
WRITTEN: Final = 1  # requests put on the ring, to be published by the next step
EVENT: Final = 2  # the thread's own event was pending
WAKE: Final = 3  # the far end's event has become pending
COPIED: Final = 4  # bytes
OVER: Final = 5  # the load has ended and everything is answered
MAPS: Final = 6
UNMAPS: Final = 7
SEGMENTS: Final = 8
REPORT_WORDS: Final = 9


@kernel
def guest_turn(
    dev: Blkfront,
    job: Load,
    pending: np.ndarray,
    far_pending: np.ndarray,
    far_mask: np.ndarray,
    port: int,
    now_ns: int,
    report: np.ndarray,
) -> None:
    """Publish what the last turn wrote, take what has been answered, write the next request."""
    report[:] = 0
    if dev.half[0].published != dev.half[0].prod_pvt:
        report[WAKE] = blkfront.push(dev) and set_pending(far_pending, far_mask, port)
    report[EVENT] = clear_pending(pending, port)
    copied = dev.counters[0].bytes_copied_by_guest
    report[TAKEN] = blkfront.consume(dev)
    if report[TAKEN] == RING_BROKEN:
        return
    if report[TAKEN] > 0:
        blkfront.rearm(dev)  # as Linux does at the end of its interrupt handler
    _finish(dev, job, now_ns)
    if dev.front[0].queued == 0:
        _start(dev, job, now_ns)
    if dev.front[0].queued > 0:
        report[WRITTEN] = blkfront.submit(dev)
        report[TAKEN] += dev.front[0].done  # what has no room is over: the next turn finishes it
    report[COPIED] = np.int64(dev.counters[0].bytes_copied_by_guest - copied)
    idle = dev.front[0].outstanding == 0 and dev.front[0].queued == 0
    report[OVER] = idle and _over(job, now_ns)


@kernel
def back_take(dev: Blkback, pending: np.ndarray, port: int, report: np.ndarray) -> None:
    """Take requests, look their pages up; ask for the next notification, as Linux does."""
    report[:] = 0
    report[EVENT] = clear_pending(pending, port)
    report[TAKEN] = phases.gather(dev)
    if report[TAKEN] <= 0:
        return
    phases.rearm(dev)
    report[MAPS] = dev.back[0].map_ops
    for index in range(report[TAKEN]):
        request = dev.requests[index]
        report[SEGMENTS] += request.nr_segments
        for at in range(request.nr_segments):
            report[COPIED] += np.int64(dev.segments[index, at].nr_sectors) * SECTOR_SIZE


@kernel
def back_execute(
    dev: Blkback,
    ram: int,
    far_pending: np.ndarray,
    far_mask: np.ndarray,
    port: int,
    report: np.ndarray,
) -> None:
    """Copy, with every page mapped; answer at once if there is nothing to unmap.

    ram: the address of the guest's frame 0, where what was just granted is reached.
    """
    back = dev.back[0]
    for done in range(back.map_ops):
        op = dev.map_ops[done]
        if op.status == GNTST_OKAY:
            slot = (op.host_addr - back.balloon) >> np.uint64(12)
            dev.page_table[np.int64(slot)] = np.uint64(ram) + op.dev_bus_addr
    phases.finish_map(dev)
    phases.execute(dev)
    report[UNMAPS] = phases.release(dev)
    if report[UNMAPS] == 0:
        _answer(dev, far_pending, far_mask, port, report)


@kernel
def back_answer(
    dev: Blkback,
    hole: int,
    far_pending: np.ndarray,
    far_mask: np.ndarray,
    port: int,
    report: np.ndarray,
) -> None:
    """After the unmap: empty the slots (they lead to the address `hole`), and answer."""
    back = dev.back[0]
    for done in range(back.unmap_ops):
        slot = (dev.unmap_ops[done].host_addr - back.balloon) >> np.uint64(12)
        dev.page_table[np.int64(slot)] = np.uint64(hole)
    assert phases.finish_unmap(dev), "the hypervisor refused an unmap"
    _answer(dev, far_pending, far_mask, port, report)


@kernel
def _answer(
    dev: Blkback, far_pending: np.ndarray, far_mask: np.ndarray, port: int, report: np.ndarray
) -> None:
    phases.respond(dev)
    report[WAKE] = phases.push(dev) and set_pending(far_pending, far_mask, port)


@kernel
def interrupts_others(
    policy: int, caller: int, dev: Blkback, dirty: np.ndarray, accessed: np.ndarray
) -> bool:
    """Would the flush of `dev`'s unmaps go to another CPU, so that the flush lock is needed?

    Xen's flush_area_mask looks at the mask before it takes the lock, and copies it after.
    """
    for cpu in range(len(dirty)):
        if cpu == caller or load_acquire(dirty, cpu) == 0:
            continue
        if policy != PRECISE:
            return True
        for done in range(dev.back[0].unmap_ops):
            word = np.int64(dev.unmap_ops[done].handle) * ACCESSED_WORDS + (cpu >> 6)
            if accessed[word] >> np.uint64(cpu & 63) & np.uint64(1):
                return True
    return False


@kernel
def settle_copies(dev: Blkback, dom0_ram: int) -> None:
    """`backend/grant_copy.py`'s `settle`, with the slots led to dom0's frames first."""
    for done in range(dev.back[0].map_ops):
        slot = np.int64((dev.map_ops[done].host_addr - dev.back[0].balloon) >> np.uint64(12))
        frame = np.int64(dev.back[0].bounce_frame) + slot
        dev.page_table[slot] = np.uint64(dom0_ram + frame * XEN_PAGE_SIZE)
    settle(dev)
