"""What lies between two snapshots, and the host's own count of TLB shootdowns."""

from pathlib import Path

from tests.toolstack.stand_in import snapshot
from toolstack.snapshot import difference, host_tlb_shootdowns

HEAD = "           CPU0       CPU1\n"


def test_counts_are_subtracted_guest_by_guest() -> None:
    before = snapshot(frontend={1: {"requests": 10}, 2: {"requests": 3}})
    after = snapshot(frontend={1: {"requests": 25}, 2: {"requests": 3}})
    change = difference(after, before)
    assert change.frontend[1]["requests"][0] == 15
    assert change.frontend[2]["requests"][0] == 0


def test_levels_stand_as_they_are_at_the_end() -> None:
    levels = {"persistent_now": 5, "persistent_max": 9}
    before = snapshot(backend={1: levels}, hypervisor={1: {"grants_mapped": 4, "map_ops": 4}})
    after = snapshot(backend={1: levels}, hypervisor={1: {"grants_mapped": 3, "map_ops": 6}})
    change = difference(after, before)
    assert change.backend[1]["persistent_now"][0] == 5
    assert change.backend[1]["persistent_max"][0] == 9
    assert change.hypervisor[1]["grants_mapped"][0] == 3
    assert change.hypervisor[1]["map_ops"][0] == 2


def test_time_cpus_latencies_and_cpu_seconds_are_subtracted() -> None:
    before = snapshot(1.0, ipis_received=(1, 2), latency={1: (50,)}, cpu_seconds=0.5)
    after = snapshot(3.5, ipis_received=(4, 2), latency={1: (50, 50, 70)}, cpu_seconds=2.0)
    change = difference(after, before)
    assert (change.at_s, change.cpu_seconds) == (2.5, 1.5)
    assert change.cpus["ipis_received"].tolist() == [3, 0]
    assert change.latency[1].sum() == 2


def test_neither_snapshot_is_changed_by_a_difference() -> None:
    before, after = snapshot(ipis_received=(1, 1)), snapshot(ipis_received=(5, 5))
    difference(after, before).cpus["ipis_received"] = 0
    assert before.cpus["ipis_received"].tolist() == [1, 1]
    assert after.cpus["ipis_received"].tolist() == [5, 5]


def test_a_guest_that_was_not_there_before_had_counted_nothing() -> None:
    before, after = snapshot(), snapshot(frontend={2: {"requests": 7}})
    del before.frontend[2]  # type: ignore[attr-defined]
    assert difference(after, before).frontend[2]["requests"][0] == 7


def test_nor_had_a_disk_that_was_not_there_before() -> None:
    before = snapshot(frontend={1: {"requests": 2}}, latency={1: (50,)})
    after = snapshot(frontend={1: [{"requests": 5}, {"requests": 7}]}, latency={1: (50,)}, disks=2)
    change = difference(after, before)
    assert change.frontend[1]["requests"].tolist() == [3, 7]
    assert change.latency[1].sum() == 0
    before.frontend[1] = before.frontend[1][:0]  # type: ignore[index]
    assert difference(after, before).frontend[1]["requests"].tolist() == [5, 7]


def test_host_shootdowns_are_subtracted_where_the_host_counts_them() -> None:
    before, after = snapshot(host_tlb_shootdowns=100), snapshot(host_tlb_shootdowns=130)
    assert difference(after, before).host_tlb_shootdowns == 30
    unknown = snapshot(host_tlb_shootdowns=None)
    assert difference(after, unknown).host_tlb_shootdowns is None
    assert difference(unknown, before).host_tlb_shootdowns is None


def test_the_host_s_shootdowns_are_summed_over_its_cpus(tmp_path: Path) -> None:
    interrupts = tmp_path / "interrupts"
    interrupts.write_text(
        f"{HEAD}  0:  10  0  IO-APIC  2-edge  timer\n TLB:  5166  12621   TLB shootdowns\n"
    )
    assert host_tlb_shootdowns(interrupts) == 5166 + 12621


def test_a_host_that_counts_no_shootdowns_says_none(tmp_path: Path) -> None:
    interrupts = tmp_path / "interrupts"
    interrupts.write_text(f"{HEAD}  0:  10  0  IO-APIC  2-edge  timer\n")
    assert host_tlb_shootdowns(interrupts) is None
    assert host_tlb_shootdowns(tmp_path / "missing") is None
