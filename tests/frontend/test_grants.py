"""The guest's side of its grant table: granting, ending access, the free list."""

import numpy as np
import pytest

from common.abi import (
    GRANT_ENTRY_V1,
    GTF_PERMIT_ACCESS,
    GTF_READING,
    GTF_READONLY,
    GTF_WRITING,
    XEN_PAGE_SIZE,
)
from common.arena import Arena
from frontend.grants import NO_GREF, Grants, end_access, grant_access, new_grants
from tests.frontend.whole import free_grefs


def table(frames: int = 1) -> tuple[Grants, np.ndarray]:
    """A free table, and its entries as Xen's struct."""
    memory = np.zeros(frames * XEN_PAGE_SIZE, np.uint8)
    return new_grants(Arena(), memory), memory.view(GRANT_ENTRY_V1)


def test_the_reserved_entries_are_never_given_out() -> None:
    grants, _ = table()
    given = [int(grant_access(grants, 0, 1, False)) for _ in range(504)]
    assert given == list(range(8, 512))
    assert grants.list["free"][0] == 0


@pytest.mark.parametrize(("frames", "entries"), [(1, 504), (4, 2040)])
def test_a_full_table_says_so_and_changes_nothing(frames: int, entries: int) -> None:
    grants, seen = table(frames)
    for _ in range(entries):
        assert grant_access(grants, 0, 1, False) != NO_GREF
    before = seen.tobytes()
    assert grant_access(grants, 0, 1, False) == NO_GREF
    assert (seen.tobytes(), grants.list["free"][0]) == (before, 0)


@pytest.mark.parametrize(
    ("domid", "frame", "readonly", "flags"),
    [
        (0, 0, False, GTF_PERMIT_ACCESS),
        (7, 1, True, GTF_PERMIT_ACCESS | GTF_READONLY),
        (0x7FEF, (1 << 32) - 1, False, GTF_PERMIT_ACCESS),
        (0xFFFF, 1 << 31, True, GTF_PERMIT_ACCESS | GTF_READONLY),
    ],
)
def test_an_entry_is_xens(domid: int, frame: int, readonly: bool, flags: int) -> None:
    grants, entries = table()
    gref = int(grant_access(grants, domid, frame, readonly))
    assert entries[gref].item() == (flags, domid, frame)
    assert not np.delete(entries.view(np.uint64), gref).any()


def test_an_ended_grant_permits_nothing_and_is_given_out_next() -> None:
    grants, entries = table()
    first, second = (int(grant_access(grants, 0, frame, False)) for frame in (1, 2))
    assert end_access(grants, first)
    assert entries[first]["flags"] == 0 and entries[second]["flags"] == GTF_PERMIT_ACCESS
    assert grants.list["free"][0] == 503
    assert grant_access(grants, 0, 3, False) == first


@pytest.mark.parametrize("bits", [GTF_READING, GTF_WRITING, GTF_READING | GTF_WRITING])
def test_access_cannot_be_ended_while_the_page_is_mapped(bits: int) -> None:
    grants, entries = table()
    gref = int(grant_access(grants, 0, 1, False))
    entries["flags"][gref] |= bits
    before = entries.tobytes()
    assert not end_access(grants, gref)
    assert (entries.tobytes(), grants.list["free"][0]) == (before, 503)
    entries["flags"][gref] &= ~bits & 0xFFFF
    assert end_access(grants, gref)
    assert grants.list["free"][0] == 504


def test_a_new_device_does_not_give_out_what_an_earlier_one_could_not_end() -> None:
    memory = np.zeros(XEN_PAGE_SIZE, np.uint8)
    entries = memory.view(GRANT_ENTRY_V1)
    entries[[8, 11, 511]] = (GTF_PERMIT_ACCESS | GTF_READING, 3, 77)
    grants = new_grants(Arena(), memory)
    assert free_grefs(grants) == [9, 10, *range(12, 511)]
    while grant_access(grants, 0, 1, False) != NO_GREF:
        pass
    assert [entries[gref].item() for gref in (8, 11, 511)] == [(9, 3, 77)] * 3


def test_a_table_with_nothing_free_gives_nothing_out() -> None:
    memory = np.zeros(XEN_PAGE_SIZE, np.uint8)
    memory.view(GRANT_ENTRY_V1)["flags"] = GTF_PERMIT_ACCESS
    grants = new_grants(Arena(), memory)
    assert free_grefs(grants) == []
    assert grant_access(grants, 0, 1, False) == NO_GREF


def test_every_gref_comes_back() -> None:
    grants, entries = table()
    given = [int(grant_access(grants, 1, frame, False)) for frame in range(504)]
    assert all(end_access(grants, gref) for gref in given)
    assert not entries["flags"].any()
    again = {int(grant_access(grants, 1, frame, False)) for frame in range(504)}
    assert again == set(range(8, 512))
