"""GNTTABOP_copy: what is copied where, every error, and that nothing stays pinned."""

import numpy as np
import pytest

from common import abi
from tests.hypervisor.world import (
    PAGE,
    RAM_FRAMES,
    READING,
    RESERVED_DOMIDS,
    RO,
    RW,
    WRITING,
    World,
    fill_copy,
)

OKAY = abi.GNTST_OKAY


@pytest.fixture
def world() -> World:
    return World()


def test_bytes_go_from_a_grant_to_the_callers_own_frame(world: World) -> None:
    gref = world[1].grant(frame=3, readonly=True)
    before = world[0].ram.copy()
    fields = {"source_ref": gref, "source_domid": 1, "source_offset": 100}
    assert world.copy(**fields, dest_gmfn=2, dest_offset=4000, len=96) == OKAY
    before[2 * PAGE + 4000 : 3 * PAGE] = 16 + 3
    assert np.array_equal(world[0].ram, before)


def test_bytes_go_from_the_callers_own_frame_to_a_grant(world: World) -> None:
    gref = world[1].grant(frame=15)
    before = world[1].ram.copy()
    fields = {"dest_ref": gref, "dest_domid": 1, "dest_offset": 1}
    assert world.copy(**fields, source_gmfn=7, source_offset=4095, len=1) == OKAY
    before[15 * PAGE + 1] = 7
    assert np.array_equal(world[1].ram, before)


def test_bytes_go_from_one_guests_grant_to_anothers(world: World) -> None:
    source, dest = world[1].grant(frame=3), world[2].grant(frame=4)
    assert (
        world.copy(source_ref=source, source_domid=1, dest_ref=dest, dest_domid=2, len=PAGE) == OKAY
    )
    assert set(world[2].ram[4 * PAGE : 5 * PAGE].tolist()) == {16 + 3}
    assert world[2].ram[4 * PAGE - 1] == 32 + 3 and world[2].ram[5 * PAGE] == 32 + 5


def test_a_guest_copies_too_with_what_is_granted_to_it(world: World) -> None:
    gref = world[1].grant(frame=3, to=2)
    assert world.copy(by=2, source_ref=gref, source_domid=1, dest_gmfn=0, len=8) == OKAY
    assert world.copy(by=0, source_ref=gref, source_domid=1, dest_gmfn=0, len=8) == (
        abi.GNTST_GENERAL_ERROR
    )
    assert set(world[2].ram[:8].tolist()) == {16 + 3}


def test_the_callers_own_grant_is_named_by_domid_self_or_its_number(world: World) -> None:
    gref = world[1].grant(frame=3, to=1)
    for domid in (abi.DOMID_SELF, 1):
        assert world.copy(by=1, source_ref=gref, source_domid=domid, dest_gmfn=4, len=8) == OKAY
    assert world.pins(1) == 0


@pytest.mark.parametrize("offset", [0, 5, PAGE])
def test_a_copy_of_no_bytes_is_checked_and_copies_none(world: World, offset: int) -> None:
    gref = world[1].grant(frame=3)
    before = world[0].ram.tobytes() + world[1].ram.tobytes()
    fields = {"source_ref": gref, "source_domid": 1, "source_offset": offset}
    assert world.copy(**fields, dest_gmfn=0, len=0) == OKAY
    fields["source_ref"] = 100
    assert world.copy(**fields, dest_gmfn=0, len=0) == abi.GNTST_GENERAL_ERROR
    assert world[0].ram.tobytes() + world[1].ram.tobytes() == before


# --- errors -------------------------------------------------------------------------------------

