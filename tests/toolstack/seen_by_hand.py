"""Looks at a machine that are made by hand: no process, no clock."""

from typing import Any

from tests.toolstack.stand_in import snapshot
from toolstack.seen import Seen


def disk(domid: int, number: int, vdev: str, **more: Any) -> dict[str, Any]:
    """As a keeper's status has it."""
    return {
        "domid": domid,
        "number": number,
        "vdev": vdev,
        "state": "Connected",
        "ring": {"used": 5, "slots": 32},
        "grants_kept": 0,
        **more,
    }


def guest(domid: int, **more: Any) -> dict[str, Any]:
    """As a keeper's status has it."""
    return {
        "domid": domid,
        "name": f"guest-{domid}",
        "state": "running",
        "failure": "",
        "grants_mapped": 1,
        **more,
    }


def seen(listed: list[dict[str, Any]], at_s: float = 0.0, **counted: Any) -> Seen:
    """Guests 1 and 2, of which the second has died, and the disks that are listed. counted: as
    `stand_in.snapshot` takes it."""
    dead = {"state": "dead", "failure": "guest-2 was killed by SIGKILL"}
    described = {"name": "m", "mode": "persistent", "since": 0.0}
    status = {"domains": [guest(1), guest(2, **dead)], "disks": listed, "loads": 3}
    return Seen(described, status, snapshot(at_s, **counted))
