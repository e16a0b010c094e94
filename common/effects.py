"""What a stepper asks of the world around it: one enumeration for both ends of a ring.

A compiled loop runs phases until one of these is needed, and returns it; its driver does it and
calls again. The loops are in `frontend/` and `backend/`; drivers are the real runtime's, the
simulator's and the tests'.
"""

from typing import Final

SLICE: Final = 0  # nothing: time to look at the outside world
STOP: Final = 1  # the next step is one that the driver wants to be asked before
HYPERCALL: Final = 2  # make the grant-table call that the state describes
IO: Final = 3  # the store has no memory: call its callbacks
WAKE: Final = 4  # the far end's event has just become pending, unmasked: wake it
WAIT: Final = 5  # armed, and nothing has come: sleep until our event is pending, and take it
BROKEN: Final = 6  # the peer broke the ring: the state says how
DONE: Final = 7  # everything asked for is finished

NAMES: Final = ("SLICE", "STOP", "HYPERCALL", "IO", "WAKE", "WAIT", "BROKEN", "DONE")
