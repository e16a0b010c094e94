"""A device between two rings: the backend of the one is gone, and that of the next will come.

Owns: what becomes of the I/Os that were on the ring.
Rules
1. What the old ring's producer has published counts: those answers are taken, as ever checked.
2. All else is queued again, in the order of its issue, before what was never on the ring: whole
   I/Os and not requests, as the next backend may take other ones. Nobody has been told of them yet,
   so executing one twice does no harm, also where a part of it was answered; and of what was
   answered, but not flushed, nobody knows whether it has outlived that backend.
3. A flush among them covers what came before it: it waits until all of that is answered (SUBMIT).
4. Pages are used again once no access to them is left (`frontend/blkfront_info.py:begin_ring`).
"""

from typing import Final

import numpy as np

from common.abi import BLKIF_OP_FLUSH_DISKCACHE, BLKIF_OP_WRITE, BLKIF_RSP_OKAY
from common.arena import Arena
from common.effects import BROKEN, STOP
from common.not_done import NOT_DONE
from common.steps import mask_of
from frontend import steps
from frontend.blkfront_info import BLKFRONT, BROKEN_REASONS, Blkfront
from frontend.load import LOAD, no_load
from frontend.room import abandon
from frontend.stepper import run

ARENA_BYTES: Final = 1 << 16
LOOKS_MAX: Final = 1 << 40


def take_answers(dev: Blkfront) -> str:
    """Take what the ring's backend, which is gone, has answered. The device is between two turns.

    Returns how it broke the ring, or "".
    """
    arena = Arena(ARENA_BYTES)
    rings, jobs = BLKFRONT.rows(arena, 1), LOAD.rows(arena, 1)
    job = no_load(arena)
    BLKFRONT.write(rings[0], dev)
    LOAD.write(jobs[0], job)
    while (effect := run(rings, jobs, 0, LOOKS_MAX, mask_of(steps.TURN))) != STOP:
        if effect == BROKEN:
            return BROKEN_REASONS[int(dev.front["broken"][0])]
    return ""


def queue_again(dev: Blkfront) -> None:
    """What is on the ring is on none any more."""
    ios, front = dev.ios, dev.front[0]
    on_ring = np.flatnonzero(dev.shadow["used"])
    age = dev.half["prod_pvt"] - dev.shadow["issued"][on_ring]  # u32: free-running
    on_ring = on_ring[np.argsort(age)[::-1]]
    done = dev.done[: front["done"]]
    untold = (ios["operation"][done] == BLKIF_OP_WRITE) & (ios["status"][done] == BLKIF_RSP_OKAY)
    queued = dev.queue[(front["queue_first"] + np.arange(front["queued"])) % len(dev.queue)]
    issued = [*done[untold].tolist(), *dev.shadow["io"][on_ring].tolist()]
    again = list(dict.fromkeys([*issued, *queued.tolist()]))
    told = done[~untold]
    dev.done[: len(told)], front["done"] = told, len(told)
    dev.queue[: len(again)], front["queue_first"], front["queued"] = again, 0, len(again)
    flushes = [io for io in issued if ios["operation"][io] == BLKIF_OP_FLUSH_DISKCACHE]
    ios["again"][flushes] = 1
    ios["issued_sectors"][again], ios["outstanding"][again] = 0, 0
    ios["status"][again] = NOT_DONE
    abandon(dev)
