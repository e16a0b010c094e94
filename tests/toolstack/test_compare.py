"""Comparing a real run with a simulated one: what agrees, and what does not go unseen."""

import copy
from typing import Any

import pytest
from rich.console import Console

from toolstack import compare
from toolstack.door import RunEnded
from toolstack.loadspec import LoadSpec
from toolstack.results import Run
from toolstack.simulate import simulate_run
from toolstack.topology import MODES, Topology

MACHINES = compare.topologies(guests=2, dom0_vcpus=3)
SPEC = compare.load(bs=8192, ios=20, seed=3)


def against_itself(monkeypatch: pytest.MonkeyPatch, change: Any = lambda run: None) -> None:
    """Let the simulator stand in for the real runtime, its results changed by `change`."""

    def both(topology: Topology, spec: LoadSpec) -> tuple[Run, Run]:
        run, _ = simulate_run(topology, spec)
        other = copy.deepcopy(run)
        change(other)
        return other, run

    monkeypatch.setattr(compare, "both", both)


def test_the_shape_is_one_in_which_time_does_not_matter() -> None:
    assert SPEC.iodepth == 1 and SPEC.runtime_s is None
    assert {machine.flush_policy for machine in MACHINES} <= set(compare.TIMELESS_POLICIES)
    assert {machine.spin for machine in MACHINES} == {"off"}
    assert [machine.mode for machine in MACHINES] == list(MODES)


def test_counts_that_agree_are_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    against_itself(monkeypatch)
    console = Console(record=True, quiet=False, width=120)
    compare.compare(MACHINES, SPEC, console)
    assert "counts agree, disk by disk" in console.export_text()


def test_one_count_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(run: Run) -> None:
        run["guests"][1]["counters"]["teardown"]["flushes"] += 1

    against_itself(monkeypatch, change)
    console = Console(record=True, width=120)
    with pytest.raises(RunEnded, match=rf"{len(MODES)} of \d+ counts differ"):
        compare.compare(MACHINES, SPEC, console)
    assert "non-persistent, guest 2, teardown flushes: 2 1" in console.export_text()
