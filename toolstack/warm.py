"""Compiles, or loads from the cache, everything a machine runs, in one tiny machine in memory.

The fork server imports this module before its first fork, so that each process of the machine is
born with its compiled code in place and shares those pages with the others.
"""

import numpy as np

from backend import phases, worker
from backend.blkback import new_blkback, slots_needed
from backend.foreign_memory import map_granted, unmap_slots
from common.abi import (
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    GNTTAB_MAP_GRANT_REF,
    GNTTAB_UNMAP_GRANT_REF,
    SECTORS_PER_PAGE,
    XEN_PAGE_SIZE,
)
from common.atomics import store_release
from common.copying import address_of
from common.event_channel import clear_mask, clear_pending, event_words, set_pending
from common.histogram import BUCKETS
from common.machine_memory import HOST, STATS
from common.spinning import new_spin, starts_to_run, stops_running
from frontend import effects, load
from frontend.blkfront import PER_REQUEST, PERSISTENT, Blkfront, end_pool_access, new_blkfront
from frontend.block_device import _enqueue_first
from frontend.effects import finish_queued
from frontend.grants import end_access, grant_access, new_grants
from frontend.page_pool import new_pool

RAM_FRAMES = 64
POOL_PAGES = 16
DISK_SECTORS = 64 * SECTORS_PER_PAGE


def _page() -> np.ndarray:
    return np.zeros(XEN_PAGE_SIZE, np.uint8)


class _TinyMachine:
    """A front and a back on plain memory, mapped by arithmetic: what the compiler needs to see."""

    def __init__(self) -> None:
        # Types must be those of the real thing: counters and words are views into larger records.
        host, stats = np.zeros(1, HOST), np.zeros(1, STATS)
        self.ram = np.zeros(RAM_FRAMES * XEN_PAGE_SIZE, np.uint8)
        self.disk = np.zeros(DISK_SECTORS * 512, np.uint8)
        self.latency = stats["latency"][0]
        self.front = new_blkfront(
            self.ram[:XEN_PAGE_SIZE],
            address_of(self.ram),
            new_grants(_page()),
            new_pool(1, POOL_PAGES),
            stats["counters"],
            nr_ios=4,
        )
        nr_slots = slots_needed(len(self.front.shadow), 2)
        self.back = new_blkback(
            self.ram[:XEN_PAGE_SIZE],
            np.zeros(nr_slots, np.uint64),
            np.zeros(64 * 4, np.uint64),
            host["backend"][0, 1:2],
            remote_domid=1,
            nr_sectors=DISK_SECTORS,
            store_address=address_of(self.disk),
            max_persistent_grants=2,
        )
        self.cursor = np.zeros(1, worker.CURSOR)
        self.pending, self.mask = event_words(_page())
        self.spin, self.runnable = new_spin(adaptive=True), np.zeros(1, np.uint32)
        self.spin["tries"] = 1
        store_release(host["dirty"][0], 0, np.uint32(1))

    def serve(self) -> None:
        """Let the back work until it would sleep, mapping what it asks for."""
        back = self.back
        while True:
            effect = worker.work(
                back, self.cursor, self.pending, self.mask, 1, self.spin, self.runnable, 10
            )
            if effect == worker.WAIT:
                return
            if effect == worker.MAP:
                for index, op in enumerate(back.map_ops[: int(back.back["map_ops"][0])]):
                    gref = int(op["ref"])
                    frame = int(self.front.grants.entries[2 * gref + 1])
                    op["handle"] = index
                    slot = (int(op["host_addr"]) - int(back.back["balloon"][0])) // XEN_PAGE_SIZE
                    back.page_table[slot] = address_of(self.ram) + frame * XEN_PAGE_SIZE


def _run_load(machine: _TinyMachine, front: Blkfront) -> None:
    plan = load.LoadPlan("randrw", XEN_PAGE_SIZE, 4, 50, 16, None, 1, True)
    front.ios["frame"] = 1 + POOL_PAGES + np.arange(4)
    job = load.new_load(plan, front, np.zeros(DISK_SECTORS, np.uint32), machine.latency, 1, 0)
    args = (machine.pending, machine.mask, 2, machine.spin, machine.runnable)
    while load.run(front, job, *args) != effects.DONE:
        machine.serve()


def warm() -> None:
    """Run every compiled entry point once, with the types it will see."""
    assert BUCKETS > 0
    machine = _TinyMachine()
    front = machine.front
    front.front["grant_mode"] = PERSISTENT
    _run_load(machine, front)
    for operation in (BLKIF_OP_WRITE, BLKIF_OP_READ):
        front.ios["operation"], front.ios["nr_sectors"] = operation, 12
        _enqueue_first(front, 1)
        args = (machine.pending, machine.mask, 2, machine.spin, machine.runnable)
        while finish_queued(front, *args) == worker.WAIT or front.front["outstanding"][0]:
            machine.serve()
    end_pool_access(front)
    front.front["grant_mode"] = PER_REQUEST
    _run_load(machine, front)
    while phases.release_kept(machine.back) > 0:
        phases.finish_unmap(machine.back)
    phases.page_address(machine.back, 0, 0)
    phases.touch(machine.back, 0)
    end_access(front.grants, grant_access(front.grants, 0, 0, False))
    map_granted(-1, np.zeros(0, GNTTAB_MAP_GRANT_REF), 0)
    unmap_slots(np.zeros(0, GNTTAB_UNMAP_GRANT_REF), 0)
    set_pending(machine.pending, machine.mask, 1)
    clear_pending(machine.pending, 1)
    clear_mask(machine.mask, 1)
    starts_to_run(machine.runnable)
    stops_running(machine.runnable)
