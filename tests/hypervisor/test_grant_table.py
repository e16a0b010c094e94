"""Mapping and unmapping grants: every error, the status bits, pins, and a guest that cheats."""

import threading
from typing import Any

import numpy as np
import pytest
from numba import njit

from common import abi
from common.atomics import cmpxchg, load_acquire, pause, store_release
from hypervisor.grant_table import GrantTable, end_unmap, map_grants
from hypervisor.maptrack import UNMAPPED, Maptrack, begin_unmap
from tests.hypervisor.world import (
    DEVICE_RO,
    DEVICE_RW,
    PAGE,
    RAM_FRAMES,
    READING,
    RESERVED_DOMIDS,
    RO,
    RW,
    WRITING,
    World,
    unmap_ops,
)

OKAY = abi.GNTST_OKAY
ENTRIES = abi.GRANT_ENTRIES_PER_FRAME


@pytest.fixture
def world() -> World:
    return World()


# --- every error of a map -----------------------------------------------------------------------

MAP_ERRORS: list[tuple[str, dict[str, int], int]] = [
    ("a domain that is not there", {"dom": 9}, abi.GNTST_BAD_DOMAIN),
    *(
        (f"the reserved domid {domid:#x}", {"dom": domid}, abi.GNTST_BAD_DOMAIN)
        for domid in RESERVED_DOMIDS
    ),
    ("the first gref beyond the table", {"ref": ENTRIES}, abi.GNTST_BAD_GNTREF),
    ("a gref whose word offset wraps in u32", {"ref": 1 << 31}, abi.GNTST_BAD_GNTREF),
    ("a gref whose byte offset wraps in u32", {"ref": 1 << 29}, abi.GNTST_BAD_GNTREF),
    ("the last gref of all", {"ref": 2**32 - 1}, abi.GNTST_BAD_GNTREF),
    ("neither a host nor a device mapping", {"flags": 0}, abi.GNTST_BAD_GNTREF),
    ("only a readonly flag", {"flags": abi.GNTMAP_READONLY}, abi.GNTST_BAD_GNTREF),
    ("only flags nobody knows", {"flags": 2**32 - 8}, abi.GNTST_BAD_GNTREF),
    ("host address 0", {"host_addr": 0}, abi.GNTST_BAD_VIRT_ADDR),
    ("a host address within a page", {"host_addr": PAGE + 8}, abi.GNTST_BAD_VIRT_ADDR),
    ("a gref that grants nothing", {"ref": 100}, abi.GNTST_GENERAL_ERROR),
    ("a reserved gref that grants nothing", {"ref": 0}, abi.GNTST_GENERAL_ERROR),
]


@pytest.mark.parametrize(("case", "fields", "status"), MAP_ERRORS, ids=[c[0] for c in MAP_ERRORS])
def test_a_map_is_refused_and_changes_nothing(
    world: World, case: str, fields: dict[str, int], status: int
) -> None:
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["flags"], op["host_addr"] = 1, RW, PAGE
    op["ref"] = world[1].grant(frame=3)
    for name, value in fields.items():
        op[name] = value
    before = world[1].frames.tobytes()
    world.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == status
    assert world[1].frames.tobytes() == before
    assert (world.pins(1), world.handles_used(0)) == (0, 0)


@pytest.mark.parametrize("host_addr", [2**63 + 8, 2**64 - 8, 2**53 + 1])
def test_a_huge_host_address_must_be_page_aligned_too(world: World, host_addr: int) -> None:
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["flags"], op["ref"] = 1, RW, world[1].grant(frame=3)
    op["host_addr"] = host_addr
    world.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == abi.GNTST_BAD_VIRT_ADDR


def test_the_highest_page_is_a_host_address_like_any_other(world: World) -> None:
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["flags"], op["ref"] = 1, RW, world[1].grant(frame=3)
    op["host_addr"] = 2**64 - PAGE
    world.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == OKAY
    assert world.unmap(op[0], host_addr=2**64 - 2 * PAGE) == abi.GNTST_BAD_VIRT_ADDR
    assert world.unmap(op[0]) == OKAY


