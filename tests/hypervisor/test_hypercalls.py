"""Hypercalls: their form, an unmap's two halves, 32 at a time, and what is counted for whom."""

import errno
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import abi
from common.machine_memory import MAPTRACK_HANDLES_MAX
from hypervisor.cpus import NO_FLUSH
from tests.hypervisor.world import (
    DEVICE_RW,
    READING,
    RESERVED_DOMIDS,
    RO,
    RW,
    WRITING,
    World,
    unmap_ops,
)

OKAY = abi.GNTST_OKAY
GRANT_TABLE, EVENT_CHANNEL = abi.HYPERVISOR_GRANT_TABLE_OP, abi.HYPERVISOR_EVENT_CHANNEL_OP
MAP, UNMAP, COPY = abi.GNTTABOP_MAP_GRANT_REF, abi.GNTTABOP_UNMAP_GRANT_REF, abi.GNTTABOP_COPY


@pytest.fixture
def world() -> World:
    return World()


def raw(world: World, number: int, cmd: int, payload: bytes, *, by: int = 1) -> int:
    """A hypercall whose payload may have any form; the payload must come back as long."""
    answer = bytearray(payload)
    rc = world.hypervisor.hypercall(by, 0, number, cmd, answer, False)
    assert len(answer) == len(payload)
    return rc


# --- form ---------------------------------------------------------------------------------------

OPERATIONS = World().hypervisor.operations
OPS = [(number, cmd, dtype, single) for (number, cmd), (dtype, single, _) in OPERATIONS.items()]
OP_NAMES = [f"{number}-{cmd}" for number, cmd, _, _ in OPS]


def test_all_operations_are_there() -> None:
    assert sorted(OPERATIONS) == sorted(
        [(GRANT_TABLE, cmd) for cmd in (0, 1, 2, 5, 6)]
        + [(EVENT_CHANNEL, cmd) for cmd in (0, 3, 5, 6, 9, 10)]
    )


@pytest.mark.parametrize(("number", "cmd", "dtype", "single"), OPS, ids=OP_NAMES)
def test_a_payload_is_a_whole_number_of_structs(
    world: World, number: int, cmd: int, dtype: Any, single: bool
) -> None:
    size = dtype.itemsize
    for nbytes in (0, 1, size - 1, size + 1, 3 * size - 1):
        assert raw(world, number, cmd, bytes(nbytes)) == -errno.EINVAL


@pytest.mark.parametrize(("number", "cmd", "dtype", "single"), OPS, ids=OP_NAMES)
def test_two_structs_are_taken_only_where_an_array_is(
    world: World, number: int, cmd: int, dtype: Any, single: bool
) -> None:
    assert single == (cmd not in (MAP, UNMAP, COPY) or number == EVENT_CHANNEL)
    rc = raw(world, number, cmd, bytes(2 * dtype.itemsize))
    assert (rc == -errno.EINVAL) == single
    assert single or rc == 0


@pytest.mark.parametrize(
    ("number", "cmd"),
    [
        (0, 0),
        (GRANT_TABLE, 3),
        (GRANT_TABLE, 4),
        (GRANT_TABLE, 2**32 - 1),
        (EVENT_CHANNEL, 1),
        (EVENT_CHANNEL, abi.EVTCHNOP_SEND),
        (abi.HYPERVISOR_DOMCTL, 1),
        (2**32 - 1, 0),
    ],
)
def test_an_unknown_call_is_enosys_whatever_its_payload(
    world: World, number: int, cmd: int
) -> None:
    for by in (0, 1):
        for payload in (b"", b"\0", bytes(24), bytes(4096)):
            assert raw(world, number, cmd, payload, by=by) == -errno.ENOSYS


def test_a_call_of_the_wrong_form_changes_nothing(world: World) -> None:
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["flags"], op["host_addr"] = 1, RW, 4096
    op["ref"] = world[1].grant(frame=3)
    payload = bytearray(op.tobytes() + b"\0")
    before = bytes(payload)
    assert world.hypervisor.hypercall(0, 0, GRANT_TABLE, MAP, payload, False) == -errno.EINVAL
    assert payload == before
    assert world.pins(1) == 0
    assert world.counted(1) == {}


