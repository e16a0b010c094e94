"""A whole machine in virtual time: counts exact, everything answered, the same to the byte."""

import hashlib
from typing import Any

import numpy as np
import pytest

from backend.steps import CLEAR, LOOK_AGAIN, PHASES
from common.effects import WAIT
from common.steps import NONE, ON, next_steps
from machine.front import guest_disks
from simulator.config import MODES, Config
from simulator.machine import Machine
from tests.simulator.points import plan, run, total

ALL_MODES = sorted(MODES)


def fingerprint(machine: Machine) -> str:
    digest = hashlib.sha256()
    for counts in (machine.started, machine.finished, machine.closed):
        digest.update(str(counts.now_ns).encode())
        for blocks in (counts.frontend, counts.backend, counts.hypervisor, counts.latency):
            for block in blocks.values():
                digest.update(block.tobytes())
        digest.update(counts.cpus.tobytes())
    for domain in machine.hypervisor.domains:
        digest.update(domain.ram.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("mode", ALL_MODES)
def test_one_seed_is_one_run_to_the_byte_and_another_seed_another(mode: str) -> None:
    same = {fingerprint(run(mode, plan(seed=7))) for _ in range(3)}
    assert len(same) == 1
    assert fingerprint(run(mode, plan(seed=8))) not in same


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("iodepth", [1, 5, 32])
@pytest.mark.parametrize("gather_max", [1, 32])
def test_every_io_is_answered_with_the_right_bytes(
    mode: str, iodepth: int, gather_max: int
) -> None:
    """No wake-up is lost at any depth: else the machine sleeps for ever, which is an assertion."""
    machine = run(mode, plan(iodepth=iodepth), gather_max=gather_max)
    assert total(machine, "frontend", "ios") == 200
    assert total(machine, "frontend", "verify_errors") == 0
    assert total(machine, "frontend", "io_errors") == 0
    assert total(machine, "backend", "requests") == total(machine, "frontend", "requests") == 200


@pytest.mark.parametrize("mode", ["persistent", "backend-without-persistent"])
@pytest.mark.parametrize("iodepth", [1, 8])
def test_a_load_whose_ios_can_never_fit_ends_too(
    mode: str, iodepth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(guest_disks.__kwdefaults__, "pool_pages", 5)
    machine = run(mode, plan(iodepth=iodepth, bs=6 * 4096))
    assert total(machine, "frontend", "ios") == total(machine, "frontend", "io_errors") == 200
    assert total(machine, "frontend", "requests") == 0


@pytest.mark.parametrize("mode", ALL_MODES)
def test_nothing_is_left_mapped_or_granted(mode: str) -> None:
    machine = run(mode)
    for domid in machine.domids:
        assert machine.closed.hypervisor[domid]["grants_mapped"][0] == 0
        front = machine.closed.frontend[domid]
        assert front["grants_ended"][0] == front["grants_issued"][0]
        back = machine.ends(domid)[1].dev
        assert back.back["free_slots"][0] == len(back.page_table)


def test_non_persistent_pays_for_every_segment_and_flushes_for_every_request() -> None:
    machine = run("non-persistent", plan(bs=8192), flush_policy="mask", dom0_vcpus=6)
    requests, segments = 200, 400
    for name in ("map_ops", "unmap_ops", "flush_entries"):
        assert total(machine, "hypervisor", name) == segments
    assert total(machine, "frontend", "grants_issued") == segments
    assert total(machine, "hypervisor", "hypercalls") == 2 * requests
    assert total(machine, "hypervisor", "flushes") == requests
    assert total(machine, "hypervisor", "ipis") == requests * 5
    assert total(machine, "frontend", "bytes_copied_by_guest") == 0


def test_persistent_maps_each_page_once() -> None:
    machine = run("persistent")
    maps = total(machine, "hypervisor", "map_ops")
    assert 2 <= maps == total(machine, "frontend", "grants_issued") <= 2 * 8
    for name in ("unmap_ops", "flushes", "ipis"):
        assert total(machine, "hypervisor", name) == 0
    assert total(machine, "frontend", "bytes_copied_by_guest") == 200 * 4096


def test_a_backend_without_the_feature_maps_as_much_but_the_grants_are_reused() -> None:
    machine = run("backend-without-persistent")
    assert total(machine, "hypervisor", "map_ops") == 200
    assert total(machine, "frontend", "grants_issued") <= 2 * 8
    assert total(machine, "frontend", "grants_ended") == 0


def test_grant_copy_maps_nothing_and_flushes_nothing() -> None:
    machine = run("grant-copy", plan(bs=8192))
    assert total(machine, "hypervisor", "copy_ops") == 400
    assert total(machine, "hypervisor", "hypercalls") == 200
    for name in ("map_ops", "unmap_ops", "flushes", "ipis"):
        assert total(machine, "hypervisor", name) == 0


def test_grant_copy_of_drained_batches_copies_each_segment_once_and_keeps_its_slots() -> None:
    machine = run("grant-copy", plan(bs=8192, iodepth=32), gather_max=32)
    assert total(machine, "hypervisor", "copy_ops") == 400
    assert total(machine, "hypervisor", "hypercalls") < 200
    for disk in machine.disks:
        back = disk.thread.dev
        assert sorted(back.slots.tolist()) == list(range(len(back.page_table)))
        assert back.back["free_slots"][0] == len(back.page_table)


def test_precise_flushes_interrupt_nobody() -> None:
    machine = run(flush_policy="precise")
    assert total(machine, "hypervisor", "flushes") == 200
    assert total(machine, "hypervisor", "ipis") == 0
    assert machine.lock.busy_ns == 0


def test_beyond_the_cap_the_overflow_and_only_it_is_unmapped() -> None:
    machine = run("persistent", plan(bs=44 * 1024), max_persistent_grants=16)
    overflow = total(machine, "backend", "overflow_segments")
    assert overflow > 0
    assert total(machine, "hypervisor", "map_ops") == 2 * 16 + overflow
    assert total(machine, "hypervisor", "unmap_ops") == overflow


def test_draining_makes_the_same_maps_in_fewer_hypercalls() -> None:
    one, all_ = (run(gather_max=gather_max) for gather_max in (1, 32))
    assert total(one, "hypervisor", "map_ops") == total(all_, "hypervisor", "map_ops") == 200
    assert total(all_, "hypervisor", "hypercalls") < total(one, "hypervisor", "hypercalls")


@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_at_depth_one_a_request_is_one_notification_each_way(mode: str) -> None:
    """As Linux on Xen does it (tests/golden)."""
    machine = run(mode, plan(iodepth=1), guests=1)
    assert total(machine, "frontend", "notify_to_back") == 100
    assert total(machine, "backend", "notify_to_front") == 100


@pytest.mark.parametrize(
    "settings",
    [
        {"guests": 6, "dom0_vcpus": 2},  # several rings' threads on a vCPU
        {"guests": 3, "dom0_vcpus": 2, "physical_cpus": 2},  # guests on dom0's CPUs
        {"guests": 6, "dom0_vcpus": 2, "physical_cpus": 4},  # guests that share their CPUs
        {"guests": 1, "dom0_vcpus": 1, "physical_cpus": 1},
    ],
)
@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_cpus_can_be_shared(mode: str, settings: dict[str, Any]) -> None:
    machine = run(mode, **settings)
    assert total(machine, "frontend", "ios") == 100 * settings["guests"]
    elapsed = machine.finished.now_ns
    assert all(sum(cpu.spent) <= elapsed * 1.001 for cpu in machine.cpus)


def test_a_guest_that_takes_a_cpu_over_takes_it_out_of_dom0s_mask() -> None:
    machine = run(guests=1, dom0_vcpus=1, physical_cpus=1)
    assert machine.host["dirty"][0, 0] == 0  # the guest was the last to run


def test_2012s_pool_of_requests_is_waited_for_and_given_back() -> None:
    machine = Machine(Config(plan(), guests=4, gather_max=32, era="2012"))
    assert machine.pool.room(1000) == 64
    machine.pool.take(62)  # as if other disks had them
    machine.run()
    assert machine.pool.waits > 0
    assert machine.pool.room(1000) == 2
    assert total(machine, "frontend", "ios") == 400


def test_the_matrix_of_ipis_adds_up() -> None:
    machine = run(flush_policy="mask", dom0_vcpus=4)
    received = machine.closed.cpus["ipis_received"].astype(np.int64)
    assert (machine.worker_cpus.matrix.sum(axis=0) == received).all()
    assert (np.diag(machine.worker_cpus.matrix) == 0).all()


def test_a_peer_that_does_not_answer_is_a_lost_wakeup() -> None:
    machine = Machine(run().config)
    for disk in machine.disks:
        disk.guest.peer = disk.guest  # wakes itself, and nobody serves
    with pytest.raises(AssertionError, match="a wake-up was lost"):
        machine.run()


def test_a_worker_that_does_not_look_again_before_it_sleeps_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A moment passes between ARM and LOOK_AGAIN, so that the peer can run in it."""
    blind = [
        phase._replace(next={ON: (CLEAR, WAIT), NONE: (CLEAR, WAIT)})
        if phase.step == LOOK_AGAIN
        else phase
        for phase in PHASES
    ]
    machine = Machine(Config(plan(ios=2000), mode="persistent", guests=2))
    for disk in machine.disks:
        monkeypatch.setattr(disk.thread, "wait", lambda *_, thread=disk.thread: thread.sleep())
    table, sound = machine.disks[0].thread.dev.next, next_steps(PHASES)
    table[:] = next_steps(blind)  # everybody's
    try:
        with pytest.raises(AssertionError, match="a wake-up was lost"):
            machine.run()
    finally:
        table[:] = sound
