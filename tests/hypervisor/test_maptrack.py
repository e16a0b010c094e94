"""Handles: which are given out, what takes them back, and what does not."""

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from hypervisor.domains import GUEST_HANDLES_MAX
from hypervisor.maptrack import NO_HANDLE, free_handle, new_maptrack, take_handle
from tests.hypervisor.world import (
    DEVICE_RO,
    DEVICE_RW,
    PAGE,
    READING,
    RO,
    RW,
    WRITING,
    World,
)

OKAY = abi.GNTST_OKAY


@pytest.fixture
def world() -> World:
    return World()


# --- the free list ------------------------------------------------------------------------------


def test_handles_are_given_out_from_0_up() -> None:
    track = new_maptrack(Arena(), 3)
    assert [int(take_handle(track)) for _ in range(4)] == [0, 1, 2, NO_HANDLE]
    assert track.list["used"][0] == 3


def test_the_handle_freed_last_is_given_out_first() -> None:
    track = new_maptrack(Arena(), 4)
    for _ in range(3):
        take_handle(track)
    for handle in (1, 0, 2):
        free_handle(track, handle)
    assert [int(take_handle(track)) for _ in range(5)] == [2, 0, 1, 3, NO_HANDLE]


def test_a_maptrack_of_no_handles_gives_none() -> None:
    assert take_handle(new_maptrack(Arena(), 0)) == NO_HANDLE


def test_unmapped_handles_are_used_again_the_last_one_first(world: World) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map_all([(1, gref)] * 4)
    world.unmap_all(mapped[[2, 0]])
    assert list(world.map_all([(1, gref)] * 3)["handle"]) == [0, 2, 4]


def test_a_refused_map_uses_no_handle_up(world: World) -> None:
    gref = world[1].grant(frame=3)
    world.map(gref)
    world.map(100)
    assert world.map(gref)["handle"] == 1
    assert world.handles_used(0) == 2


def test_a_guest_has_256_handles_and_then_no_device_space(world: World) -> None:
    grefs = [world[1].grant(frame, to=2) for frame in (3, 4, 5)]
    full = world.map_all([(1, gref) for gref in grefs for _ in range(86)], by=2)
    assert GUEST_HANDLES_MAX == 256
    assert list(full["status"]) == [OKAY] * 256 + [abi.GNTST_NO_DEVICE_SPACE] * 2
    assert world.unmap_all(full[100:101], by=2) == [OKAY]
    assert world.map(grefs[0], by=2)["handle"] == 100


def test_no_device_space_leaves_the_grant_alone(world: World) -> None:
    world.map_all([(1, world[1].grant(f, to=2)) for f in (3, 4) for _ in range(1)] * 128, by=2)
    gref = world[1].grant(frame=5, to=2)
    assert world.map(gref, by=2)["status"] == abi.GNTST_NO_DEVICE_SPACE
    assert world[1].end_access(gref)


# --- unmap: every error -------------------------------------------------------------------------

UNMAP_ERRORS: list[tuple[str, dict[str, int], int]] = [
    ("a handle never given out", {"handle": 1}, abi.GNTST_BAD_HANDLE),
    ("the first handle beyond the table", {"handle": 1024 * 256}, abi.GNTST_BAD_HANDLE),
    ("the handle that means none", {"handle": NO_HANDLE}, abi.GNTST_BAD_HANDLE),
    ("another page", {"host_addr": 2 * PAGE}, abi.GNTST_BAD_VIRT_ADDR),
    ("an address within the page", {"host_addr": PAGE + 1}, abi.GNTST_BAD_VIRT_ADDR),
    ("the highest address", {"host_addr": 2**64 - 1}, abi.GNTST_BAD_VIRT_ADDR),
    ("another frame's bus address", {"dev_bus_addr": 4 * PAGE}, abi.GNTST_GENERAL_ERROR),
    ("a bus address within the frame", {"dev_bus_addr": 3 * PAGE + 1}, abi.GNTST_GENERAL_ERROR),
    ("a bus address beyond all", {"dev_bus_addr": 2**64 - 1}, abi.GNTST_GENERAL_ERROR),
]