ENTRY_ERRORS: list[tuple[str, dict[str, int], int, int]] = [
    ("granted to another domain", {"domid": 2}, RO, abi.GNTST_GENERAL_ERROR),
    ("taken back", {"flags": abi.GTF_INVALID}, RO, abi.GNTST_GENERAL_ERROR),
    ("a transfer", {"flags": abi.GTF_ACCEPT_TRANSFER}, RO, abi.GNTST_GENERAL_ERROR),
    ("of the type nobody knows", {"flags": abi.GTF_TYPE_MASK}, RO, abi.GNTST_GENERAL_ERROR),
    (
        "read-only",
        {"flags": abi.GTF_PERMIT_ACCESS | abi.GTF_READONLY},
        RW,
        abi.GNTST_GENERAL_ERROR,
    ),
    ("of the frame behind the RAM", {"frame": RAM_FRAMES}, RW, abi.GNTST_BAD_PAGE),
    ("of the frame behind the RAM, to read", {"frame": RAM_FRAMES}, RO, abi.GNTST_BAD_PAGE),
    ("of the last frame of all", {"frame": 2**32 - 1}, RW, abi.GNTST_BAD_PAGE),
]


@pytest.mark.parametrize("device", [False, True], ids=["host", "device"])
@pytest.mark.parametrize(
    ("case", "entry", "flags", "status"), ENTRY_ERRORS, ids=[c[0] for c in ENTRY_ERRORS]
)
def test_an_entry_is_refused_and_left_as_the_guest_wrote_it(
    world: World, case: str, entry: dict[str, int], flags: int, status: int, device: bool
) -> None:
    gref = world[1].grant(frame=3)
    for name, value in entry.items():
        world[1].entry(gref)[name] = value
    before = world[1].frames.tobytes()
    flags = flags & ~RW | DEVICE_RW if device else flags
    assert world.map(gref, flags)["status"] == status
    assert world[1].frames.tobytes() == before
    assert (world.pins(1), world.handles_used(0)) == (0, 0)
    assert world.domain(1).mapped == 0


def test_each_op_of_a_hypercall_has_its_own_status(world: World) -> None:
    good = [world[1].grant(frame) for frame in (3, 4)]
    mapped = world.map_all([(1, good[0]), (1, 100), (9, good[0]), (1, ENTRIES), (1, good[1])])
    assert list(mapped["status"]) == [
        OKAY,
        abi.GNTST_GENERAL_ERROR,
        abi.GNTST_BAD_DOMAIN,
        abi.GNTST_BAD_GNTREF,
        OKAY,
    ]
    assert [int(op["handle"]) for op in mapped if op["status"] == OKAY] == [0, 1]


def test_a_map_answers_with_handle_and_bus_address(world: World) -> None:
    mapped = world.map(world[1].grant(frame=5))
    assert (mapped["handle"], mapped["dev_bus_addr"]) == (0, 5 * PAGE)


def test_the_last_entry_of_a_table_of_several_frames_can_be_mapped() -> None:
    world = World(grant_frames=3)
    last = 3 * ENTRIES - 1
    world[1].entry(last)["frame"], world[1].entry(last)["flags"] = 7, abi.GTF_PERMIT_ACCESS
    assert world.map(last)["dev_bus_addr"] == 7 * PAGE
    assert world.map(last + 1)["status"] == abi.GNTST_BAD_GNTREF


def test_a_device_mapping_needs_no_host_address(world: World) -> None:
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["flags"], op["ref"] = 1, DEVICE_RW, world[1].grant(frame=3)
    assert world.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)["status"][0] == OKAY


# --- the status bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("readonly_grant", [False, True])
@pytest.mark.parametrize("flags", [RO, DEVICE_RO, RO | DEVICE_RO])
def test_a_readonly_mapping_sets_reading_until_it_goes(
    world: World, flags: int, readonly_grant: bool
) -> None:
    gref = world[1].grant(frame=3, readonly=readonly_grant)
    mapped = world.map(gref, flags)
    assert world[1].status_bits(gref) == READING
    assert world.unmap(mapped) == OKAY
    assert world[1].status_bits(gref) == 0


@pytest.mark.parametrize("flags", [RW, DEVICE_RW, RW | DEVICE_RW])
def test_a_writable_mapping_sets_both_bits_until_it_goes(world: World, flags: int) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map(gref, flags)
    assert world[1].status_bits(gref) == READING | WRITING
    assert world.unmap(mapped) == OKAY
    assert world[1].status_bits(gref) == 0


def test_a_map_and_an_unmap_change_nothing_else_in_the_table(world: World) -> None:
    gref = world[1].grant(frame=3)
    before = world[1].frames.tobytes()
    world.unmap(world.map(gref))
    assert world[1].frames.tobytes() == before


