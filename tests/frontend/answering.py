"""A backend by script: it moves the data, and answers each operation as it is told to."""

from typing import Any, NamedTuple

import numpy as np

from common import abi
from common.atomics import load_acquire
from common.event_channel import clear_pending, set_pending
from common.ring import REQ
from tests.pair import OKAY, READ, WRITE, Pair

BARRIER, FLUSH = abi.BLKIF_OP_WRITE_BARRIER, abi.BLKIF_OP_FLUSH_DISKCACHE
DISCARD = abi.BLKIF_OP_DISCARD


class Asked(NamedTuple):
    """A request: `flag` is nr_segments in all but a discard, and nr_sectors of that alone."""

    operation: int
    flag: int
    sector: int
    nr_sectors: int


class Answering(Pair):
    """statuses: what an operation is answered with, if not OKAY; asked: every request, in order.

    slow: operations that are answered only when nothing else is asked for.
    """

    def __init__(
        self, mode: str = "persistent", flushes_as: int = FLUSH, discards: int = 1, **options: Any
    ) -> None:
        super().__init__(mode, **options)
        self.statuses: dict[int, int] = {}
        self.asked: list[Asked] = []
        self.slow: set[int] = set()
        self._cons, self._held = 0, list[np.ndarray]()
        self.front.front["flushes_as"], self.front.front["discards"] = flushes_as, discards

    def operations(self) -> list[int]:
        """What has been asked for."""
        return [asked.operation for asked in self.asked]

    def serve(self) -> None:
        """Answer what is there, told of it or not, or else one that was slow."""
        clear_pending(self.back_events[0], self.port)
        found = list[np.ndarray]()
        while self._cons != int(load_acquire(self.front.words, REQ)):
            slot = self.slots[self._cons % 32].copy()
            discard = self.slots.view(abi.BLKIF_REQUEST_DISCARD)[self._cons % 32]
            self._cons += 1
            operation = int(slot["operation"])
            of_discard = int(discard["nr_sectors"]) if operation == DISCARD else 0
            flag, sector = int(slot["nr_segments"]), int(slot["sector_number"])
            self.asked.append(Asked(operation, flag, sector, of_discard))
            (self._held if operation in self.slow else found).append(slot)
        if not found and self._held:
            found.append(self._held.pop(0))
        for slot in found:
            self._answer(slot)

    def _answer(self, slot: np.ndarray) -> None:
        operation = int(slot["operation"])
        status = self.statuses.get(operation, OKAY)
        if operation in (READ, WRITE) and status == OKAY:
            self._move(slot)
        self.answer_raw((int(slot["id"]), operation, status))
        set_pending(*self.front_events, self.port)

    def _move(self, slot: np.ndarray) -> None:
        assert self.store.memory is not None
        at = int(slot["sector_number"]) * abi.SECTOR_SIZE
        entries = self.grant_frames.reshape(-1).view(abi.GRANT_ENTRY_V1)
        for segment in slot["seg"][: slot["nr_segments"]]:
            frame = self.frame(int(entries["frame"][segment["gref"]]))
            first, end = int(segment["first_sect"]) * 512, (int(segment["last_sect"]) + 1) * 512
            on_disk = self.store.memory[at : at + end - first]
            if slot["operation"] == WRITE:
                on_disk[:] = frame[first:end]
            else:
                frame[first:end] = on_disk
            at += end - first
