"""A pair whose store takes its time: what it is given is done when the test says so."""

from typing import Any

from backend.at_store import answer, take_started
from common import effects
from tests.pair import CallbackStore, Pair

DISK_SECTORS = 512


class Late(Pair):
    """at_store: the slots that the store has, in the order it got them; holds: it keeps them."""

    def __init__(self, mode: str = "persistent", **options: Any) -> None:
        self.at_store: list[int] = []
        self.holds = True
        super().__init__(mode, **{"store": CallbackStore(DISK_SECTORS), **options})

    def do(self, effect: int) -> None:
        if effect != effects.IO or not self.holds:
            super().do(effect)
            return
        self.at_store += take_started(self.back).tolist()
        assert len(set(self.at_store)) == len(self.at_store)

    def finish(self, *slots: int) -> None:
        """The store has done `slots`; the backend is not told more than that."""
        for slot in slots:
            self.at_store.remove(slot)
            answer(self.back, slot, self.hands._job_io(slot))

    def refuse(self, slot: int, status: int) -> None:
        """The store cannot."""
        self.at_store.remove(slot)
        answer(self.back, slot, status)

    def go_on(self) -> int:
        """Whoever drives the backend calls its loop, event or not, until it can do no more."""
        ends = (effects.WAIT, effects.BROKEN, effects.DONE)
        while (effect := self.back_until()) not in ends:
            pass
        return effect

    def slot_of(self, ident: int) -> int:
        """The slot at the store of the request `ident`."""
        ids = self.back.requests["id"]
        return next(slot for slot in self.at_store if ids[slot] == ident)