@pytest.mark.parametrize(
    ("case", "fields", "status"), UNMAP_ERRORS, ids=[c[0] for c in UNMAP_ERRORS]
)
def test_an_unmap_is_refused_and_the_mapping_stands(
    world: World, case: str, fields: dict[str, int], status: int
) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map(gref)
    assert (mapped["handle"], mapped["host_addr"]) == (0, PAGE)
    op = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
    op["host_addr"] = PAGE
    for name, value in fields.items():
        op[name] = value
    world.grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, op)
    assert op["status"][0] == status
    assert world[1].status_bits(gref) == READING | WRITING
    assert (world.pins(1), world.handles_used(0)) == (1, 1)
    assert world.unmap(mapped) == OKAY


def test_a_handle_is_unmapped_once(world: World) -> None:
    mapped = world.map(world[1].grant(frame=3))
    assert [world.unmap(mapped) for _ in range(2)] == [OKAY, abi.GNTST_BAD_HANDLE]
    assert world.handles_used(0) == 0


def test_a_handle_twice_in_one_hypercall_is_unmapped_once(world: World) -> None:
    gref = world[1].grant(frame=3)
    both = world.map_all([(1, gref)] * 2)
    assert world.unmap_all(both[[0, 0]]) == [OKAY, abi.GNTST_BAD_HANDLE]
    assert (world.pins(1), world.handles_used(0)) == (1, 1)
    assert world[1].status_bits(gref) == READING | WRITING


def test_a_handle_is_the_domains_own(world: World) -> None:
    mapped = world.map(world[1].grant(frame=3))
    assert world.unmap(mapped, by=2) == abi.GNTST_BAD_HANDLE
    assert world.unmap(mapped, by=1) == abi.GNTST_BAD_HANDLE
    assert world.unmap(mapped) == OKAY


def test_an_unmap_that_names_no_address_takes_nothing_away(world: World) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map(gref, RW | DEVICE_RW)
    assert world.unmap(mapped, host_addr=0, dev_bus_addr=0) == OKAY
    assert world.domain(1).mapped == 2
    assert world.unmap(mapped) == OKAY


def test_the_right_bus_address_does_no_harm_to_a_host_mapping(world: World) -> None:
    gref = world[1].grant(frame=3)
    assert world.unmap(world.map(gref), dev_bus_addr=3 * PAGE) == OKAY
    assert world[1].end_access(gref)


# --- host and device mappings behind one handle -------------------------------------------------


@pytest.mark.parametrize("flags", [RO | DEVICE_RO, RW | DEVICE_RW])
@pytest.mark.parametrize("host_first", [False, True])
def test_a_handle_lives_until_both_its_mappings_are_gone(
    world: World, flags: int, host_first: bool
) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map(gref, flags)
    bits = world[1].status_bits(gref)
    first, second = {"host_addr": 0}, {"dev_bus_addr": 0}
    if host_first:
        first, second = second, first
    assert world.unmap(mapped, **first) == OKAY
    assert world[1].status_bits(gref) == bits
    assert (world.domain(1).mapped, world.handles_used(0)) == (1, 1)
    assert world.unmap(mapped, **first) == OKAY  # it is no more there, and takes nothing away
    assert (world.domain(1).mapped, world.handles_used(0)) == (1, 1)
    assert world.unmap(mapped, **second) == OKAY
    assert world[1].status_bits(gref) == 0
    assert (world.pins(1), world.domain(1).mapped, world.handles_used(0)) == (0, 0, 0)


def test_a_device_mapping_of_frame_0_can_be_unmapped(world: World) -> None:
    gref = world[1].grant(frame=0)
    mapped = world.map(gref, DEVICE_RW)
    if mapped["status"] == OKAY:  # to refuse it would do as well
        world.unmap(mapped)
    assert world.handles_used(0) == 0
    assert world[1].end_access(gref)


def test_handles_tell_one_grants_mappings_apart(world: World) -> None:
    gref = world[1].grant(frame=3)
    writer, reader = world.map(gref, RW), world.map(gref, RO)
    assert world.unmap(writer, host_addr=int(reader["host_addr"])) == abi.GNTST_BAD_VIRT_ADDR
    assert world.unmap(writer) == OKAY
    assert world[1].status_bits(gref) == READING
