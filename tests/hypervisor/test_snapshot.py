"""A snapshot of the arena is the whole hypervisor: from each, a run goes on to the byte.

A script is drawn from a seed before it is run: hypercalls of domain 0 and two guests, what guests
write into their tables, births and deaths. All memory lies in the arena, domains' own too.
"""

from collections import defaultdict
from random import Random
from typing import Final, NamedTuple

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from common.not_done import GNTST_UNFILLED
from hypervisor.domains import DOMAIN
from hypervisor.event_channels import PORT
from hypervisor.grant_table import ACTIVE, TABLE
from hypervisor.maptrack import MAPTRACK_ENTRY, MAPTRACK_LIST
from hypervisor.room import Room
from tests.hypervisor.world import DEVICE_RO, PAGE, RO, RW, World

STEPS: Final = 200
DOMIDS: Final = (0, 1, 2)
GRANT, EVENT = abi.HYPERVISOR_GRANT_TABLE_OP, abi.HYPERVISOR_EVENT_CHANNEL_OP
CALLS: Final = {
    "map": (GRANT, abi.GNTTABOP_MAP_GRANT_REF, abi.GNTTAB_MAP_GRANT_REF),
    "unmap": (GRANT, abi.GNTTABOP_UNMAP_GRANT_REF, abi.GNTTAB_UNMAP_GRANT_REF),
    "copy": (GRANT, abi.GNTTABOP_COPY, abi.GNTTAB_COPY),
    "alloc": (EVENT, abi.EVTCHNOP_ALLOC_UNBOUND, abi.EVTCHN_ALLOC_UNBOUND),
    "bind": (EVENT, abi.EVTCHNOP_BIND_INTERDOMAIN, abi.EVTCHN_BIND_INTERDOMAIN),
    "close": (EVENT, abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE),
    "unmask": (EVENT, abi.EVTCHNOP_UNMASK, abi.EVTCHN_UNMASK),
    "status": (EVENT, abi.EVTCHNOP_STATUS, abi.EVTCHN_STATUS),
    "reset": (EVENT, abi.EVTCHNOP_RESET, abi.EVTCHN_RESET),
}
KINDS: Final = {
    "map": 10, "unmap": 10, "copy": 3, "write": 3, "touch": 3, "create": 6, "destroy": 1,
    "released": 6, "alloc": 6, "bind": 12, "close": 2, "unmask": 1, "status": 1, "reset": 1,
}  # fmt: skip


class Step(NamedTuple):
    """One thing that somebody does: payload is a hypercall's structs, if it is one."""

    kind: str
    by: int
    at: int
    payload: bytes


def script(seed: int) -> list[Step]:
    """What is done in a run."""
    random = Random(seed)
    kinds = random.choices(list(KINDS), KINDS.values(), k=STEPS)
    return [
        Step(kind, random.choice(DOMIDS), random.randrange(1, 6), structs(kind, random))
        for kind in kinds
    ]


def structs(kind: str, random: Random) -> bytes:
    """A call's, with small numbers in all their fields, so that they often name what there is."""
    if kind not in CALLS:
        return b""
    number, _, dtype = CALLS[kind]
    ops = np.zeros(1 if number == EVENT else random.randrange(1, 5), dtype)
    for op in ops:
        if kind == "map":
            op["dom"], op["ref"] = random.choice(DOMIDS), random.randrange(1, 4)
            op["host_addr"], op["flags"] = PAGE, random.choice((RW, RO, RO | DEVICE_RO))
        elif kind == "unmap":
            op["handle"], op["host_addr"] = random.randrange(4), PAGE
            op["dev_bus_addr"] = random.choice((0, 0, 3 * PAGE))
        elif kind == "copy":
            op["source"]["domid"] = random.choice(DOMIDS)
            op["source"]["ref"] = random.randrange(1, 4)
            op["dest"]["domid"], op["dest"]["gmfn"] = abi.DOMID_SELF, random.randrange(6)
            op["flags"], op["len"] = abi.GNTCOPY_SOURCE_GREF, 64
        else:
            for name in dtype.names:
                op[name] = random.choice(DOMIDS) if "dom" in name else random.randrange(1, 4)
            if "dom" in dtype.names and random.random() < 0.7:
                op["dom"] = abi.DOMID_SELF
    if number == GRANT:
        ops["status"] = GNTST_UNFILLED
    return ops.tobytes()