def test_writing_goes_with_the_last_writer_and_reading_with_the_last_mapping(world: World) -> None:
    gref = world[1].grant(frame=3)
    reader, device = world.map(gref, RO), world.map(gref, DEVICE_RW)
    writer = world.map(gref, RW)
    bits = [world[1].status_bits(gref)]
    for mapped in (writer, device, reader):
        world.unmap(mapped)
        bits.append(world[1].status_bits(gref))
    assert bits == [READING | WRITING, READING | WRITING, READING, 0]


def test_a_reader_leaves_the_writers_bits_alone(world: World) -> None:
    gref = world[1].grant(frame=3)
    world.map(gref, RW)
    world.unmap(world.map(gref, RO))
    assert world[1].status_bits(gref) == READING | WRITING


def test_a_second_mapping_may_write_where_the_first_only_read(world: World) -> None:
    gref = world[1].grant(frame=3)
    world.map(gref, RO)
    assert world.map(gref, RW)["status"] == OKAY
    assert world[1].status_bits(gref) == READING | WRITING


def test_a_readonly_grant_stays_readonly_while_it_is_mapped(world: World) -> None:
    gref = world[1].grant(frame=3, readonly=True)
    world.map(gref, RO)
    assert world.map(gref, RW)["status"] == abi.GNTST_GENERAL_ERROR
    assert world[1].status_bits(gref) == READING
    assert world.pins(1) == 1


def test_what_one_domain_has_mapped_no_other_can_map(world: World) -> None:
    gref = world[1].grant(frame=3)
    world.map(gref)
    world[1].entry(gref)["domid"] = 2
    assert world.map(gref, by=2)["status"] == abi.GNTST_GENERAL_ERROR


@pytest.mark.parametrize("flags", [RO, RW, DEVICE_RO, DEVICE_RW])
def test_access_can_be_ended_only_after_the_unmap(world: World, flags: int) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map(gref, flags)
    assert not world[1].end_access(gref)
    world.unmap(mapped)
    assert world[1].end_access(gref)
    assert world.map(gref, flags)["status"] == abi.GNTST_GENERAL_ERROR


# --- what the guest writes while it is mapped ---------------------------------------------------


def test_the_frame_is_remembered_though_the_guest_writes_another(world: World) -> None:
    gref = world[1].grant(frame=3)
    first = world.map(gref)
    world[1].entry(gref)["frame"] = 9
    second = world.map(gref)
    assert (first["dev_bus_addr"], second["dev_bus_addr"]) == (3 * PAGE, 3 * PAGE)
    world.unmap(first)
    world.unmap(second)
    assert world.map(gref)["dev_bus_addr"] == 9 * PAGE


def test_a_frame_behind_the_ram_is_not_looked_at_while_the_old_one_is_mapped(world: World) -> None:
    gref = world[1].grant(frame=3)
    world.map(gref)
    world[1].entry(gref)["frame"] = 2**32 - 1
    assert world.map(gref)["dev_bus_addr"] == 3 * PAGE


@pytest.mark.parametrize("flags", [0, abi.GTF_PERMIT_ACCESS, 0xFFFF])
def test_an_entry_wiped_while_it_is_mapped_is_unmapped_all_the_same(
    world: World, flags: int
) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map(gref)
    entry = world[1].entry(gref)
    entry["flags"], entry["domid"], entry["frame"] = flags, 77, 2**32 - 1
    assert world.unmap(mapped) == OKAY
    assert (entry["flags"], entry["domid"]) == (flags & ~(READING | WRITING), 77)
    assert (world.pins(1), world.domain(1).mapped) == (0, 0)


def test_status_bits_the_guest_sets_itself_do_not_keep_a_map_away(world: World) -> None:
    gref = world[1].grant(frame=3)
    world[1].entry(gref)["flags"] |= READING | WRITING
    world.unmap(world.map(gref))
    assert world[1].status_bits(gref) == 0


@njit(nogil=True)
def flip_by_the_rules(entries: np.ndarray, word: int, granted: int, stop: np.ndarray) -> None:
    while load_acquire(stop, 0) == 0:
        old = load_acquire(entries, word)
        if old & np.uint32(READING | WRITING) == 0:
            cmpxchg(entries, word, old, np.uint32(granted) if old == 0 else np.uint32(0))


