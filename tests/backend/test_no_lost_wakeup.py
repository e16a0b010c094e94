"""In no order of the two ends' phases does the worker sleep while a request is there for it.

Every state is visited that the worker's phases and those of a guest's push can reach, in whatever
order they come: from each, either end takes its next phase.
"""

from typing import Final

import numpy as np
import pytest

from backend.steps import ARM, CLEAR, LOOK, LOOK_AGAIN, WATCH
from common import effects
from common.event_channel import clear_pending
from common.steps import AGAIN, ANY_STEP, NONE, ON, OUTCOME_BITS, STEP, STEP_BITS
from frontend import steps as front_steps
from frontend.load import run
from tests.pair import LOOKS_MAX, MODES, PORT, READ, Pair

PUSHING: Final = (
    front_steps.PUBLISH, front_steps.CHECK_EVENT, front_steps.SET_PENDING, front_steps.READ_MASK
)  # fmt: skip


class Orders:
    """A worker and a guest that pushes one request, in every order of their phases."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.asleep = pair, False
        self.states = 0
        self.lost = 0  # states in which the worker sleeps for ever, and a request is there

    def visit_all(self) -> None:
        """Every state that can be reached from the one that the pair is in."""
        first, at_first = self.pair.arena.snapshot(), self.asleep
        seen = {(first.tobytes(), at_first)}
        ahead = [(first, at_first)]
        while ahead:
            state, asleep = ahead.pop()
            self.states += 1
            can_move = False
            for move in (self._back_moves, self._front_moves):
                self.pair.arena.restore(state)
                self.asleep = asleep
                if not move():
                    continue
                can_move = True
                after = self.pair.arena.snapshot()
                key = (after.tobytes(), self.asleep)
                if key not in seen:
                    seen.add(key)
                    ahead.append((after, self.asleep))
            if not can_move:
                self.pair.arena.restore(state)
                self.lost += self.pair.counts()["back_requests"] != 1

    def _back_moves(self) -> bool:
        """The worker's next phase; False while it sleeps."""
        if self.asleep:
            return False
        self.pair.back_step()
        return True

    def _front_moves(self) -> bool:
        """The push's next phase; False when it is over."""
        front = self.pair.front
        if front.turn[STEP] not in PUSHING:
            return False
        if run(front, self.pair.queued, LOOKS_MAX, ANY_STEP) == effects.WAKE and self.asleep:
            assert clear_pending(self.pair.back_events[0], PORT)
            self.asleep = False
        return True