# --- query_size and setup_table -----------------------------------------------------------------

ABOUT_DOMAINS: list[tuple[int, int, int]] = [
    # caller, domain, status
    (1, abi.DOMID_SELF, OKAY),
    (1, 1, OKAY),
    (1, 2, abi.GNTST_PERMISSION_DENIED),
    (1, 0, abi.GNTST_PERMISSION_DENIED),
    (1, 9, abi.GNTST_BAD_DOMAIN),
    (0, 1, OKAY),
    (0, 0, OKAY),
    (0, 9, abi.GNTST_BAD_DOMAIN),
    *((by, domid, abi.GNTST_BAD_DOMAIN) for by in (0, 1) for domid in RESERVED_DOMIDS[1:]),
]


@pytest.mark.parametrize(("by", "domid", "status"), ABOUT_DOMAINS)
def test_the_size_of_a_table_is_told_to_its_domain_and_to_domain_0(
    by: int, domid: int, status: int
) -> None:
    world = World(grant_frames=3)
    args = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    args["dom"] = domid
    world.grant_table_op(abi.GNTTABOP_QUERY_SIZE, args, by=by)
    frames = 3 if status == OKAY else 0
    assert args[["nr_frames", "max_nr_frames", "status"]][0].item() == (frames, frames, status)


@pytest.mark.parametrize(("by", "domid", "status"), ABOUT_DOMAINS)
def test_a_table_is_set_up_by_its_domain_and_by_domain_0(by: int, domid: int, status: int) -> None:
    args = np.zeros(1, abi.GNTTAB_SETUP_TABLE)
    args["dom"], args["nr_frames"] = domid, 3
    World(grant_frames=3).grant_table_op(abi.GNTTABOP_SETUP_TABLE, args, by=by)
    assert args["status"][0] == status


@pytest.mark.parametrize(
    ("nr_frames", "status"),
    [(0, OKAY), (3, OKAY), (4, abi.GNTST_GENERAL_ERROR), (2**32 - 1, abi.GNTST_GENERAL_ERROR)],
)
def test_a_table_is_set_up_with_as_many_frames_as_it_has(nr_frames: int, status: int) -> None:
    args = np.zeros(1, abi.GNTTAB_SETUP_TABLE)
    args["dom"], args["nr_frames"], args["frame_list"] = abi.DOMID_SELF, nr_frames, 2**64 - 1
    World(grant_frames=3).grant_table_op(abi.GNTTABOP_SETUP_TABLE, args, by=1)
    assert args["status"][0] == status


# --- an unmap's two halves ----------------------------------------------------------------------


class WatchingCpus:
    """Stands in for the CPUs: notes what stands in the world during each flush."""

    def __init__(self, ipis: int = 3) -> None:
        self.world: Any = None
        self.ipis = ipis
        self.seen: list[tuple[int, int, list[int], bool]] = []
        self.callers: list[tuple[int, bool]] = []

    def flush(self, caller: int, unmapped: np.ndarray, waited: bool) -> int:
        gref = int(unmapped["ref"][0])
        self.seen.append(
            (
                self.world.pins(1),
                self.world[1].status_bits(gref),
                unmapped["handle"][unmapped["done"] != 0].tolist(),
                self.world[1].end_access(gref),
            )
        )
        self.callers.append((caller, waited))
        return self.ipis


def watched() -> tuple[World, WatchingCpus]:
    cpus = WatchingCpus()
    cpus.world = World(cpus=cpus)  # type: ignore[arg-type]
    return cpus.world, cpus


def test_pins_and_status_bits_stand_until_the_flush_is_over() -> None:
    world, cpus = watched()
    gref = world[1].grant(frame=3)
    mapped = world.map(gref)
    world.unmap(mapped)
    assert cpus.seen == [(1, READING | WRITING, [0], False)]
    assert (world.pins(1), world[1].status_bits(gref)) == (0, 0)
    assert world[1].end_access(gref)


