"""The xenbus handshake of a virtual block device, as a table.

Owns: which step each end takes, given its own state and the other's; docs/design.md's diagram is
drawn from this table. What a step does is in `frontend/vbd.py` and `backend/vbd.py`.
Rule: a pair of states that is not in the table asks for nothing: the end waits. Nothing a peer can
write into xenstore is an error of ours.

What is read is a level, not an edge: watches coalesce, so either end may miss what the other was in
between. A frontend that is Connected has said all that one that is Initialised says (MirageOS and
mini-os never write 3); one may close before it was ever connected, and come back (Windows). A
backend that is Initialising or InitWait beneath a connected frontend is another one: the frontend
keeps what has not been answered, lets go of its ring, and begins again.
After a close a frontend begins again at Initialising: the Connected of one that has not heard that
its connection is gone would look the same as that of one that has come back.

Source: Xen's `io/xenbus.h`, `io/blkif.h`; order after `tests/golden/handshake-writes.txt`.
"""

from typing import Final, NamedTuple

from common import abi

UNKNOWN: Final = abi.XENBUS_STATE_UNKNOWN
INITIALISING: Final = abi.XENBUS_STATE_INITIALISING
INIT_WAIT: Final = abi.XENBUS_STATE_INIT_WAIT
INITIALISED: Final = abi.XENBUS_STATE_INITIALISED
CONNECTED: Final = abi.XENBUS_STATE_CONNECTED
CLOSING: Final = abi.XENBUS_STATE_CLOSING
CLOSED: Final = abi.XENBUS_STATE_CLOSED

DIGITS_MAX: Final = 20  # of a u64
SHOWN_MAX: Final = 60
XVD_MAJOR: Final = 202

STATE_NAMES: Final = {
    UNKNOWN: "Unknown",
    INITIALISING: "Initialising",
    INIT_WAIT: "InitWait",
    INITIALISED: "Initialised",
    CONNECTED: "Connected",
    CLOSING: "Closing",
    CLOSED: "Closed",
    abi.XENBUS_STATE_RECONFIGURING: "Reconfiguring",
    abi.XENBUS_STATE_RECONFIGURED: "Reconfigured",
}


class Step(NamedTuple):
    """What to do, and the state to announce when it is done."""

    action: str
    state: int


CLOSE: Final = Step("close", CLOSED)
SUSPEND: Final = Step("suspend", INITIALISING)
_ANNOUNCE: Final = Step("announce", INIT_WAIT)
_CONNECT: Final = Step("connect", CONNECTED)
_FOLLOW: Final = Step("disconnect", CLOSING)
_DISCONNECT: Final = Step("disconnect", CLOSED)

# TABLE[role][own state][the other end's state]
TABLE: Final[dict[str, dict[int, dict[int, Step]]]] = {
    "frontend": {
        INITIALISING: {INIT_WAIT: Step("publish_ring", INITIALISED), CLOSING: CLOSE},
        INITIALISED: {
            CONNECTED: Step("read_disk", CONNECTED),
            INITIALISING: SUSPEND,
            **dict.fromkeys((CLOSING, CLOSED, UNKNOWN), CLOSE),
        },
        CONNECTED: {
            **dict.fromkeys((INITIALISING, INIT_WAIT), SUSPEND),
            **dict.fromkeys((CLOSING, CLOSED, UNKNOWN), CLOSE),
        },
        CLOSING: dict.fromkeys((CLOSING, CLOSED, UNKNOWN, INITIALISING), CLOSE),
    },
    "backend": {
        INITIALISING: dict.fromkeys(
            (INITIALISING, INITIALISED, CONNECTED, CLOSING, CLOSED), _ANNOUNCE
        ),
        INIT_WAIT: {
            INITIALISED: _CONNECT,
            CONNECTED: _CONNECT,
            CLOSING: _FOLLOW,
            CLOSED: _DISCONNECT,
            UNKNOWN: _DISCONNECT,
        },
        CONNECTED: {CLOSING: _FOLLOW, CLOSED: _DISCONNECT, UNKNOWN: _DISCONNECT},
        CLOSING: dict.fromkeys((CLOSED, UNKNOWN, INITIALISING), _DISCONNECT),
        CLOSED: {INITIALISING: _ANNOUNCE},
    },
}


def next_step(role: str, own: int, other: int) -> Step | None:
    """What `role` does in state `own` when the other end is in state `other`; None: wait."""
    return TABLE[role].get(own, {}).get(other)


def parse_state(value: bytes | None) -> int:
    """A xenbus state as read from the store; anything that is none is UNKNOWN."""
    if value is None or not value.isdigit() or int(value) not in STATE_NAMES:
        return UNKNOWN
    return int(value)


def parse_number(value: bytes | None, maximum: int) -> int | None:
    """A decimal number of at most `maximum`, as read from the store; None if it is none."""
    if value is None or not value.isdigit() or len(value) > DIGITS_MAX or int(value) > maximum:
        return None
    return int(value)


def shown(value: bytes | None) -> str:
    """What somebody wrote into the store, short enough for an `error` node or a line of a log."""
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}..."


def disk_name(device: int) -> str:
    """What a virtual disk is called: "xvda" for 51712 (Xen's `vbd-interface` document)."""
    if device >> 8 == XVD_MAJOR:
        disk, partition = (device >> 4) & 0xF, device & 0xF
    elif device >> 28 == 1:
        disk, partition = (device >> 8) & 0xFFFFF, device & 0xFF
    else:
        return f"vbd {device}"
    letters = ""
    while disk >= 0:
        disk, letter = disk // 26 - 1, disk % 26
        letters = chr(ord("a") + letter) + letters
    return f"xvd{letters}{partition or ''}"


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/design.md."""
    lines = ["stateDiagram-v2"]
    for role, states in TABLE.items():
        for own, others in states.items():
            targets: dict[Step, list[str]] = {}
            for other, step in others.items():
                targets.setdefault(step, []).append(STATE_NAMES[other])
            for step, seen in targets.items():
                lines.append(
                    f"    {role}_{STATE_NAMES[own]} --> {role}_{STATE_NAMES[step.state]}:"
                    f" {step.action} (other is {' or '.join(seen)})"
                )
    return "\n".join(lines)


def frontend_path(domid: int, device: int) -> str:
    """The frontend's directory in the store."""
    return f"/local/domain/{domid}/device/vbd/{device}"


def backend_path(domid: int, device: int, backend_domid: int = 0) -> str:
    """The backend's directory in the store, for the frontend's `domid` and `device`."""
    return f"/local/domain/{backend_domid}/backend/vbd/{domid}/{device}"
