"""Real processes and the simulator: the same seeded load, every count the same."""

import pytest

from toolstack.compare import both, counts, load, topologies
from toolstack.topology import MODES, Topology

pytestmark = pytest.mark.system

MACHINES = {topology.mode: topology for topology in topologies(guests=2, dom0_vcpus=6)}


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("bs", [4096, 44 * 1024])
def test_real_and_simulated_count_the_same(mode: str, bs: int) -> None:
    found = list(counts(*both(MACHINES[mode], load(bs=bs, ios=300, seed=4))))
    assert [count for count in found if count.real != count.simulated] == []
    totals = {count.name: count.real for count in found if count.who == "all"}
    assert totals["requests"] == 600
    assert totals["notify_to_back"] == totals["notify_to_front"] == 600


@pytest.mark.parametrize("batching", ["request", "drain"])
def test_grant_copy_is_one_hypercall_a_request_and_one_copy_a_segment(batching: str) -> None:
    machine = Topology(guests=2, dom0_vcpus=2, batching=batching, spin="off")
    both_runs = both(machine.with_mode("grant-copy"), load(bs=12 * 1024, ios=200, seed=7))
    found = list(counts(*both_runs))
    assert [count for count in found if count.real != count.simulated] == []
    totals = {count.name: count.real for count in found if count.who == "all"}
    assert totals["hypercalls"] == totals["requests"] == 2 * 200
    assert totals["copy_ops"] == totals["segments"] == 3 * 2 * 200
    for name in ("map_ops", "unmap_ops", "flushes", "ipis"):
        assert totals[name] == 0, name


@pytest.mark.parametrize("policy", ["accessed", "precise"])
def test_the_other_policies_that_know_no_time(policy: str) -> None:
    machine = Topology(guests=3, dom0_vcpus=2, persistent=False, flush_policy=policy, spin="off")
    found = list(counts(*both(machine, load(bs=8192, ios=200))))
    assert [count for count in found if count.real != count.simulated] == []


def test_beyond_the_cap_too() -> None:
    machine = Topology(guests=2, max_persistent_grants=5, spin="off")
    found = list(counts(*both(machine, load(bs=44 * 1024, ios=100))))
    assert [count for count in found if count.real != count.simulated] == []
    overflow = {c.real for c in found if (c.who, c.name) == ("all", "overflow_segments")}
    assert overflow == {2 * 100 * 6}
