"""What is handed over to the store, and comes back in an order of the store's own.

Owns: which slots are there: `started`, which the driver has still to take, and `finished`, which
the ring has still to answer. What the store's memory serves is moved by `phases.move` instead.
Rules
1. The driver takes all of `started` (`take_started`), and calls `complete` once for each, when it
   likes, from the thread that runs the ring's loop, between two of its calls.
2. What is finished is answered before new requests are looked at, the first to finish first.
3. A ring does not close while the store has one of its slots: it would have the pages unmapped
   under a running copy.
"""

import numpy as np

from backend.blkback import NOTHING, Blkback
from backend.slots import IO
from common.abi import BLKIF_RSP_OKAY
from common.compiled import part
from common.not_done import NOT_DONE
from common.steps import COPY, END, NEXT, NONE, ON


@part
def submit(dev: Blkback) -> int:
    """MOVE, where the store has no memory: hand the sound ones of the group over; NONE.

    END if others stay, which have failed already, ON if all have, or all is done: a null store is
    OKAY at once, and moves nothing.
    """
    back = dev.back[0]
    stay = np.uint32(0)
    for at in range(back.gathered):
        slot = dev.group[at]
        request = dev.requests[slot]
        if request.status == NOT_DONE:
            request.state = np.uint32(IO)
            if back.store_door != NOTHING:
                dev.started[back.started] = slot
                back.started += np.uint32(1)
                continue
            request.status = np.int32(BLKIF_RSP_OKAY)
        dev.group[stay] = slot
        stay += np.uint32(1)
    handed_over = back.gathered - stay
    back.gathered = stay
    if handed_over > 0:
        return END if stay > 0 else NONE
    return COPY if back.copies else ON


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


def take_started(dev: Blkback) -> list[int]:
    """The slots that the effect IO hands over: they are the caller's to `complete`."""
    slots: list[int] = dev.started[: int(dev.back["started"][0])].tolist()
    dev.back["started"] = 0
    return slots


def complete(dev: Blkback, slot: int, status: int) -> None:
    """The store has done what it can for `slot`, which it was handed: BLKIF_RSP_*."""
    request, finished = dev.requests[slot], int(dev.back["finished"][0])
    assert request["state"] == IO and request["status"] == NOT_DONE, "not at the store"
    request["status"] = status
    dev.finished[finished] = slot
    dev.back["finished"] = finished + 1
