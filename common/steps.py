"""How the order of a stepper's phases is written: a table from step and outcome to the next step.

Owns: the outcomes, and the form of the tables, which are in `frontend/steps.py` and
`backend/steps.py`; docs/design.md's lists are drawn from them.
Rules: a phase has at most one *access*: one load, store or read-modify-write of a word that the
peer may change, or one bulk copy. Whatever lies between two phases, the peer may do. Nobody but
these tables says which phase follows which: a compiled loop looks the next one up.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from common.compiled import kernel
from common.effects import NAMES, NO_EFFECT, STOP

# Outcomes of a phase.
ON: Final = 0  # done: what usually comes next
AGAIN: Final = 1  # more of the same
NONE: Final = 2  # nothing is there
ARM: Final = 3  # done, and the peer is to be asked for a notification before anything else
GRANT: Final = 4  # the grant table is needed
COPY: Final = 5  # a copy is needed
END: Final = 6  # access has to be ended
NEXT: Final = 7  # the next request or response
OUTCOMES: Final = ("ON", "AGAIN", "NONE", "ARM", "GRANT", "COPY", "END", "NEXT")

OUTCOME_BITS: Final = 3
STEP_BITS: Final = 6
NO_STEP: Final = (1 << STEP_BITS) - 1
STOPPED_BIT: Final = 16  # above an entry's

# Words of `turn` (i64), which every stepper has: its place, and what it has done that somebody may
# have to pay for (the simulator), since a turn began.
STEP: Final = 0
TAKEN: Final = 1  # requests or responses taken off the ring
WRITTEN: Final = 2  # requests or responses written, not yet published
EVENT: Final = 3  # our event was pending
WOKE: Final = 4  # the far end's event has become pending, unmasked
SECTORS: Final = 5  # of the requests taken
SEGMENTS: Final = 6  # of the requests taken
LOOKS_LEFT: Final = 7  # at the ring, before the driver wants to look at the outside world
COMPANY: Final = 8  # not 0: other rings have their turns on this thread (`common/turns.py`)
TURN_WORDS: Final = 9

Then = int | tuple[int, int]  # a step, or a step and an effect (`common/effects.py`) before it


class Phase(NamedTuple):
    """One row: `access` says what of the peer's it touches ("" if nothing); next: by outcome."""

    step: int
    name: str
    access: str
    next: dict[int, Then]


def _entry(then: Then) -> tuple[int, int]:
    return then if isinstance(then, tuple) else (then, NO_EFFECT)


def next_steps(phases: Sequence[Phase]) -> np.ndarray:
    """The table as compiled loops take it: u16, by `step << OUTCOME_BITS | outcome`, of
    `effect << STEP_BITS | step`.
    """
    table = np.full(len(phases) << OUTCOME_BITS, NO_STEP, np.uint16)
    for place, phase in enumerate(phases):
        assert phase.step == place, f"{phase.name} is {phase.step} and stands at {place}"
        for outcome, then in phase.next.items():
            step, effect = _entry(then)
            table[place << OUTCOME_BITS | outcome] = effect << STEP_BITS | step
    return table


def mask_of(*steps: int) -> int:
    """A set of steps, as compiled loops take it."""
    return sum(1 << step for step in steps)


ANY_STEP: Final = -1  # the set of all


@kernel
def follow(table: np.ndarray, step: int, outcome: int, stops: int) -> np.int64:
    """What follows `step`, which came out as `outcome`: a step, if that is to be done next.

    Else more than any step, for an effect, or as it is one of the set `stops`: see `leave`.
    """
    entry = np.int64(table[np.uint64(step << OUTCOME_BITS | outcome)])
    return entry | ((stops >> (entry & NO_STEP)) & 1) << STOPPED_BIT


@kernel
def leave(turn: np.ndarray, entry: int) -> np.int64:
    """The loop is left: remember where to go on; the effect."""
    turn[STEP] = entry & NO_STEP
    effect = (entry & (1 << STOPPED_BIT) - 1) >> STEP_BITS
    return np.int64(effect if effect > 0 else STOP)


def drawn(phases: Sequence[Phase]) -> str:
    """The table for docs/design.md."""
    lines = ["| phase | its one access | then |", "|---|---|---|"]
    for phase in phases:
        then = []
        for outcome, entry in phase.next.items():
            step, effect = _entry(entry)
            when = f"{OUTCOMES[outcome].lower()}: " if len(phase.next) > 1 else ""
            then.append(
                f"{when}{phases[step].name}" + (f" after *{NAMES[effect]}*" if effect else "")
            )
        lines.append(f"| {phase.name} | {phase.access or '-'} | {', '.join(then)} |")
    return "\n".join(lines)
