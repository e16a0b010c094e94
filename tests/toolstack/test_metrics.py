"""What a machine counts, in Prometheus's text format and read back by Prometheus's own parser."""

import numpy as np
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from common.counters import (
    BACKEND_COUNTERS,
    CPU_COUNTERS,
    FRONTEND_COUNTERS,
    HYPERVISOR_COUNTERS,
    LEVELS,
)
from tests.toolstack.seen_by_hand import disk, seen
from toolstack.metrics import exposition


def parsed(text: bytes) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def values(family: Metric) -> dict[tuple[str, ...], float]:
    """By the labels' values, in the order of their names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for sample in family.samples
    }


def test_every_counter_is_there_by_its_own_name_and_levels_are_gauges() -> None:
    families = parsed(exposition(seen([disk(1, 0, "xvda")])))
    blocks = {
        "frontend": FRONTEND_COUNTERS,
        "backend": BACKEND_COUNTERS,
        "hypervisor": HYPERVISOR_COUNTERS,
        "cpu": CPU_COUNTERS,
    }
    for who, dtype in blocks.items():
        for name in dtype.names or ():
            family = families[f"grantlab_{who}_{name}"]
            assert family.type == ("gauge" if name in LEVELS else "counter")
            assert name in family.documentation
            assert family.samples


def test_counts_are_each_disk_s_domain_s_and_cpu_s_own() -> None:
    disks = [disk(1, 0, "xvda"), disk(1, 1, "xvdc"), disk(2, 0, "xvda")]
    found = parsed(
        exposition(
            seen(
                disks,
                disks=2,
                frontend={1: [{"ios": 7}, {"ios": 8}], 2: {"ios": 9}},
                backend={1: {"persistent_now": 4}},
                hypervisor={2: {"flushes": 11}},
                ipis_received=(0, 23, 24),
                cpu_seconds=1.5,
                host_tlb_shootdowns=77,
            )
        )
    )
    ios = values(found["grantlab_frontend_ios"])
    assert ios == {("1", "xvda"): 7, ("1", "xvdc"): 8, ("2", "xvda"): 9}
    assert values(found["grantlab_backend_persistent_now"])["1", "xvda"] == 4
    assert values(found["grantlab_hypervisor_flushes"]) == {("1",): 0, ("2",): 11}
    received = values(found["grantlab_cpu_ipis_received"])
    assert received == {("0",): 0, ("1",): 23, ("2",): 24}
    assert values(found["grantlab_cpu_seconds"]) == {(): 1.5}
    assert values(found["grantlab_host_tlb_shootdowns"]) == {(): 77}
    assert values(found["grantlab_ring_requests"])["1", "xvdc"] == 5
    assert values(found["grantlab_ring_slots"])["1", "xvdc"] == 32
    assert values(found["grantlab_disk_state"])["1", "Connected", "xvda"] == 1
    assert values(found["grantlab_domain_up"]) == {("1", "guest-1"): 1, ("2", "guest-2"): 0}
    assert values(found["grantlab_machine_info"]) == {("persistent", "m"): 1}
    assert values(found["grantlab_loads"]) == {(): 3}
    assert values(found["grantlab_up"]) == {(): 1}


def test_a_latency_is_in_every_bucket_that_is_as_wide() -> None:
    (family,) = (
        each
        for name, each in parsed(
            exposition(seen([disk(1, 0, "xvda")], latency={1: (15, 150, 150, 9_000_000)}))
        ).items()
        if name == "grantlab_latency_seconds"
    )
    assert family.type == "histogram"
    buckets = {
        float(sample.labels["le"]): sample.value
        for sample in family.samples
        if sample.name.endswith("_bucket")
    }
    assert (buckets[10e-6], buckets[20e-6], buckets[100e-6], buckets[200e-6]) == (0, 1, 1, 3)
    assert (buckets[5.0], buckets[float("inf")]) == (3, 4)
    assert list(buckets.values()) == sorted(buckets.values())
    one = {sample.name: sample for sample in family.samples}
    assert one["grantlab_latency_seconds_count"].value == 4
    assert one["grantlab_latency_seconds_sum"].value == pytest.approx(9.000315, rel=0.016)
    labels = one["grantlab_latency_seconds_count"].labels
    assert labels == {"domid": "1", "vdev": "xvda", "operation": "read"}


def test_what_was_never_done_has_no_histogram_and_a_host_that_does_not_tell_no_counter() -> None:
    found = parsed(exposition(seen([disk(1, 0, "xvda")], host_tlb_shootdowns=None)))
    assert found["grantlab_latency_seconds"].samples == []
    assert "grantlab_host_tlb_shootdowns" not in found


def test_a_disk_that_has_just_come_or_gone_is_only_what_is_known_of_it() -> None:
    disks = [disk(1, 0, "xvda", ring=None), disk(1, 9, "xvdj"), disk(5, 0, "xvda")]
    found = parsed(exposition(seen(disks, frontend={1: {"ios": 7}})))
    assert values(found["grantlab_frontend_ios"]) == {("1", "xvda"): 7}
    assert set(values(found["grantlab_ring_requests"])) == {("1", "xvdj"), ("5", "xvda")}


def test_a_suspect_is_named() -> None:
    found = parsed(exposition(seen([], suspects=frozenset({2}))))
    assert values(found["grantlab_domain_suspect"]) == {("1",): 0, ("2",): 1}


def test_of_a_machine_that_has_died_nothing_is_told_but_that() -> None:
    assert {name: values(f) for name, f in parsed(exposition(None)).items()} == {
        "grantlab_up": {(): 0.0}
    }


def test_counts_of_a_whole_life_are_whole() -> None:
    """A counter is a u64; a float has 53 bits, and no sign or wrap."""
    big = 1 << 60
    found = parsed(exposition(seen([disk(1, 0, "xvda")], frontend={1: {"bytes_read": big}})))
    assert values(found["grantlab_frontend_bytes_read"])["1", "xvda"] == np.float64(big)
