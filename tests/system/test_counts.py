"""Real processes: what each mode costs in grants, maps, unmaps, flushes and IPIs, exactly."""

from typing import Any

import pytest

from common.wakeups import Events
from tests.common.carriers import CARRIERS
from toolstack.loadspec import LoadSpec
from toolstack.machine import Machine
from toolstack.results import counters
from toolstack.topology import Mode, Topology

pytestmark = pytest.mark.system

DEPTH = 8
IOS = 2_000


def run_load(machine: Machine, **changes: Any) -> dict[str, Any]:
    """Run a small load on every guest; what was counted meanwhile."""
    spec = LoadSpec(**{"ios": IOS, "iodepth": DEPTH, "runtime_s": None, **changes})
    before = machine.snapshot()
    *_, after = machine.load(spec)
    return counters(before, after)


def errors(machine: Machine) -> int:
    snapshot = machine.snapshot()
    return sum(
        int(c["verify_errors"][0]) + int(c["io_errors"][0]) for c in snapshot.frontend.values()
    )


@pytest.mark.parametrize("events", CARRIERS)
@pytest.mark.parametrize("batching", ["request", "drain"])
def test_persistent_maps_each_page_once_and_then_never_again(batching: str, events: Events) -> None:
    with Topology(guests=2, batching=batching, events=events).start() as machine:
        first = run_load(machine)
        assert 2 <= first["map_ops"] == first["grants_issued"] <= 2 * DEPTH
        assert first["persistent_max"] <= DEPTH
        assert first["unmap_ops"] == first["flushes"] == first["ipis"] == 0
        # Every page of the depth is warm now, whatever the first load's timing made of it.
        steady = run_load(machine, iodepth=1)
        for name in ("grants_issued", "map_ops", "unmap_ops", "hypercalls", "flushes", "ipis"):
            assert steady[name] == 0, name
        assert steady["bytes_copied_by_guest"] == 2 * IOS * 4096
        assert errors(machine) == 0


@pytest.mark.parametrize("events", CARRIERS)
def test_non_persistent_pays_for_every_segment_and_flushes_for_every_request(
    events: Events,
) -> None:
    vcpus = 6
    topology = Topology(guests=2, persistent=False, dom0_vcpus=vcpus, events=events)
    with topology.start() as machine:
        cost = run_load(machine, bs=8192)
        requests, segments = 2 * IOS, 2 * IOS * 2
        assert cost["grants_issued"] == cost["grants_ended"] == segments
        assert cost["map_ops"] == cost["unmap_ops"] == cost["flush_entries"] == segments
        assert cost["hypercalls"] == 2 * requests
        assert cost["flushes"] == requests
        assert cost["ipis"] == requests * (vcpus - 1)
        assert sum(cost["ipis_by_cpu"]) == cost["ipis"]
        assert cost["bytes_copied_by_guest"] == 0
        assert errors(machine) == 0


def test_draining_makes_the_same_maps_in_no_more_hypercalls() -> None:
    with Topology(guests=1, persistent=False, batching="drain").start() as machine:
        cost = run_load(machine)
        assert cost["map_ops"] == cost["unmap_ops"] == IOS
        assert cost["flushes"] <= cost["hypercalls"] // 2 <= IOS
        assert errors(machine) == 0


def test_a_backend_without_the_feature_maps_as_much_but_the_grants_are_reused() -> None:
    with Topology(guests=1, backend_persistent=False).start() as machine:
        cost = run_load(machine)
        assert cost["map_ops"] == cost["unmap_ops"] == IOS
        assert cost["grants_issued"] <= DEPTH
        assert cost["grants_ended"] == 0
        assert cost["bytes_copied_by_guest"] == IOS * 4096
        assert errors(machine) == 0


@pytest.mark.parametrize("spin", ["adaptive", "off"])
def test_grant_copy_copies_each_segment_once_and_maps_and_flushes_nothing(spin: str) -> None:
    with Topology(guests=2, spin=spin).with_mode("grant-copy").start() as machine:
        cost = run_load(machine, bs=8192, ios=500)
        assert cost["copy_ops"] == cost["grants_issued"] == cost["grants_ended"] == 2 * 500 * 2
        assert cost["hypercalls"] == 2 * 500
        for name in ("map_ops", "unmap_ops", "flushes", "ipis", "bytes_copied_by_guest"):
            assert cost[name] == 0, name
        assert errors(machine) == 0


def test_beyond_the_cap_the_overflow_and_only_it_is_unmapped() -> None:
    cap = 16
    with Topology(guests=1, max_persistent_grants=cap).start() as machine:
        cost = run_load(machine, bs=44 * 1024, iodepth=4, ios=500)
        assert cost["persistent_max"] == cap
        assert cost["overflow_segments"] > 0
        assert cost["map_ops"] == cap + cost["overflow_segments"]
        assert cost["unmap_ops"] == cost["overflow_segments"]
        assert errors(machine) == 0


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("backend_persistent", [True, False])
def test_after_disconnect_nothing_is_left_mapped(
    persistent: bool, backend_persistent: bool
) -> None:
    topology = Topology(guests=2, persistent=persistent, backend_persistent=backend_persistent)
    with topology.start() as machine:
        run_load(machine)
    assert machine.closed is not None
    for domid in (1, 2):
        assert machine.closed.hypervisor[domid]["grants_mapped"][0] == 0
        frontend = machine.closed.frontend[domid]
        # All but the ring's own grant, which is not the load's to count.
        assert frontend["grants_ended"][0] == frontend["grants_issued"][0]


@pytest.mark.parametrize("events", CARRIERS)
@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_at_depth_one_without_spinning_a_request_is_one_notification_each_way(
    mode: Mode, events: Events
) -> None:
    """As in tests/golden, where one in sixty is missing to the back: Linux may look again first."""
    with Topology(guests=1, spin="off", events=events).with_mode(mode).start() as machine:
        cost = run_load(machine, iodepth=1, ios=500)
        assert cost["notify_to_front"] == cost["notify_to_back"] == 500