def test_the_handle_is_gone_before_the_flush() -> None:
    world, cpus = watched()
    used = []
    note = cpus.flush

    def flush(*args: Any) -> int:
        used.append(world.handles_used(0))
        return note(*args)

    cpus.flush = flush  # type: ignore[method-assign]
    world.unmap_all(world.map_all([(1, world[1].grant(frame)) for frame in (3, 4, 5)]))
    assert used == [0]


def test_a_guests_flush_is_not_the_worker_cpus() -> None:
    world, cpus = watched()
    mapped = world.map(world[1].grant(frame=3, to=2), by=2)
    assert world.unmap(mapped, by=2) == OKAY
    assert cpus.seen == []
    assert world.hypervisor.flushes == 1


@pytest.mark.parametrize(
    ("nr_ops", "batches"),
    [(1, [1]), (31, [31]), (32, [32]), (33, [32, 1]), (64, [32, 32]), (100, [32, 32, 32, 4])],
)
def test_each_32_unmaps_end_in_one_flush(nr_ops: int, batches: list[int]) -> None:
    world, cpus = watched()
    gref = world[1].grant(frame=3)
    assert world.unmap_all(world.map_all([(1, gref)] * nr_ops)) == [OKAY] * nr_ops
    assert [len(handles) for _, _, handles, _ in cpus.seen] == batches
    left = [nr_ops - sum(batches[:n]) for n in range(len(batches))]
    assert [pins for pins, _, _, _ in cpus.seen] == left
    assert all(not ended for _, _, _, ended in cpus.seen)
    assert world.counted(1) == {
        "hypercalls": 2,
        "map_ops": nr_ops,
        "unmap_ops": nr_ops,
        "flushes": len(batches),
        "flush_entries": nr_ops,
        "ipis": 3 * len(batches),
    }


def test_a_batch_that_unmaps_nothing_ends_in_no_flush() -> None:
    world, cpus = watched()
    mapped = world.map_all([(1, world[1].grant(frame=3))] * 32)
    world.unmap_all(mapped)
    world.unmap_all(mapped)
    world.unmap(mapped[0], host_addr=0, dev_bus_addr=0)
    assert len(cpus.seen) == 1


def test_a_failed_op_takes_a_place_in_its_batch_but_is_no_flush_entry() -> None:
    world, cpus = watched()
    mapped = world.map_all([(1, world[1].grant(frame=3))] * 33)
    assert world.unmap(mapped[5]) == OKAY
    statuses = world.unmap_all(mapped)
    assert statuses == [abi.GNTST_BAD_HANDLE if n == 5 else OKAY for n in range(33)]
    assert [len(handles) for _, _, handles, _ in cpus.seen] == [1, 31, 1]
    assert world.counted(1)["flush_entries"] == 33


def test_the_flush_is_told_who_calls_and_whether_it_waited() -> None:
    world, cpus = watched()
    mapped = world.map_all([(1, world[1].grant(frame=3))] * 2)
    world.unmap_all(mapped[:1], vcpu=3, waited=True)
    world.unmap_all(mapped[1:], vcpu=1)
    assert cpus.callers == [(3, True), (1, False)]
    assert world.counted(1)["flush_lock_waits"] == 1


def test_a_flush_that_is_not_due_is_not_counted_but_the_unmap_is() -> None:
    world, cpus = watched()
    cpus.ipis = NO_FLUSH
    mapped = world.map_all([(1, world[1].grant(frame=3))] * 40)
    world.unmap_all(mapped, waited=True)
    assert world.counted(1) == {"hypercalls": 2, "map_ops": 40, "unmap_ops": 40}
    assert world.hypervisor.flushes == 0


# --- what is counted for whom -------------------------------------------------------------------


