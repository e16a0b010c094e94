"""Grant tables and maptracks as people see them, of a disk that is served."""

import numpy as np
import pytest

from common import abi
from looking.events import Port, events
from looking.grants import Grant, Mapping, grant_table, maptrack
from tests.pair import GUEST, MODES, Pair


def entries_of(pair: Pair) -> np.ndarray:
    return pair.front.grants.entries.copy().view(np.uint8)


def mappings_of(pair: Pair) -> tuple[Mapping, ...]:
    (dom0,) = (domain for domain in pair.hypervisor.domains if domain.domid == abi.DOMID_0)
    entries = dom0.maptrack.entries
    return maptrack(np.arange(len(entries)), entries.copy()).mappings


@pytest.mark.parametrize("mode", MODES)
def test_a_mapping_is_in_both_and_says_the_same(mode: str) -> None:
    pair = Pair(mode)
    pair.write(8, bytes(4096))
    grants = {grant.gref: grant for grant in grant_table(entries_of(pair)).grants}
    mappings = mappings_of(pair)
    assert len(mappings) == (mode == "persistent")  # what is kept
    for mapping in mappings:
        grant = grants[mapping.ref]
        assert (mapping.domid, mapping.frame) == (GUEST, grant.frame)
        assert {"permit_access", "reading"} <= set(grant.flags)
        assert ("writing" in grant.flags) == (not mapping.readonly)
    mapped = {gref for gref, grant in grants.items() if "reading" in grant.flags}
    assert mapped == {mapping.ref for mapping in mappings}


def test_an_entry_is_named_by_its_flags() -> None:
    frames = np.zeros(abi.XEN_PAGE_SIZE, np.uint8)
    entries = frames.view(abi.GRANT_ENTRY_V1)
    entries[9] = (abi.GTF_PERMIT_ACCESS | abi.GTF_READONLY | abi.GTF_READING, 0, 77)
    entries[511] = (abi.GTF_TYPE_MASK, 3, 1)
    assert grant_table(frames).grants == (
        Grant(9, ("permit_access", "readonly", "reading"), 0, 77),
        Grant(511, ("type 3?",), 3, 1),
    )
    assert str(grant_table(frames)).splitlines() == [
        "2 of 512 entries are granted, 1 are mapped",
        "gref  flags                           to  frame",
        "9     permit_access readonly reading  0   77",
        "511   type 3?                         3   1",
    ]


def test_a_long_table_is_cut_as_text_only() -> None:
    frames = np.zeros(abi.XEN_PAGE_SIZE, np.uint8)
    frames.view(abi.GRANT_ENTRY_V1)["flags"][8:] = abi.GTF_PERMIT_ACCESS
    decoded = grant_table(frames)
    assert len(decoded.grants) == 504
    assert str(decoded).endswith("... and 440 more")


def test_a_port_is_shown_at_both_of_its_ends() -> None:
    segment = np.zeros(2 * abi.XEN_PAGE_SIZE, np.uint8)
    own, far = segment.reshape(2, -1)
    for page in (own, far):
        page.view(abi.SHARED_INFO)["evtchn_mask"][:] = np.uint64(0xFFFFFFFFFFFFFFFF)
    assert str(events(segment)) == "no port is open"
    own.view(abi.SHARED_INFO)["evtchn_mask"][0, 1] ^= np.uint64(1 << 6)
    far.view(abi.SHARED_INFO)["evtchn_pending"][0, 1] |= np.uint64(1 << 6)
    assert events(segment).ports == (
        Port(70, "own", False, False),
        Port(70, "far", True, True),
    )
