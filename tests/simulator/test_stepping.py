"""A simulated machine phase by phase: what is shown is what is done."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from backend.steps import PHASES as BACK_PHASES
from frontend.load import LoadPlan
from frontend.steps import PHASES as FRONT_PHASES
from simulator.config import MODES, Config, DiskPlan
from simulator.machine import Machine
from simulator.stepping import Stepped, step_through

Stepping = Callable[[Config], list[Stepped]]
IOS = 3


def config(mode: str, guests: int = 1, iodepth: int = 1, rw: str = "write") -> Config:
    plan = LoadPlan(rw, 4096, iodepth, 50, IOS, None, 1, True)
    return Config(plan, mode, guests, 2)


def stepped(mode: str, **options: int | str) -> list[Stepped]:
    return list(step_through(Machine(config(mode, **options))))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_each_phase_is_shown_with_the_access_that_the_tables_give_it(mode: str) -> None:
    accesses = {
        "guest-1": {phase.name: phase.access for phase in FRONT_PHASES},
        "dom0": {phase.name: phase.access for phase in BACK_PHASES},
    }
    found = stepped(mode)
    for each in found:
        if each.who != "Xen":
            assert each.access == accesses[each.who][each.phase]
    assert [each.number for each in found] == list(range(1, len(found) + 1))
    assert found[-1].then == "DONE"


@pytest.mark.parametrize("rw", ["read", "write"])
@pytest.mark.parametrize("mode", MODES)
def test_a_phase_changes_no_more_than_its_one_access(mode: str, rw: str) -> None:
    for each in stepped(mode, rw=rw, iodepth=2):
        if each.who == "Xen":
            continue
        # Of a persistent one's page the guest learns by trying that it stays: no change.
        assert len(each.changes) <= (1 if each.access else 0), str(each)


def test_a_request_is_seen_on_its_way() -> None:
    changes = [change for each in stepped("persistent") for change in each.changes]
    story = [
        "slot 0: request 0 WRITE sector",
        "req_prod 0 -> 1",
        "dom0's event set",
        "dom0's event taken",
        "1 operation",
        "gref 9: permit_access -> permit_access|reading|writing",
        "slot 0: response 0 WRITE OKAY",
        "rsp_prod 0 -> 1",
        "guest's event set",
    ]
    rest = iter(changes)
    for part in story:
        assert any(change.startswith(part) for change in rest), part


@pytest.mark.parametrize(
    ("mode", "calls"),
    [
        ("persistent", {"GNTTABOP_map_grant_ref": 1}),
        ("non-persistent", {"GNTTABOP_map_grant_ref": IOS, "GNTTABOP_unmap_grant_ref": IOS}),
        ("grant-copy", {"GNTTABOP_copy": IOS}),
    ],
)
def test_the_hypercalls_are_those_of_the_mode(mode: str, calls: dict[str, int]) -> None:
    assert Counter(each.access for each in stepped(mode) if each.who == "Xen") == calls


def test_stepped_and_run_it_counts_the_same() -> None:
    run, by_steps = Machine(config("non-persistent")).run(), Machine(config("non-persistent"))
    before = by_steps.counts().hypervisor[1]
    for _ in step_through(by_steps):
        pass
    after = by_steps.counts().hypervisor[1]
    for block in ("map_ops", "unmap_ops", "flushes", "ipis"):
        ran = run.finished.hypervisor[1][block] - run.started.hypervisor[1][block]
        assert after[block] - before[block] == ran > 0, block


def test_all_guests_have_their_turns() -> None:
    found = stepped("persistent", guests=3)
    assert {"guest-1", "guest-2", "guest-3"} <= {each.who for each in found}
    assert sum(each.then == "DONE" for each in found) == 3


def test_a_line_is_for_people() -> None:
    line = str(
        Stepped(7, "guest-1", "", "PUBLISH", "store of req_prod", ("req_prod 0 -> 1",), "WAKE")
    )
    assert line.splitlines() == [
        "    7  guest-1  PUBLISH      store of req_prod",
        "                req_prod 0 -> 1",
        "                => WAKE",
    ]


def test_disks_of_one_guest_are_told_apart() -> None:
    disk = DiskPlan(LoadPlan("write", 4096, 1, 50, IOS, None, 1, True), 4 << 11)
    found = list(step_through(Machine(replace(config("persistent"), disks=((disk, disk),)))))
    assert {each.disk for each in found} == {"xvda", "xvdb"}
    assert sum(each.then == "DONE" for each in found) == 2
    for name in ("xvda", "xvdb"):
        (line,) = (
            str(each).splitlines()[0]
            for each in found
            if each.phase == "TURN" and each.disk == name and each.then == "DONE"
        )
        assert f"guest-1  {name} TURN" in line
