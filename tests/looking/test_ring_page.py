"""A ring's page as people see it."""

import re
from pathlib import Path

import numpy as np
import pytest

from common import abi
from looking.ring_page import REQUEST, RESPONSE, UNUSED, ring_page
from tests.pair import READ, Pair, Raw

GOLDEN = Path(__file__).parents[1] / "golden/ring-page.bin"


def page_of(pair: Pair) -> np.ndarray:
    return pair.ring_page.copy()


def test_a_request_that_waits_is_shown_with_its_segments() -> None:
    pair = Pair(start=0)
    pair.push_raw(Raw(((9, 0, 7), (12, 2, 3)), READ, sector=40, id=5))
    decoded = ring_page(page_of(pair))
    assert (decoded.req_prod, decoded.rsp_prod, decoded.outstanding) == (1, 0, 1)
    slot = decoded.slots[0]
    assert (slot.what, slot.ring_index, slot.id, slot.operation, slot.sector) == (
        REQUEST, 0, 5, "READ", 40,
    )  # fmt: skip
    assert slot.segments == ((9, 0, 7), (12, 2, 3))
    assert {slot.what for slot in decoded.slots[1:]} == {UNUSED}


def page(req_prod: int, rsp_prod: int) -> np.ndarray:
    """Whose slots hold requests numbered by their slot, and answers where they are answered."""
    pages = np.zeros(abi.XEN_PAGE_SIZE, np.uint8)
    header = pages[: abi.SRING_HEADER_SIZE].view(abi.BLKIF_SRING_HEADER)
    header["req_prod"], header["rsp_prod"] = req_prod, rsp_prod
    slots = pages[abi.SRING_HEADER_SIZE :][: 32 * 112].view(abi.BLKIF_REQUEST)
    slots["id"], slots["operation"], slots["nr_segments"] = np.arange(32), abi.BLKIF_OP_WRITE, 1
    return pages


@pytest.mark.parametrize("start", [32, 1000, (1 << 32) - 16, (1 << 32) - 1])
@pytest.mark.parametrize("outstanding", [0, 1, 31, 32])
def test_each_slot_is_its_last_writers_whatever_the_indices(start: int, outstanding: int) -> None:
    rsp_prod, req_prod = start % (1 << 32), (start + outstanding) % (1 << 32)
    decoded = ring_page(page(req_prod, rsp_prod))
    assert decoded.outstanding == outstanding
    requests = [slot for slot in decoded.slots if slot.what == REQUEST]
    expected = [(start + ahead) % (1 << 32) for ahead in range(outstanding)]
    assert sorted(slot.ring_index or 0 for slot in requests) == sorted(expected)
    answered = [slot for slot in decoded.slots if slot.what == RESPONSE]
    assert len(answered) == 32 - outstanding
    for slot in decoded.slots:
        assert slot.ring_index is not None and slot.ring_index % 32 == slot.number


def test_a_ring_that_nothing_was_put_on_has_no_used_slot() -> None:
    empty = np.zeros(abi.XEN_PAGE_SIZE, np.uint8)
    decoded = ring_page(empty)
    assert {slot.what for slot in decoded.slots} == {UNUSED}
    assert str(decoded).endswith("no slot has been used")


def test_what_a_peer_cannot_mean_is_shown_as_it_is() -> None:
    odd = page(1, 0)
    slots = odd[abi.SRING_HEADER_SIZE :][: 32 * 112].view(abi.BLKIF_REQUEST)
    slots["operation"][0], slots["nr_segments"][0] = 77, 255
    slot = ring_page(odd).slots[0]
    assert slot.operation == "77?" and len(slot.segments) == 11
    header = odd[: abi.SRING_HEADER_SIZE].view(abi.BLKIF_SRING_HEADER)
    header["req_prod"] = 5000
    assert ring_page(odd).outstanding == 5000
    str(ring_page(odd))


def test_a_page_of_real_xens_is_read() -> None:
    decoded = ring_page(np.fromfile(GOLDEN, np.uint8)[: abi.XEN_PAGE_SIZE])
    assert decoded.outstanding <= 32
    assert any(slot.what != UNUSED for slot in decoded.slots)
    for slot in decoded.slots:
        if slot.what == RESPONSE:
            assert slot.status == "OKAY" and slot.operation in ("READ", "WRITE")


def test_as_text_it_is_a_line_for_the_indices_and_a_table() -> None:
    pair = Pair(start=0)
    pair.push_raw(Raw(((9, 0, 7),), READ, sector=40, id=5))
    first, head, row = str(ring_page(page_of(pair))).splitlines()
    assert first.startswith("req_prod 1  req_event 1  rsp_prod 0  rsp_event 1  (1 of 32")
    assert head.split() == [
        "slot", "index", "what", "id", "operation", "sector", "status", "segments"
    ]  # fmt: skip
    assert re.split(r"\s{2,}", row) == ["0", "0", "request", "5", "READ", "40", "9[0-7]"]