# A sound copy is of 8 bytes from `gref` of domain 1, offset 0, to the caller's frame 2.
SOUND = {"source_domid": 1, "dest_gmfn": 2, "len": 8}
ERRORS: list[tuple[str, dict[str, int], int]] = [
    ("a source that leaves its page", {"source_offset": PAGE - 7}, abi.GNTST_BAD_COPY_ARG),
    ("a destination that leaves its page", {"dest_offset": PAGE - 7}, abi.GNTST_BAD_COPY_ARG),
    ("more than a page", {"len": PAGE + 1}, abi.GNTST_BAD_COPY_ARG),
    ("offset and length that wrap in u16", {"source_offset": 65535, "len": 1}, -10),
    ("the longest copy there is", {"len": 65535}, abi.GNTST_BAD_COPY_ARG),
    ("an offset behind the page and no bytes", {"dest_offset": PAGE + 1, "len": 0}, -10),
    ("a source domain that is not there", {"source_domid": 9}, abi.GNTST_BAD_DOMAIN),
    (
        "a destination domain that is not there",
        {"dest_domid": 9, "dest_ref": 8},
        abi.GNTST_BAD_DOMAIN,
    ),
    *(
        (f"the reserved domid {domid:#x}", {"source_domid": domid}, abi.GNTST_BAD_DOMAIN)
        for domid in RESERVED_DOMIDS
        if domid != abi.DOMID_SELF
    ),
    ("a gref beyond the table", {"source_ref": 512}, abi.GNTST_BAD_GNTREF),
    ("the last gref of all", {"source_ref": 2**32 - 1}, abi.GNTST_BAD_GNTREF),
    (
        "a destination gref beyond the table",
        {"dest_domid": 1, "dest_ref": 512},
        abi.GNTST_BAD_GNTREF,
    ),
    ("a gref that grants nothing", {"source_ref": 100}, abi.GNTST_GENERAL_ERROR),
    ("an own gref granted to nobody", {"source_domid": abi.DOMID_SELF}, abi.GNTST_GENERAL_ERROR),
    ("a grant to another domain", {"source_ref": 9}, abi.GNTST_GENERAL_ERROR),
    (
        "a read-only grant written to",
        {"dest_domid": 1, "dest_ref": 10},
        abi.GNTST_GENERAL_ERROR,
    ),
    ("a grant of a frame behind the RAM", {"source_ref": 11}, abi.GNTST_BAD_PAGE),
    (
        "a destination grant of a frame behind the RAM",
        {"dest_domid": 1, "dest_ref": 11},
        abi.GNTST_BAD_PAGE,
    ),
    ("the frame behind one's own RAM", {"dest_gmfn": RAM_FRAMES}, abi.GNTST_BAD_PAGE),
    ("a frame that wraps in u32", {"dest_gmfn": 2**32}, abi.GNTST_BAD_PAGE),
    ("a frame whose address wraps in u64", {"dest_gmfn": 2**52}, abi.GNTST_BAD_PAGE),
    ("a frame that is negative as s64", {"dest_gmfn": 2**63}, abi.GNTST_BAD_PAGE),
    ("the last frame of all", {"dest_gmfn": 2**64 - 1}, abi.GNTST_BAD_PAGE),
    ("another domain's frame", {"dest_domid": 2}, abi.GNTST_PERMISSION_DENIED),
    ("one's own frame by number", {"dest_domid": 0}, abi.GNTST_PERMISSION_DENIED),
    ("a frame of no domain", {"dest_domid": 9}, abi.GNTST_PERMISSION_DENIED),
]


def granting_world() -> World:
    world = World()
    assert world[1].grant(frame=3) == 8
    assert world[1].grant(frame=4, to=2) == 9
    assert world[1].grant(frame=5, readonly=True) == 10
    assert world[1].grant(frame=RAM_FRAMES) == 11
    return world


def test_the_copy_that_the_errors_are_variations_of_is_sound() -> None:
    assert granting_world().copy(source_ref=8, **SOUND) == OKAY


@pytest.mark.parametrize(("case", "fields", "status"), ERRORS, ids=[c[0] for c in ERRORS])
def test_a_copy_is_refused_and_moves_and_pins_nothing(
    case: str, fields: dict[str, int], status: int
) -> None:
    world = granting_world()
    memory = [world[domid].ram.tobytes() + world[domid].frames.tobytes() for domid in (0, 1, 2)]
    assert world.copy(**{"source_ref": 8, **SOUND, **fields}) == status
    assert memory == [
        world[domid].ram.tobytes() + world[domid].frames.tobytes() for domid in (0, 1, 2)
    ]
    assert (world.pins(1), world.domain(1).mapped) == (0, 0)
    assert (
        world.counted(0).get("failed_ops", 0)
        + world.counted(1).get("failed_ops", 0)
        + (world.counted(2).get("failed_ops", 0))
        == 1
    )


def test_a_page_is_not_copied_onto_bytes_of_itself() -> None:
    world = granting_world()
    assert world.copy(source_gmfn=2, dest_gmfn=2, dest_offset=7, len=8) == abi.GNTST_BAD_COPY_ARG
    assert world.copy(source_gmfn=2, dest_gmfn=2, source_offset=7, len=8) == abi.GNTST_BAD_COPY_ARG
    assert world.copy(source_gmfn=2, dest_gmfn=2, dest_offset=8, len=8) == OKAY


