"""The result format, number by number, from snapshots made by hand."""

from dataclasses import replace
from typing import Any

import pytest

from tests.toolstack.stand_in import snapshot
from toolstack.loadspec import LoadSpec
from toolstack.results import (
    Run,
    build_run,
    counters,
    faults,
    grants_left,
    latency_us,
)
from toolstack.topology import Topology

TOTALS = [
    "requests", "segments", "bytes_read", "bytes_written", "seconds", "iops", "verify_errors",
    "io_errors", "cpu_seconds",
]  # fmt: skip
LATENCIES = ["mean", "p50", "p95", "p99", "p99_9", "max"]
COUNTERS = [
    "grants_issued", "grants_ended", "map_ops", "unmap_ops", "copy_ops", "hypercalls", "flushes",
    "flush_entries", "ipis", "ipis_by_cpu", "flush_lock_waits", "notify_to_back",
    "notify_to_front", "bytes_copied_by_guest", "persistent_max", "overflow_segments",
    "bad_requests", "flush_requests", "discard_requests", "bytes_discarded", "store_flushes",
    "store_discards", "host_tlb_shootdowns",
]  # fmt: skip

BOOTED = snapshot(10.0, host_tlb_shootdowns=1000)
STARTED = snapshot(
    11.0,
    frontend={1: {"grants_issued": 1}, 2: {"grants_issued": 1}},
    hypervisor={1: {"map_ops": 1, "hypercalls": 1}, 2: {"map_ops": 1, "hypercalls": 1}},
    host_tlb_shootdowns=1100,
    cpu_seconds=3.0,
)
FINISHED = snapshot(
    13.0,
    frontend={
        1: {"ios": 100, "requests": 200, "segments": 300, "bytes_read": 4096, "grants_issued": 11},
        2: {"ios": 60, "requests": 60, "segments": 60, "bytes_written": 512, "verify_errors": 2},
    },
    backend={
        1: {"persistent_max": 8, "notify_to_front": 5, "overflow_segments": 1, "bad_requests": 4},
        2: {"persistent_max": 30, "notify_to_front": 6},
    },
    hypervisor={
        1: {"map_ops": 9, "hypercalls": 7, "flushes": 2, "ipis": 5, "grants_mapped": 9},
        2: {"map_ops": 31, "hypercalls": 4, "grants_mapped": 31},
    },
    latency={1: (50,) * 98 + (900, 1000), 2: (10,)},
    ipis_received=(0, 5),
    host_tlb_shootdowns=1142,
    cpu_seconds=5.5,
)
CLOSED = snapshot(
    14.0,
    frontend={1: {"grants_issued": 11}, 2: {"grants_issued": 11}},
    backend={1: {"bad_requests": 4}},
    hypervisor={
        1: {"map_ops": 9, "unmap_ops": 9, "hypercalls": 8, "flushes": 3, "ipis": 6},
        2: {"map_ops": 31, "unmap_ops": 31, "hypercalls": 8},
    },
    ipis_received=(0, 6),
    host_tlb_shootdowns=1150,
    cpu_seconds=5.75,
)


@pytest.fixture(scope="module")
def run() -> Run:
    return build_run(
        Topology(guests=2, dom0_vcpus=2),
        LoadSpec(ios=100, seed=9),
        booted=BOOTED,
        started=STARTED,
        finished=FINISHED,
        closed=CLOSED,
    )


def test_a_run_has_the_names_of_schema_2(run: Run) -> None:
    assert list(run) == ["config", "totals", "latency_us", "counters", "guests", "backends"]
    assert list(run["totals"]) == TOTALS
    assert list(run["latency_us"]) == LATENCIES
    assert list(run["counters"]) == [*COUNTERS, "setup", "teardown"]
    assert list(run["counters"]["setup"]) == COUNTERS
    assert list(run["counters"]["teardown"]) == COUNTERS


def test_a_guest_s_share_has_the_same_names(run: Run) -> None:
    assert [guest["domid"] for guest in run["guests"]] == [1, 2]
    for guest in run["guests"]:
        assert list(guest) == ["domid", "suspect", "totals", "latency_us", "counters", "disks"]
        assert list(guest["totals"]) == TOTALS
        assert list(guest["latency_us"]) == LATENCIES
        assert list(guest["counters"]) == [*COUNTERS, "setup", "teardown"]


def test_the_configuration_holds_every_option(run: Run) -> None:
    config = run["config"]
    assert set(config) == {"runtime", "mode", "topology_seed"} | set(Topology.model_fields) | set(
        LoadSpec.model_fields
    )
    assert (config["runtime"], config["mode"], config["seed"]) == ("real", "persistent", 9)


