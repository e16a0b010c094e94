"""The result format, number by number, from snapshots made by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.toolstack.stand_in import snapshot
from toolstack.loadspec import LoadSpec
from toolstack.results import (
    Run,
    build_run,
    check_writable,
    counters,
    faults,
    grants_left,
    latency_us,
    write_json,
)
from toolstack.topology import ConfigError, Topology

TOTALS = [
    "requests", "segments", "bytes_read", "bytes_written", "seconds", "iops", "verify_errors",
    "io_errors", "cpu_seconds",
]  # fmt: skip
LATENCIES = ["mean", "p50", "p95", "p99", "p99_9", "max"]
COUNTERS = [
    "grants_issued", "grants_ended", "map_ops", "unmap_ops", "copy_ops", "hypercalls", "flushes",
    "flush_entries", "ipis", "ipis_by_cpu", "flush_lock_waits", "notify_to_back",
    "notify_to_front", "bytes_copied_by_guest", "persistent_max", "overflow_segments",
    "bad_requests", "host_tlb_shootdowns",
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


def test_a_run_has_the_names_of_schema_1(run: Run) -> None:
    assert list(run) == ["config", "totals", "latency_us", "counters", "guests"]
    assert list(run["totals"]) == TOTALS
    assert list(run["latency_us"]) == LATENCIES
    assert list(run["counters"]) == [*COUNTERS, "setup", "teardown"]
    assert list(run["counters"]["setup"]) == COUNTERS
    assert list(run["counters"]["teardown"]) == COUNTERS


def test_a_guest_s_share_has_the_same_names(run: Run) -> None:
    assert [guest["domid"] for guest in run["guests"]] == [1, 2]
    for guest in run["guests"]:
        assert list(guest) == ["domid", "suspect", "totals", "latency_us", "counters"]
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
    assert latency_us(snapshot().latency[1]) == dict.fromkeys(LATENCIES)


def test_a_run_of_no_length_has_no_iops() -> None:
    moment = snapshot()
    nothing = build_run(
        Topology(), LoadSpec(), booted=moment, started=moment, finished=moment, closed=moment
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


def test_the_file_is_schema_1_with_every_run(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, [run, run])
    assert json.loads(path.read_text()) == {"schema": 1, "runs": [run, run]}


def test_an_older_file_is_replaced_and_nothing_else_is_left(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    write_json(path, [run])
    assert json.loads(path.read_text())["schema"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    write_json(link, [])
    assert link.is_symlink()
    assert json.loads(target.read_text())["runs"] == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "out.json"
    with pytest.raises(ConfigError, match=r"json: '.*out.json' cannot be written: '.*none' is no"):
        write_json(path, [])


@pytest.mark.parametrize("path", ["/dev/null", "/"])
def test_what_is_no_regular_file_is_never_replaced(path: str) -> None:
    with pytest.raises(ConfigError, match="is not a regular file"):
        check_writable(path)


def test_asking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_file_system_refuses_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: File name too long"):
        check_writable(tmp_path / ("x" * 300))