def do(world: World, step: Step) -> tuple[bool, bytes]:
    """Do it: did it do anything, and what came back."""
    kind, by, at, payload = step
    if kind in CALLS:
        (number, cmd, dtype), answer = CALLS[kind], bytearray(payload)
        rc = world.hypervisor.hypercall(by, at % 4, number, cmd, answer, at > 3)
        did = rc == 0 and (number == EVENT or not np.frombuffer(answer, dtype)["status"].all())
        return did, b"%d, %d: " % (rc, world.hypervisor.flushes) + answer
    if kind == "write":
        for gref in (1, 2, 3):
            entry = world[by].entry(gref)
            entry["flags"] = abi.GTF_PERMIT_ACCESS | abi.GTF_READONLY * (at == gref)
            entry["domid"], entry["frame"] = gref % 3, at
    elif kind == "touch":
        world.accessed[4 * at] |= np.uint64(1 << by)
        world.dirty[by] = world.running[at % 4] = by & 1
    elif kind == "released":
        return by != 0 and waits(world, by), str(world.hypervisor.released(by)).encode()
    elif by == 0 or (by in world.hypervisor.domains) == (kind == "create"):
        return False, b""
    elif kind == "create":
        world.create(by, in_store=at > 2)
    elif world.hypervisor.domains.find(by) is not None:
        world.hypervisor.destroy_domain(by)
    return True, b""


def waits(world: World, domid: int) -> bool:
    """Is the domain dying?"""
    domains = world.hypervisor.domains
    return domid in domains and domains.find(domid) is None


def go_on_from_every_snapshot(seed: int) -> dict[str, int]:
    """Run a script, and its rest again from before each step; how many steps of each kind did
    anything."""
    world, steps = World(policy="mask-2012", nr_handles=32), script(seed)
    snapshots, results = [world.arena.snapshot()], []
    for step in steps:
        results.append(do(world, step))
        snapshots.append(world.arena.snapshot())
    for start in Random(seed).sample(range(STEPS), STEPS):
        world.arena.restore(snapshots[start])
        assert [do(world, step) for step in steps[start:]] == results[start:]
        assert np.array_equal(world.arena.snapshot(), snapshots[-1])
    done: dict[str, int] = defaultdict(int)
    for step, (did, _) in zip(steps, results, strict=True):
        done[step.kind] += did
    return done


def test_from_every_snapshot_a_run_goes_on_as_it_did() -> None:
    done = [go_on_from_every_snapshot(seed) for seed in range(4)]
    assert all(sum(each[kind] for each in done) > 1 for kind in KINDS), done


@pytest.mark.parametrize(
    "dtype", [DOMAIN, PORT, ACTIVE, TABLE, MAPTRACK_ENTRY, MAPTRACK_LIST], ids=lambda d: d.names[0]
)
def test_state_that_lies_elsewhere_is_found(
    monkeypatch: pytest.MonkeyPatch, dtype: np.dtype
) -> None:
    for carver in (Arena, Room):

        def leak(self: Arena, shape: int, its: np.dtype, array=carver.array) -> np.ndarray:  # type: ignore[no-untyped-def]
            return np.zeros(shape, its) if its == dtype else array(self, shape, its)

        monkeypatch.setattr(carver, "array", leak)
    with pytest.raises(AssertionError):
        for seed in range(4):
            go_on_from_every_snapshot(seed)
