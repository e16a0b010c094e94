"""A trace of a real run, by its file: requests through guest, dom0 and hypervisor."""

import json
import operator
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.patience import eventually
from tests.system.conftest import grantlab
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.timeline import CPUS, DOM0, HYPERVISOR

pytestmark = pytest.mark.system

CPUS_OF_DOM0 = 3


def traced(run_base: str, path: Path, persistent: bool) -> list[dict[str, Any]]:
    """The events of a trace of a busy machine, which goes on undisturbed."""
    topology = Topology(guests=2, disks=["ram:4m"], dom0_vcpus=CPUS_OF_DOM0, persistent=persistent)
    up(topology, "traced", lambda _: None)
    with attach("traced") as machine:
        try:
            spec = LoadSpec(runtime_s=600, iodepth=4)
            with closing(machine.load(spec, every_s=0.05)) as load:
                next(load)
                flags = ("--seconds", "0.3", "--window", "50" if persistent else "200")
                done = grantlab("trace", "traced", *flags, "-o", str(path), run_base=run_base)
                assert (done.returncode, done.stderr) == (0, "")
                traced_to = ios_of(machine)
                eventually(lambda: all(map(operator.gt, ios_of(machine), traced_to)))
            errors = [
                int(rows["verify_errors"].sum()) for rows in machine.snapshot().frontend.values()
            ]
            assert errors == [0, 0]
        finally:
            machine.down()
    made = json.loads(path.read_text())
    assert made["otherData"]["requests"] > 20
    return list(made["traceEvents"])


def ios_of(machine: AttachedMachine) -> list[int]:
    return [int(rows["ios"].sum()) for rows in machine.snapshot().frontend.values()]


def spans_of(events: list[dict[str, Any]]) -> dict[str, dict[tuple[int, str], float]]:
    """By a request's id: when it began and ended, by process."""
    found: dict[str, dict[tuple[int, str], float]] = defaultdict(dict)
    for event in events:
        if event["ph"] in ("b", "e", "n"):
            found[event["id"]][event["pid"], event["ph"]] = event["ts"]
    return found


@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "non-persistent"])
def test_requests_are_followed_through_guest_and_dom0(
    run_base: str, tmp_path: Path, persistent: bool
) -> None:
    events = traced(run_base, tmp_path / "trace.json", persistent)
    requests = spans_of(events)
    assert {int(ident.split(":")[0]) for ident in requests} == {1, 2}
    for ident, times in requests.items():
        guest = int(ident.split(":")[0])
        way = [times[guest, "b"], times[guest, "n"], times[DOM0, "b"], times[DOM0, "e"],
               times[guest, "e"]]  # fmt: skip
        assert way == sorted(way), ident
    names = {event["name"] for event in events if event["pid"] == DOM0 and event["ph"] == "X"}
    calls = [event for event in events if event["pid"] == HYPERVISOR and event["ph"] == "X"]
    flushes = [event for event in events if event["name"].startswith("flush")]
    ipis = [event for event in events if event["pid"] == CPUS and event["ph"] == "i"]
    assert "respond" in names
    if persistent:
        assert "take and move" in names and not ipis
        return
    assert {"map", "move", "unmap"} <= names
    assert {call["name"] for call in calls} == {"map", "unmap"}
    assert len(flushes) == sum(call["args"]["flushes"] for call in calls) > 0
    # Two vCPUs have rings; each flush interrupts all but its own CPU.
    assert {flush["name"] for flush in flushes} == {f"flush, {CPUS_OF_DOM0 - 1} IPIs"}
    assert len(ipis) == (CPUS_OF_DOM0 - 1) * len(flushes)
    assert {event["tid"] for event in ipis} == set(range(CPUS_OF_DOM0))