def test_totals_are_the_sums_of_the_guests_over_the_load(run: Run) -> None:
    totals = run["totals"]
    assert (totals["requests"], totals["segments"]) == (260, 360)
    assert (totals["bytes_read"], totals["bytes_written"]) == (4096, 512)
    assert (totals["verify_errors"], totals["io_errors"]) == (2, 0)
    assert (totals["seconds"], totals["cpu_seconds"]) == (2.0, 2.5)


def test_iops_count_the_load_s_own_ios_and_not_the_ring_s_requests(run: Run) -> None:
    assert run["totals"]["iops"] == 80.0
    assert run["guests"][0]["totals"]["iops"] == 50.0


def test_counters_are_those_of_the_load_alone(run: Run) -> None:
    found = run["counters"]
    assert (found["map_ops"], found["unmap_ops"], found["hypercalls"]) == (38, 0, 9)
    assert (found["flushes"], found["ipis"], found["ipis_by_cpu"]) == (2, 5, [0, 5])
    assert (found["notify_to_front"], found["overflow_segments"]) == (11, 1)
    assert found["host_tlb_shootdowns"] == 42
    assert found["bad_requests"] == 4
    assert [guest["counters"]["bad_requests"] for guest in run["guests"]] == [4, 0]


def test_set_up_and_tear_down_stand_by_themselves(run: Run) -> None:
    setup, teardown = run["counters"]["setup"], run["counters"]["teardown"]
    assert (setup["map_ops"], setup["grants_issued"], setup["host_tlb_shootdowns"]) == (2, 2, 100)
    assert (teardown["unmap_ops"], teardown["flushes"]) == (40, 1)
    assert (teardown["ipis_by_cpu"], teardown["host_tlb_shootdowns"]) == ([0, 1], 8)


def test_the_largest_tree_is_the_largest_of_any_guest(run: Run) -> None:
    assert run["counters"]["persistent_max"] == 30
    assert run["guests"][0]["counters"]["persistent_max"] == 8


def test_what_only_the_whole_machine_has_is_null_in_a_guest_s_share(run: Run) -> None:
    for guest in run["guests"]:
        assert guest["counters"]["ipis_by_cpu"] is None
        assert guest["counters"]["host_tlb_shootdowns"] is None
        assert guest["totals"]["cpu_seconds"] is None


def test_latencies_are_in_microseconds_within_the_histogram_s_width(run: Run) -> None:
    latency = run["guests"][0]["latency_us"]
    assert latency["p50"] == pytest.approx(50, rel=0.02)
    assert latency["p99"] == pytest.approx(900, rel=0.02)
    assert latency["max"] == pytest.approx(1000, rel=0.02)
    assert latency["mean"] == pytest.approx((98 * 50 + 900 + 1000) / 100, rel=0.02)


def test_the_whole_s_latencies_are_of_all_guests_together(run: Run) -> None:
    assert run["latency_us"]["mean"] == pytest.approx((98 * 50 + 1900 + 10) / 101, rel=0.02)


def test_a_latency_of_nothing_is_null() -> None:
    assert latency_us(snapshot().latency[1][0]) == dict.fromkeys(LATENCIES)


def test_a_run_of_no_length_has_no_iops() -> None:
    moment = snapshot()
    nothing = build_run(
        Topology(guests=2),
        LoadSpec(),
        booted=moment,
        started=moment,
        finished=moment,
        closed=moment,
    )
    assert nothing["totals"]["iops"] == 0


def test_counters_between_two_snapshots_are_the_run_s() -> None:
    assert counters(STARTED, FINISHED)["map_ops"] == 38
    assert list(counters(STARTED, FINISHED)) == COUNTERS


def test_grants_left_are_those_still_mapped_when_all_is_closed() -> None:
    assert grants_left(CLOSED) == 0
    assert grants_left(FINISHED) == 40


def test_faults_names_each_kind_with_its_number_and_mode(run: Run) -> None:
    sound: dict[str, Any] = {
        **run,
        "totals": {**run["totals"], "verify_errors": 0},
        "counters": {**run["counters"], "bad_requests": 0},
    }
    assert faults([sound], [0]) == ""
    assert faults([sound, run], [3, 0]) == (
        "persistent: 3 grants left mapped; persistent: 2 verify errors, 4 bad requests"
    )


@pytest.mark.parametrize("phase", ["setup", "teardown"])
def test_a_bad_request_is_a_fault_whenever_it_came(run: Run, phase: str) -> None:
    counted = dict(run["counters"], bad_requests=0)
    counted[phase] = {**counted[phase], "bad_requests": 1}
    totals = {**run["totals"], "verify_errors": 0}
    assert faults([{**run, "totals": totals, "counters": counted}], [0]) == (
        "persistent: 1 bad requests"
    )


