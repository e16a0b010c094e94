"""blkback's order: which phase of a ring's worker follows which. What each does is in `taking.py`,
`phases.py`, `at_store.py` and `doors.py`, and in `common/notifying.py`. Each is about a *group* of
slots (`backend/slots.py`).

Rules
1. A request is copied once, checked, and only then acted on. A bad one is answered, never dropped.
2. The tree's in-flight mark covers a kept page from TAKE to RELEASE. A gref that is named again
   meanwhile (in the same request or another) is mapped a second time for that request only: in 2012
   it was a BUG() in dom0.
3. A response goes out after its request's unmaps, and as soon as its request is ready: what a store
   without memory is given (HAND_OVER, all that was on the ring together) comes back by LOOK, in an
   order of its own.
4. The peer is asked for a notification (ARM), then looked at once more (LOOK_AGAIN): only then may
   it be slept. Our own event is taken (CLEAR) before the ring is looked at, never after.
"""

from typing import Final

from common.effects import BROKEN, DONE, HYPERCALL, IO, SLICE, WAIT, WAKE
from common.steps import AGAIN, COPY, END, GRANT, NONE, ON, Phase, next_steps
from common.steps import ARM as DO_ARM
from common.steps import NEXT as DO_NEXT

(
    CLEAR, LOOK, TAKE, ARM_TAKEN, PLAN, MAP, MAPPED, COPY_IN, COPIED_IN, MOVE, LIST_OUT, COPY_OUT,
    COPIED_OUT, RELEASE, EMPTY, UNMAP, UNMAPPED, RESPOND, PUBLISH, CHECK_EVENT, SET_PENDING,
    READ_MASK, HAND_OVER, WATCH, ARM, LOOK_AGAIN, RELEASE_KEPT,
) = range(27)  # fmt: skip

PHASES: Final = (
    Phase(CLEAR, "CLEAR", "fetch_and of our pending bit", {ON: LOOK}),
    Phase(LOOK, "LOOK", "load of req_prod",
        {ON: TAKE, NONE: HAND_OVER, AGAIN: (LOOK, SLICE), END: (LOOK, BROKEN), DO_NEXT: RELEASE,
         COPY: LIST_OUT, GRANT: RELEASE_KEPT}),
    Phase(TAKE, "TAKE", "copy of one request",
        {AGAIN: TAKE, ON: MOVE, GRANT: PLAN, DO_ARM: ARM_TAKEN}),
    Phase(ARM_TAKEN, "ARM_TAKEN", "store of req_event", {ON: PLAN}),
    Phase(PLAN, "PLAN", "", {ON: MOVE, GRANT: MAP, COPY: COPY_IN}),
    Phase(MAP, "MAP", "GNTTABOP_map_grant_ref", {ON: MAPPED, NONE: (MAPPED, HYPERCALL)}),
    Phase(MAPPED, "MAPPED", "", {ON: MOVE, AGAIN: MAP}),
    Phase(COPY_IN, "COPY_IN", "GNTTABOP_copy", {ON: COPIED_IN, NONE: (COPIED_IN, HYPERCALL)}),
    Phase(COPIED_IN, "COPIED_IN", "", {ON: MOVE, AGAIN: COPY_IN}),
    Phase(MOVE, "MOVE", "copy of one segment",
        {AGAIN: MOVE, ON: RELEASE, COPY: LIST_OUT, NONE: LOOK}),
    Phase(LIST_OUT, "LIST_OUT", "", {ON: RELEASE, COPY: COPY_OUT}),
    Phase(COPY_OUT, "COPY_OUT", "GNTTABOP_copy", {ON: COPIED_OUT, NONE: (COPIED_OUT, HYPERCALL)}),
    Phase(COPIED_OUT, "COPIED_OUT", "", {ON: RELEASE, AGAIN: COPY_OUT}),
    Phase(RELEASE, "RELEASE", "", {ON: RESPOND, GRANT: EMPTY}),
    Phase(EMPTY, "EMPTY", "", {ON: UNMAP}),
    Phase(UNMAP, "UNMAP", "GNTTABOP_unmap_grant_ref", {ON: UNMAPPED, NONE: (UNMAPPED, HYPERCALL)}),
    Phase(UNMAPPED, "UNMAPPED", "", {ON: RESPOND, AGAIN: UNMAP, DO_NEXT: RELEASE_KEPT}),
    Phase(RESPOND, "RESPOND", "copy of one response", {AGAIN: RESPOND, ON: PUBLISH}),
    Phase(PUBLISH, "PUBLISH", "store of rsp_prod", {ON: CHECK_EVENT}),
    Phase(CHECK_EVENT, "CHECK_EVENT", "load of rsp_event",
        {ON: SET_PENDING, NONE: CLEAR, DO_NEXT: LOOK}),
    Phase(SET_PENDING, "SET_PENDING", "fetch_or of its pending bit", {ON: READ_MASK, NONE: CLEAR}),
    Phase(READ_MASK, "READ_MASK", "load of its mask", {ON: (CLEAR, WAKE), NONE: CLEAR}),
    Phase(HAND_OVER, "HAND_OVER", "", {NONE: WATCH, ON: LOOK, DO_NEXT: (LOOK, IO)}),
    Phase(WATCH, "WATCH", "loads of req_prod, while it pays", {AGAIN: CLEAR, ON: ARM}),
    Phase(ARM, "ARM", "store of req_event", {ON: LOOK_AGAIN}),
    Phase(LOOK_AGAIN, "LOOK_AGAIN", "load of req_prod", {ON: CLEAR, NONE: (CLEAR, WAIT)}),
    Phase(RELEASE_KEPT, "RELEASE_KEPT", "",
        {GRANT: EMPTY, NONE: (RELEASE_KEPT, DONE), AGAIN: (LOOK, WAIT)}),
)  # fmt: skip

NEXT: Final = next_steps(PHASES)