def test_a_grant_copied_within_itself_is_released_whatever_came_of_it() -> None:
    world = granting_world()
    both = {"source_ref": 8, "source_domid": 1, "dest_ref": 8, "dest_domid": 1}
    assert world.copy(**both, dest_offset=1, len=8) == abi.GNTST_BAD_COPY_ARG
    assert world.copy(**both, dest_offset=8, len=8) == OKAY
    assert (world.pins(1), world[1].status_bits(8)) == (0, 0)


# --- pins ---------------------------------------------------------------------------------------


def test_a_mapped_grant_keeps_its_bits_through_a_copy(world: World) -> None:
    gref = world[1].grant(frame=3)
    mapped = world.map(gref, RO)
    assert world.copy(dest_ref=gref, dest_domid=1, source_gmfn=0, len=8) == OKAY
    assert world[1].status_bits(gref) == READING
    writer = world.map(gref, RW)
    assert world.copy(source_ref=gref, source_domid=1, dest_gmfn=0, len=8) == OKAY
    assert world[1].status_bits(gref) == READING | WRITING
    world.unmap(writer)
    world.unmap(mapped)
    assert world[1].end_access(gref)


def test_a_copy_sees_the_frame_that_is_mapped_not_the_one_written_since(world: World) -> None:
    gref = world[1].grant(frame=3)
    world.map(gref)
    world[1].entry(gref)["frame"] = 9
    assert world.copy(source_ref=gref, source_domid=1, dest_gmfn=0, len=1) == OKAY
    assert world[0].ram[0] == 16 + 3


def test_a_grant_mapped_by_another_domain_is_not_copied(world: World) -> None:
    gref = world[1].grant(frame=3)
    world.map(gref)
    world[1].entry(gref)["domid"] = 2
    assert world.copy(by=2, source_ref=gref, source_domid=1, dest_gmfn=0, len=1) == (
        abi.GNTST_GENERAL_ERROR
    )


# --- counts -------------------------------------------------------------------------------------


def test_copies_are_counted_for_the_granting_domain_and_flush_nothing(world: World) -> None:
    world.dirty[:] = 1
    gref = world[1].grant(frame=3)
    ops = np.zeros(3, abi.GNTTAB_COPY)
    fill_copy(ops[0], source_ref=gref, source_domid=1, dest_gmfn=0, len=8)
    fill_copy(ops[1], source_gmfn=0, dest_ref=gref, dest_domid=1, len=8)
    fill_copy(ops[2], source_ref=gref, source_domid=1, dest_gmfn=2**40, len=8)
    world.grant_table_op(abi.GNTTABOP_COPY, ops)
    assert list(ops["status"]) == [OKAY, OKAY, abi.GNTST_BAD_PAGE]
    assert world.counted(1) == {"hypercalls": 1, "copy_ops": 2, "failed_ops": 1}
    assert world.counted(0) == {}
    assert world.hypervisor.flushes == 0
    assert world.by_cpu("ipis_sent") == [0, 0, 0, 0]


def test_a_copy_within_the_callers_own_memory_is_counted_for_the_caller(world: World) -> None:
    assert world.copy(by=2, source_gmfn=1, dest_gmfn=0, len=8) == OKAY
    assert world.counted(2) == {"hypercalls": 1, "copy_ops": 1}


def test_copies_between_many_domains_in_one_call_are_each_their_own(world: World) -> None:
    one, two = world[1].grant(frame=3), world[2].grant(frame=4)
    ops = np.zeros(6, abi.GNTTAB_COPY)
    ends = [(1, one), (1, one), (9, one), (2, two), (1, two + 1), (1, one)]
    for at, (domid, gref) in enumerate(ends):
        fill_copy(ops[at], source_ref=gref, source_domid=domid, dest_gmfn=at, len=8)
    world.grant_table_op(abi.GNTTABOP_COPY, ops)
    refused = abi.GNTST_GENERAL_ERROR
    assert list(ops["status"]) == [OKAY, OKAY, abi.GNTST_BAD_DOMAIN, OKAY, refused, OKAY]
    firsts = [int(world[0].ram[at * PAGE]) for at in range(6)]
    assert firsts == [16 + 3, 16 + 3, 2, 32 + 4, 4, 16 + 3]
    assert world.counted(1) == {"hypercalls": 1, "copy_ops": 3, "failed_ops": 1}
    assert world.counted(2) == {"copy_ops": 1}
    assert world.counted(0) == {"failed_ops": 1}
    assert world.pins(1) == world.pins(2) == 0