@njit(nogil=True)
def flip_anything(entries: np.ndarray, word: int, granted: int, stop: np.ndarray) -> None:
    flags = np.uint32(0)
    while load_acquire(stop, 0) == 0:
        store_release(entries, word, np.uint32(granted) & ~np.uint32(31) | flags)
        store_release(entries, word + 1, flags * np.uint32(7) & np.uint32(31))
        for _ in range(50):  # long enough for a map now and then to find it at rest
            pause()
        flags = (flags + np.uint32(7)) & np.uint32(31)


@njit(nogil=True)
def hammer(
    table: GrantTable, track: Maptrack, op: np.ndarray, unmap: np.ndarray, rounds: int
) -> tuple[int, int, int, int]:
    """Map and unmap; (mapped, refused, mapped without its bits, unmaps that failed)."""
    unmapped = np.zeros(1, UNMAPPED)
    mapped, refused, naked, stuck = 0, 0, 0, 0
    word = 2 * np.int64(op[0].ref)
    for _ in range(rounds):
        if map_grants(table, track, 0, op) == 0:
            refused += 1
        else:
            mapped += 1
            naked += load_acquire(table.entries, word) & np.uint32(24) != 24
            unmap[0].handle = op[0].handle
            begin_unmap(track, unmap, unmapped)
            stuck += end_unmap(table, unmapped) != 1
        if mapped > 100 and refused > 100:
            break
    return mapped, refused, naked, stuck


def hammered(world: World, flipper: Any) -> tuple[int, int, int, int]:
    """Map and unmap a grant of domain 1 against a thread that changes its entry."""
    gref = world[1].grant(frame=3)
    entries, stop = world[1].grants.entries, np.zeros(1, np.uint32)
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["ref"], op["flags"], op["host_addr"] = 1, gref, RW, PAGE
    domain, mapper = world.domain(1), world.domain(0)
    warm = np.ones(1, np.uint32)
    flipper(entries, 2 * gref, abi.GTF_PERMIT_ACCESS, warm)
    hammer(domain.grants, mapper.maptrack, op, unmap_ops(op), 0)
    thread = threading.Thread(target=flipper, args=(entries, 2 * gref, abi.GTF_PERMIT_ACCESS, stop))
    thread.start()
    try:
        return tuple(hammer(domain.grants, mapper.maptrack, op, unmap_ops(op), 50_000_000))
    finally:
        stop[0] = 1
        thread.join()


def test_a_pin_is_never_without_its_bits_while_the_guest_grants_and_ends(world: World) -> None:
    mapped, refused, naked, stuck = hammered(world, flip_by_the_rules)
    assert mapped > 100 and refused > 100
    assert (naked, stuck) == (0, 0)
    assert (world.pins(1), world.domain(1).mapped, world.handles_used(0)) == (0, 0, 0)


def test_a_guest_that_writes_anything_at_any_moment_harms_only_itself(world: World) -> None:
    mapped, refused, _, stuck = hammered(world, flip_anything)
    assert mapped > 100 and refused > 100
    assert stuck == 0
    assert (world.pins(1), world.domain(1).mapped, world.handles_used(0)) == (0, 0, 0)


# --- pins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [RO, RW, DEVICE_RO, DEVICE_RW, RW | DEVICE_RW])
def test_a_grant_is_pinned_128_times_of_a_kind_and_no_more(world: World, flags: int) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map_all([(1, gref)] * 130, flags)
    assert list(mapped["status"]) == [OKAY] * 128 + [abi.GNTST_GENERAL_ERROR] * 2
    assert world.handles_used(0) == 128


def test_a_grant_pinned_full_takes_no_copy_and_is_usable_again_after_an_unmap(world: World) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map_all([(1, gref)] * 128)
    copy = {"source_ref": gref, "source_domid": 1, "dest_gmfn": 0, "len": 8}
    assert world.copy(**copy) == abi.GNTST_GENERAL_ERROR
    assert world.map(gref, RO)["status"] == abi.GNTST_GENERAL_ERROR
    assert world.unmap_all(mapped[:1]) == [OKAY]
    assert world.copy(**copy) == OKAY
    assert world.unmap_all(mapped[1:]) == [OKAY] * 127
    assert world[1].status_bits(gref) == 0
    assert world.pins(1) == 0


def test_the_pins_are_four_counts_as_in_xen(world: World) -> None:
    gref = world[1].grant(frame=3)
    for flags, times in ((RW, 1), (RO, 2), (DEVICE_RW, 3), (DEVICE_RO, 4)):
        world.map_all([(1, gref)] * times, flags)
    assert world.domain(1).grants.active["pin"][gref] == 0x04030201
    assert world.domain(1).mapped == 10
