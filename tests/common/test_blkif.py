"""The packed words of compiled code against the layouts of the headers."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import abi, blkif, ring

U8, U16, U32 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32))
U64 = st.integers(0, 2**64 - 1).map(np.uint64)  # Numba takes a plain int for an i64
SEGMENTS = st.lists(st.tuples(U32, U8, U8), max_size=11)
NO_DEADLINE = settings(deadline=None)  # the first example compiles
SLOT = ring.HEADER_QWORDS + ring.SLOT_QWORDS  # the second slot: there is something on both sides


def page_of(byte: int) -> np.ndarray:
    return np.full(4096, byte, np.uint8).view(np.uint64)


def request_at(qwords: np.ndarray, at: int) -> np.void:
    return qwords[at : at + 14].view(abi.BLKIF_REQUEST)[0]


def test_a_slot_is_14_words_and_the_header_8() -> None:
    assert (ring.SLOT_QWORDS, ring.HEADER_QWORDS) == (14, 8)


@NO_DEADLINE
@given(U8, U8, U16, U64, U64, SEGMENTS)
def test_a_request_is_written_where_the_layout_has_it(
    operation: int,
    nr_segments: int,
    handle: int,
    id_: Any,
    sector: Any,
    segments: list[tuple[int, int, int]],
) -> None:
    qwords = page_of(0)
    blkif.put_request(qwords, SLOT, operation, nr_segments, handle, id_, sector)
    for index, segment in enumerate(segments):
        blkif.put_segment(qwords, SLOT, index, *segment)
    expected = np.zeros(1, abi.BLKIF_REQUEST)
    for name, value in (
        ("operation", operation),
        ("nr_segments", nr_segments),
        ("handle", handle),
        ("id", id_),
        ("sector_number", sector),
    ):
        expected[name] = value
    for index, segment in enumerate(segments):
        expected["seg"][0, index] = segment
    page = np.zeros(4096, np.uint8)
    page[SLOT * 8 : SLOT * 8 + 112] = expected.view(np.uint8)
    assert qwords.tobytes() == page.tobytes()


@NO_DEADLINE
@given(st.binary(min_size=112, max_size=112))
def test_what_is_read_from_a_request_is_what_the_layout_says(data: bytes) -> None:
    words = np.frombuffer(data, np.uint64)
    request = np.frombuffer(data, abi.BLKIF_REQUEST)[0]
    assert blkif.operation_of(words[0]) == request["operation"]
    assert blkif.nr_segments_of(words[0]) == request["nr_segments"]
    assert words[blkif.ID] == request["id"]
    assert words[blkif.SECTOR] == request["sector_number"]
    for index, segment in enumerate(request["seg"]):
        word = words[blkif.SEGMENTS + index]
        read = (blkif.gref_of(word), blkif.first_sect_of(word), blkif.last_sect_of(word))
        assert read == segment.item()


@NO_DEADLINE
@given(st.binary(min_size=112, max_size=112))
def test_a_copied_request_is_its_112_bytes(data: bytes) -> None:
    qwords = page_of(0xEE)
    qwords[SLOT : SLOT + 14] = np.frombuffer(data, np.uint64)
    copy = np.zeros(14, np.uint64)
    blkif.copy_request(qwords, SLOT, copy)
    assert copy.tobytes() == data


def test_a_copy_does_not_follow_what_the_guest_writes_later() -> None:
    qwords, copy = page_of(0), np.zeros(14, np.uint64)
    blkif.put_request(qwords, SLOT, 0, 1, 0, 5, 8)
    blkif.put_segment(qwords, SLOT, 0, 42, 0, 7)
    blkif.copy_request(qwords, SLOT, copy)
    before = copy.tobytes()
    qwords[SLOT : SLOT + 14] = 2**64 - 1
    assert copy.tobytes() == before


def test_a_new_segment_replaces_all_of_the_old_one() -> None:
    qwords = page_of(0xFF)
    blkif.put_segment(qwords, SLOT, 3, 8, 0, 7)
    assert request_at(qwords, SLOT)["seg"][3].item() == (8, 0, 7)
    assert qwords[SLOT + 6 : SLOT + 7].tobytes() == b"\x08\0\0\0\0\x07\0\0"


@NO_DEADLINE
@given(U64, U8, st.integers(-(2**15), 2**15 - 1), U8)
def test_a_response_is_16_bytes_whose_padding_is_zero_whatever_was_there(
    id_: Any, operation: int, status: int, stale: int
) -> None:
    qwords = page_of(stale)
    blkif.put_response(qwords, SLOT, id_, operation, status)
    expected = np.full(4096, stale, np.uint8)
    response = np.zeros(1, abi.BLKIF_RESPONSE)
    response["id"], response["operation"], response["status"] = id_, operation, status
    expected[SLOT * 8 : SLOT * 8 + 16] = response.view(np.uint8)
    assert qwords.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (0, b"\0\0"),
        (-1, b"\xff\xff"),
        (-2, b"\xfe\xff"),
        (-(2**15), b"\0\x80"),
        (2**15 - 1, b"\xff\x7f"),
    ],
)
def test_a_status_is_sign_extended_and_what_surrounds_it_ignored(status: int, raw: bytes) -> None:
    for around in (b"\0", b"\xff"):
        word = np.frombuffer(around * 2 + raw + around * 4, np.uint64)[0]
        assert blkif.status_of(word) == status


@NO_DEADLINE
@given(U64, U8, st.integers(-(2**15), 2**15 - 1))
def test_what_is_read_from_a_response_is_what_was_written(
    id_: Any, operation: int, status: int
) -> None:
    qwords = page_of(0xFF)
    blkif.put_response(qwords, SLOT, id_, operation, status)
    assert qwords[SLOT] == id_
    assert blkif.operation_of(qwords[SLOT + 1]) == operation
    assert blkif.status_of(qwords[SLOT + 1]) == status