def test_the_counts_of_a_mapping_and_its_unmap_are_exact(world: World) -> None:
    world.dirty[[0, 2, 3]] = world.running[[0, 2, 3]] = 1
    mapped = world.map_all([(1, world[1].grant(frame)) for frame in range(1, 12)])
    assert world.counted(1) == {"hypercalls": 1, "map_ops": 11, "grants_mapped": 11}
    assert world.hypervisor.flushes == 0
    world.unmap_all(mapped, vcpu=2)
    assert world.counted(1) == {
        "hypercalls": 2,
        "map_ops": 11,
        "unmap_ops": 11,
        "flushes": 1,
        "flush_entries": 11,
        "ipis": 2,
    }
    assert world.by_cpu("ipis_sent") == [0, 0, 2, 0]
    assert world.by_cpu("ipis_received") == [1, 0, 0, 1]
    assert world.by_cpu("flushes") == [0, 0, 1, 0]
    assert world.by_cpu("flush_entries") == [0, 0, 11, 0]
    assert world.counted(0) == world.counted(2) == {}


def test_maps_of_several_domains_are_counted_each_for_its_own(world: World) -> None:
    first, second = world[1].grant(frame=3), world[2].grant(frame=3)
    mapped = world.map_all([(1, first), (2, second), (1, first), (2, 100), (2, second), (9, 8)])
    assert [int(status) for status in mapped["status"]] == [
        OKAY, OKAY, OKAY, abi.GNTST_GENERAL_ERROR, OKAY, abi.GNTST_BAD_DOMAIN,
    ]  # fmt: skip
    assert world.counted(1) == {"hypercalls": 1, "map_ops": 2, "grants_mapped": 2}
    assert world.counted(2) == {"map_ops": 2, "failed_ops": 1, "grants_mapped": 2}


def test_unmaps_of_several_domains_share_the_flush_which_is_booked_to_the_first(
    world: World,
) -> None:
    world.dirty[:] = world.running[:] = 1
    first, second = world[1].grant(frame=3), world[2].grant(frame=3)
    mapped = world.map_all([(2, second), (1, first), (2, second)])
    world.unmap_all(mapped)
    assert world.counted(2) == {
        "hypercalls": 2,
        "map_ops": 2,
        "unmap_ops": 2,
        "flushes": 1,
        "flush_entries": 3,
        "ipis": 3,
    }
    assert world.counted(1) == {"map_ops": 1, "unmap_ops": 1}
    assert world.pins(1) == world.pins(2) == 0


def test_two_domains_grefs_of_one_number_are_told_apart(world: World) -> None:
    gref = world[1].grant(frame=3)
    assert world[2].grant(frame=3) == gref
    mapped = world.map_all([(1, gref), (2, gref)])
    world.unmap(mapped[1])
    assert (world[1].status_bits(gref), world[2].status_bits(gref)) == (READING | WRITING, 0)


def test_host_and_device_mappings_count_as_one_op_and_two_mappings(world: World) -> None:
    mapped = world.map(world[1].grant(frame=3), RW | DEVICE_RW)
    assert world.counted(1) == {"hypercalls": 1, "map_ops": 1, "grants_mapped": 2}
    world.unmap(mapped)
    assert world.counted(1) == {
        "hypercalls": 2,
        "map_ops": 1,
        "unmap_ops": 1,
        "flushes": 1,
        "flush_entries": 1,
    }


def test_failed_maps_are_counted_for_the_domain_they_were_about(world: World) -> None:
    world.map_all([(1, 100)] * 3)
    assert world.counted(1) == {"hypercalls": 1, "failed_ops": 3}


def test_a_hypercall_that_maps_is_counted_though_its_first_op_names_no_domain(
    world: World,
) -> None:
    world.map_all([(9, 8), (1, world[1].grant(frame=3))])
    assert world.counted(1) == {"hypercalls": 1, "map_ops": 1, "grants_mapped": 1}


def test_a_hypercall_that_unmaps_is_counted_though_its_first_32_ops_fail(world: World) -> None:
    mapped = world.map_all([(1, world[1].grant(frame=3))] * 33)
    world.unmap_all(mapped[:32])
    world.unmap_all(mapped)
    assert world.counted(1)["hypercalls"] == 3


