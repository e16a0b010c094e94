"""What a stepper asks of the world around it: one enumeration for both ends of a ring.

A compiled loop runs phases until one of these is needed, and returns it; its driver does it and
calls again. The loops are in `frontend/` and `backend/`; drivers are the real runtime's, the
simulator's and the tests'.
"""

from typing import Final

NO_EFFECT: Final = 0  # go on
SLICE: Final = 1  # nothing: time to look at the outside world
STOP: Final = 2  # the next step is one that the driver wants to be asked before
HYPERCALL: Final = 3  # make the grant-table call that the state describes
IO: Final = 4  # hand what has been started to the store
WAKE: Final = 5  # the far end's event has just become pending, unmasked: wake it
WAIT: Final = 6  # armed, and nothing has come: sleep until our event is pending, and take it
BROKEN: Final = 7  # the peer broke the ring: the state says how
DONE: Final = 8  # everything asked for is finished

NAMES: Final = (
    "NO_EFFECT", "SLICE", "STOP", "HYPERCALL", "IO", "WAKE", "WAIT", "BROKEN", "DONE"
)  # fmt: skip
