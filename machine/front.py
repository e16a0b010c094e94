"""Builds a blkfront over memory that is given: of a guest's process, a simulated guest, a test.

Owns: what a guest's disks have in common, and what each has of it: the grant table is all of
theirs, the frames and the counters are each one's own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.arena import Arena
from common.copying import address_of
from common.event_channel import EventWords, event_words
from frontend.blkfront_info import Blkfront, new_blkfront
from frontend.frames import POOL_PAGES, DiskFrames, Domain, disk_frames
from frontend.grants import Grants, new_grants
from frontend.page_pool import new_pool
from frontend.vbd import NR_IOS


def build_front(
    arena: Arena,
    ram: np.ndarray,
    frames: DiskFrames,
    grants: Grants,
    counters: np.ndarray,
    events: EventWords,
    spin: np.ndarray,
    *,
    nr_ios: int,
    **options: Any,
) -> Blkfront:
    """A device on a fresh ring in its `frames` of `ram` (u8). options: `new_blkfront`'s."""
    return new_blkfront(
        arena,
        ram[frames.ring * XEN_PAGE_SIZE :][:XEN_PAGE_SIZE],
        address_of(ram),
        grants,
        new_pool(arena, frames.pool, frames.buffers - frames.pool),
        counters,
        events,
        spin,
        nr_ios=nr_ios,
        **options,
    )


def lay_out_buffers(dev: Blkfront, first_frame: int, frames_per_io: int) -> None:
    """Give each I/O so many frames, one after the other."""
    dev.ios["frame"] = first_frame + np.arange(len(dev.ios)) * frames_per_io


def channel_words(arena: Arena, event: np.ndarray, *, allocated_here: bool = True) -> EventWords:
    """One end's words of a channel whose allocating domain has the segment `event` (u8).

    The port is 0 until somebody sets it.
    """
    own, far = event[:XEN_PAGE_SIZE], event[XEN_PAGE_SIZE : 2 * XEN_PAGE_SIZE]
    if not allocated_here:
        own, far = far, own
    return EventWords(event_words(own)[0], *event_words(far), arena.array(1, np.int64))


def guest_disks(
    domid: int,
    ram: np.ndarray,
    grant: np.ndarray,
    event: np.ndarray,
    counters: np.ndarray,
    spin: np.ndarray,
    *,
    nr_disks: int = 1,
    buffer_frames: int = 0,
    nr_ios: int = NR_IOS,
    pool_pages: int = POOL_PAGES,
    notes_wakes: bool = False,
    arena: Arena | None = None,
) -> list[Domain]:
    """What each of a guest's disks has of it, on the guest's own segments (u8).

    counters: FRONTEND_COUNTERS, by disk number; buffer_frames: each disk's; arena: where its
    devices' state is to lie; each has one of its own, if there is none.
    """
    given = domid, ram, grant, event, counters, spin
    place = disk_places(
        *given,
        buffer_frames=buffer_frames,
        nr_ios=nr_ios,
        pool_pages=pool_pages,
        notes_wakes=notes_wakes,
        arena=arena,
    )
    return [place(disk, disk) for disk in range(nr_disks)]


def disk_places(
    domid: int,
    ram: np.ndarray,
    grant: np.ndarray,
    event: np.ndarray,
    counters: np.ndarray,
    spin: np.ndarray,
    *,
    buffer_frames: int = 0,
    nr_ios: int = NR_IOS,
    pool_pages: int = POOL_PAGES,
    notes_wakes: bool = False,
    arena: Arena | None = None,
) -> Callable[[int, int], Domain]:
    """What a disk has of its guest, for a place in its RAM, from 0 on, and the disk's number.

    The rest is `guest_disks`'s.
    """
    grants = new_grants(arena or Arena(), grant)

    def place(which: int, disk: int) -> Domain:
        frames = disk_frames(which, buffer_frames, pool_pages)

        def build(backend_domid: int, handle: int) -> Blkfront:
            own = arena or Arena()
            return build_front(
                own,
                ram,
                frames,
                grants,
                counters[disk : disk + 1],
                channel_words(own, event),
                spin,
                nr_ios=nr_ios,
                backend_domid=backend_domid,
                handle=handle,
                notes_wakes=notes_wakes,
            )

        return Domain(domid, ram, frames, build)

    return place
