"""Builds a blkback over memory that is given: dom0's process's, a simulated dom0's, a test's.

Owns: how the pages of a ring's requests are reached, in one of three ways:
    mapped       really mapped into dom0, each in a slot of a `Balloon`
    in_table     their guest's RAM is in this address space: a mapping is an entry of a table
    own_frames   grant copy: the slots are dom0's own frames, and nothing is mapped
"""

from typing import Any, NamedTuple

import numpy as np

from backend.blkback import CALLS, MEMORY, NOTHING, QUEUE, Blkback, new_blkback, slots_needed
from backend.doors import REAL, TABLE
from backend.foreign_memory import Balloon
from backend.slots import BARRIER, DISCARD, FLUSH
from backend.store_jobs import LaterStore
from backend.store_queue import StoreQueue
from backend.stores import Features, NullStore, Store
from common.abi import BLKIF_RING_SIZE, SECTOR_SIZE, XEN_PAGE_SIZE
from common.arena import Arena
from common.copying import address_of
from common.event_channel import EventWords
from common.hypercall_gate import Gate


class Reach(NamedTuple):
    """page_table: u64 by slot; the rest is BACK's."""

    page_table: np.ndarray
    balloon: int
    door: dict[str, Any]
    bounce_frame: int | None = None


def slots_of(cap: int) -> int:
    """Slots that a ring takes which keeps at most `cap` pages."""
    return slots_needed(BLKIF_RING_SIZE, cap)


def mapped(balloon: Balloon, ram_fd: int) -> Reach:
    """balloon: as many slots as it takes; ram_fd: the frontend's RAM."""
    return Reach(balloon.page_table(), balloon.address, {"map_door": REAL, "ram_fd": ram_fd})


def in_table(arena: Arena, nr_slots: int, ram: np.ndarray, hole: np.ndarray) -> Reach:
    """ram: u8, the frontend's frames; hole: u8, a page that an empty slot leads to."""
    page_table = arena.array(nr_slots, np.uint64)
    page_table[:] = address_of(hole)
    door = {"map_door": TABLE, "ram": address_of(ram), "hole": address_of(hole)}
    return Reach(page_table, XEN_PAGE_SIZE, door)


def own_frames(nr_slots: int, dom0_ram: np.ndarray, bounce_frame: int) -> Reach:
    """dom0_ram: u8; bounce_frame: the first. Emptied: another guest's data may be in them."""
    at = bounce_frame * XEN_PAGE_SIZE
    dom0_ram[at : at + nr_slots * XEN_PAGE_SIZE] = 0
    frames = bounce_frame + np.arange(nr_slots, dtype=np.uint64)
    page_table = np.uint64(address_of(dom0_ram)) + frames * np.uint64(XEN_PAGE_SIZE)
    return Reach(page_table, XEN_PAGE_SIZE, {"map_door": TABLE}, bounce_frame)


def build_back(
    arena: Arena,
    ring_page: np.ndarray,
    reach: Reach,
    store: Store | LaterStore,
    accessed: np.ndarray,
    counters: np.ndarray,
    events: EventWords,
    spin: np.ndarray,
    gate: Gate,
    queue: StoreQueue | None = None,
    **options: Any,
) -> Blkback:
    """A worker of `ring_page` (u8) and `store`. queue: what takes jobs to it, if it is reached so;
    options: `new_blkback`'s."""
    return new_blkback(
        arena,
        ring_page,
        reach.page_table,
        accessed,
        counters,
        events,
        spin,
        gate,
        nr_sectors=store.nr_sectors,
        store_door=_door_of(store) if queue is None else QUEUE,
        features=_bits_of(store.features),
        sector_mask=store.sector_size // SECTOR_SIZE - 1,
        queue=queue,
        store=0 if store.memory is None else address_of(store.memory),
        balloon=reach.balloon,
        bounce_frame=reach.bounce_frame,
        **reach.door,
        **options,
    )


def _bits_of(features: Features) -> int:
    """Of BACK.features."""
    served = ((features.flush, FLUSH), (features.barrier, BARRIER), (features.discard, DISCARD))
    return sum(1 << kind for has, kind in served if has)


def _door_of(store: Store | LaterStore) -> int:
    if isinstance(store, NullStore):
        return NOTHING
    return CALLS if store.memory is None else MEMORY