def test_a_suspect_guest_is_marked_and_is_a_fault() -> None:
    finished = replace(FINISHED, suspects=frozenset({2}))
    run = build_run(
        Topology(guests=2, dom0_vcpus=2),
        LoadSpec(),
        booted=BOOTED,
        started=STARTED,
        finished=finished,
        closed=CLOSED,
    )
    assert [guest["suspect"] for guest in run["guests"]] == [False, True]
    assert faults([run], [0]) == (
        "persistent: 2 verify errors, 4 bad requests, the own figures of guest 2 cannot be true"
    )


def test_what_became_of_guests_is_a_fault_of_their_run(run: Run) -> None:
    died = ["guest-2 was killed by SIGKILL", "domain 1: the disk is Closed"]
    own = "2 verify errors, 4 bad requests"
    assert faults([run, run], [0, 0], [[], died]) == (
        f"persistent: {own}; persistent: {died[0]}, {died[1]}, {own}"
    )


def of_two_disks() -> Run:
    """Guest 1's xvda has read and xvdb is a null disk left alone; guest 2 is idle."""
    start = snapshot(1.0, disks=2)
    end = snapshot(
        3.0,
        disks=2,
        frontend={1: [{"ios": 10, "requests": 10, "bytes_read": 40960}, {"ios": 4, "requests": 6}]},
        backend={1: [{"map_ops": 10, "hypercalls": 20, "requests": 10}, {"map_ops": 5}]},
        hypervisor={1: {"map_ops": 15, "hypercalls": 20, "flushes": 7, "ipis": 3}},
        latency={1: (50,) * 10},
    )
    return build_run(
        Topology(guests=2, disks=["ram:1m", "null:1m,access=ro"]),
        LoadSpec(vdev="xvda", domid=1),
        booted=start,
        started=start,
        finished=end,
        closed=end,
    )


def test_a_disk_s_share_has_its_own_figures_and_what_ran_on_it() -> None:
    run = of_two_disks()
    first, second = run["guests"][0]["disks"]
    assert list(first) == [
        "vdev", "target", "access", "verified", "load", "operations", "totals", "latency_us",
        "counters", "rings",
    ]  # fmt: skip
    assert [first[name] for name in ("vdev", "target", "access")] == ["xvda", "ram:1m", "rw"]
    assert [second[name] for name in ("vdev", "target", "access")] == ["xvdb", "null:1m", "ro"]
    assert (first["verified"], second["verified"], second["load"]) == (True, None, None)
    assert (first["load"]["rw"], first["load"]["bs"]) == ("randrw", 4096)
    assert (first["totals"]["requests"], second["totals"]["requests"]) == (10, 6)
    assert (first["totals"]["iops"], second["totals"]["iops"]) == (5.0, 2.0)
    assert first["latency_us"]["p50"] == pytest.approx(50, rel=0.02)
    assert second["latency_us"]["p50"] is None
    assert run["guests"][0]["totals"]["requests"] == run["totals"]["requests"] == 16


def test_what_the_backend_counts_by_ring_is_a_disk_s_and_the_rest_of_the_hypervisor_s_is_not() -> (
    None
):
    first, second = (disk["counters"] for disk in of_two_disks()["guests"][0]["disks"])
    assert (first["map_ops"], first["hypercalls"], second["map_ops"]) == (10, 20, 5)
    for name in ("flushes", "flush_entries", "ipis", "flush_lock_waits", "ipis_by_cpu"):
        assert first[name] is None and first["setup"][name] is None
    assert of_two_disks()["guests"][0]["counters"]["flushes"] == 7


def test_a_disk_has_one_ring_with_all_of_its_figures() -> None:
    (disk, _) = of_two_disks()["guests"][0]["disks"]
    (ring,) = disk["rings"]
    assert ring == {
        "ring": 0,
        **{name: disk[name] for name in ("totals", "latency_us", "counters")},
    }


def test_a_backend_s_cpus_and_rings_say_what_it_counted_itself(run: Run) -> None:
    (dom0,) = run["backends"]
    assert (dom0["domid"], [cpu["ipis_received"] for cpu in dom0["cpus"]]) == (0, [0, 5])
    assert [(ring["domid"], ring["vdev"], ring["ring"]) for ring in dom0["rings"]] == [
        (1, "xvda", 0),
        (2, "xvda", 0),
    ]
    assert [ring["notify_to_front"] for ring in dom0["rings"]] == [5, 6]
    rings = of_two_disks()["backends"][0]["rings"]
    assert [ring["map_ops"] for ring in rings] == [10, 5, 0, 0]