def test_a_failed_unmap_of_a_known_grant_is_counted_for_its_domain(world: World) -> None:
    mapped = world.map(world[1].grant(frame=3))
    assert world.unmap(mapped, host_addr=4096 * 999) == abi.GNTST_BAD_VIRT_ADDR
    assert world.counted(1).get("failed_ops", 0) == 1


# --- what a guest may send ----------------------------------------------------------------------


def edges(bits: int) -> st.SearchStrategy[int]:
    """Integers near 0, near the top, near the reserved domids, or anywhere."""
    top = (1 << bits) - 1
    near = st.sampled_from([n & top for n in (0, 1, 2, 8, 9, 4096, 0x7FF0, 0x7FF1, -1, -2, -4096)])
    return near | st.integers(0, top)


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, int, bytes]:
    """A hypercall of the right form and any content."""
    number, cmd, dtype, single = draw(st.sampled_from(OPS))
    args = np.zeros(1 if single else draw(st.integers(1, 4)), dtype)
    for op in args:
        fill(draw, op, dtype)
    return number, cmd, args.tobytes()


def fill(draw: st.DrawFn, op: np.void, dtype: Any) -> None:
    for name in dtype.names:
        if dtype[name].names:
            fill(draw, op[name], dtype[name])
        elif dtype[name].kind == "u":
            op[name] = draw(edges(8 * dtype[name].itemsize))


@settings(max_examples=100, deadline=None)
@given(st.lists(calls(), min_size=1, max_size=20), st.binary(max_size=64))
def test_whatever_a_guest_sends_only_itself_can_notice(
    sent: list[tuple[int, int, bytes]], garbage: bytes
) -> None:
    world = World()
    gref = world[2].grant(frame=3)
    shared = world[2].grant(frame=4, to=1, readonly=True)
    own = [world[1].grant(frame, to=1) for frame in (3, 4)]
    assert [gref, shared] == own == [8, 9]  # which `edges` draws often
    mapped = world.map(gref, of=2)
    port = world.domain(2).channels.alloc_unbound(0)
    far = world.domain(0).channels.bind(world.domain(2).channels, port)
    memory = [world[domid].ram.tobytes() + world[domid].events.tobytes() for domid in (0, 2)]
    for number, cmd, payload in [*sent, (GRANT_TABLE, MAP, garbage)]:
        assert -200 < raw(world, number, cmd, payload, by=1) <= 0
    assert memory == [
        world[domid].ram.tobytes() + world[domid].events.tobytes() for domid in (0, 2)
    ]
    assert world.handles_used(0) == 1
    assert world.domain(0).channels.get(far)[:3] == (abi.EVTCHNSTAT_INTERDOMAIN, 2, port)
    assert world.unmap(mapped) == OKAY
    assert world[2].end_access(gref)
    world.hypervisor.destroy_domain(1)
    assert 1 not in world.hypervisor.domains
    assert world[2].end_access(shared)


def test_domain_0_can_have_as_many_mappings_as_it_has_handles() -> None:
    world = World(grant_frames=5)
    grefs = [world[1].grant(frame=3) for _ in range(MAPTRACK_HANDLES_MAX // 128)]
    ops = np.zeros(MAPTRACK_HANDLES_MAX + 1, abi.GNTTAB_MAP_GRANT_REF)
    ops["dom"], ops["flags"], ops["host_addr"] = 1, RO, 4096
    ops["ref"] = np.resize(np.repeat(grefs, 128), len(ops))
    world.grant_table_op(MAP, ops)
    assert ops["status"][-1] == abi.GNTST_NO_DEVICE_SPACE
    assert not ops["status"][:-1].any()
    assert world.domain(1).mapped == MAPTRACK_HANDLES_MAX
    world.grant_table_op(UNMAP, unmap_ops(ops[:-1]))
    assert (world.pins(1), world.handles_used(0)) == (0, 0)
    assert world.counted(1)["flushes"] == MAPTRACK_HANDLES_MAX // 32
