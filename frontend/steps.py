"""blkfront's order: which phase follows which. What each does is in `blkfront.py`,
`responses.py` and `common/notifying.py`; TURN is the caller's own, a load or a block device
(`load_turn.py`): it takes what is done and queues what is next.

Rules
1. What the backend writes is checked against the shadow before it is believed.
2. A page is zero or the guest's own data before the backend can see it: COPY_IN comes before PUT.
3. A request's slot is written (PUT) before it is published, and that before the backend's event is
   looked at. See `backend/steps.py` for CLEAR, ARM and LOOK_AGAIN, which are the same here.
"""

from typing import Final

from common.effects import BROKEN, DONE, SLICE, WAIT, WAKE
from common.steps import AGAIN, COPY, END, GRANT, NONE, ON, Phase, next_steps
from common.steps import ARM as DO_ARM
from common.steps import NEXT as DO_NEXT

(
    TURN, CLEAR, LOOK, TAKE, FINISH, COPY_OUT, END_LOOK, END_SWAP, ARM_TAKEN, SUBMIT, PREPARE,
    GRANT_ACCESS, COPY_IN, PUT, PUBLISH, CHECK_EVENT, SET_PENDING, READ_MASK, ROUND, WATCH, ARM,
    LOOK_AGAIN,
) = range(22)  # fmt: skip

PHASES: Final = (
    Phase(TURN, "TURN", "",
        {DO_NEXT: SUBMIT, AGAIN: ROUND, NONE: WATCH, DO_ARM: ARM, END: (CLEAR, DONE)}),
    Phase(CLEAR, "CLEAR", "fetch_and of our pending bit", {ON: LOOK}),
    Phase(LOOK, "LOOK", "load of rsp_prod",
        {ON: TAKE, NONE: TURN, AGAIN: (LOOK, SLICE), END: (LOOK, BROKEN)}),
    Phase(TAKE, "TAKE", "copy of one response",
        {ON: FINISH, COPY: COPY_OUT, END: END_LOOK, NONE: (LOOK, BROKEN)}),
    Phase(FINISH, "FINISH", "",
        {COPY: COPY_OUT, END: END_LOOK, DO_NEXT: TAKE, ON: TURN, DO_ARM: ARM_TAKEN}),
    Phase(COPY_OUT, "COPY_OUT", "copy of one segment", {END: END_LOOK, ON: FINISH}),
    Phase(END_LOOK, "END_LOOK", "load of a grant entry",
        {ON: FINISH, END: END_SWAP, NONE: (LOOK, BROKEN)}),
    Phase(END_SWAP, "END_SWAP", "cmpxchg of a grant entry", {ON: FINISH, AGAIN: END_LOOK}),
    Phase(ARM_TAKEN, "ARM_TAKEN", "store of rsp_event", {ON: TURN}),
    Phase(SUBMIT, "SUBMIT", "",
        {ON: PUT, GRANT: GRANT_ACCESS, COPY: COPY_IN, END: PUBLISH, AGAIN: ROUND, NONE: WATCH}),
    Phase(PREPARE, "PREPARE", "", {ON: PUT, GRANT: GRANT_ACCESS, COPY: COPY_IN}),
    Phase(GRANT_ACCESS, "GRANT_ACCESS", "store of a grant entry", {COPY: COPY_IN, ON: PREPARE}),
    Phase(COPY_IN, "COPY_IN", "copy of one segment", {ON: PREPARE}),
    Phase(PUT, "PUT", "copy of one request", {AGAIN: SUBMIT, ON: PUBLISH}),
    Phase(PUBLISH, "PUBLISH", "store of req_prod", {ON: CHECK_EVENT}),
    Phase(CHECK_EVENT, "CHECK_EVENT", "load of req_event",
        {ON: SET_PENDING, NONE: CLEAR, DO_NEXT: LOOK}),
    Phase(SET_PENDING, "SET_PENDING", "fetch_or of its pending bit", {ON: READ_MASK, NONE: CLEAR}),
    Phase(READ_MASK, "READ_MASK", "load of its mask", {ON: (CLEAR, WAKE), NONE: CLEAR}),
    Phase(ROUND, "ROUND", "", {ON: CLEAR}),
    Phase(WATCH, "WATCH", "loads of rsp_prod, while it pays", {AGAIN: CLEAR, ON: ARM}),
    Phase(ARM, "ARM", "store of rsp_event", {ON: LOOK_AGAIN}),
    Phase(LOOK_AGAIN, "LOOK_AGAIN", "load of rsp_prod", {ON: CLEAR, NONE: (CLEAR, WAIT)}),
)  # fmt: skip

NEXT: Final = next_steps(PHASES)
