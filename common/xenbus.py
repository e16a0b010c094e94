"""The xenbus handshake of a virtual block device, as a table.

Owns: which step each end takes, given its own state and the other's; docs/design.md's diagram is
drawn from this table. What a step does is in `frontend/vbd.py` and `backend/vbd.py`.
Rule: a pair of states that is not in the table asks for nothing: the end waits. Nothing a peer can
write into xenstore is an error of ours.

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


_CLOSE: Final = Step("close", CLOSED)

# TABLE[role][own state][the other end's state]
TABLE: Final[dict[str, dict[int, dict[int, Step]]]] = {
    "frontend": {
        INITIALISING: {INIT_WAIT: Step("publish_ring", INITIALISED), CLOSING: _CLOSE},
        INITIALISED: {CONNECTED: Step("read_disk", CONNECTED), CLOSING: _CLOSE, CLOSED: _CLOSE},
        CONNECTED: {CLOSING: _CLOSE, CLOSED: _CLOSE, UNKNOWN: _CLOSE},
        CLOSING: {CLOSING: _CLOSE, CLOSED: _CLOSE, UNKNOWN: _CLOSE},
    },
    "backend": {
        INITIALISING: {
            INITIALISING: Step("announce", INIT_WAIT),
            INITIALISED: Step("announce", INIT_WAIT),
        },
        INIT_WAIT: {
            INITIALISED: Step("connect", CONNECTED),
            CLOSING: Step("disconnect", CLOSING),
            CLOSED: Step("disconnect", CLOSED),
            UNKNOWN: Step("disconnect", CLOSED),
        },
        CONNECTED: {
            CLOSING: Step("disconnect", CLOSING),
            CLOSED: Step("disconnect", CLOSED),
            UNKNOWN: Step("disconnect", CLOSED),
        },
        CLOSING: {CLOSED: Step("disconnect", CLOSED), UNKNOWN: Step("disconnect", CLOSED)},
        CLOSED: {INITIALISING: Step("announce", INIT_WAIT)},
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
