"""NBD's layouts, and that kernels put and take the same bytes."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from common.nbd_wire import (
    CMD_TRIM,
    IHAVEOPT,
    NBDMAGIC,
    REQUEST,
    REQUEST_MAGIC,
    put_number,
    put_request,
    take_number,
)

U64 = st.integers(0, 2**64 - 1)


def test_the_magic_words_are_words() -> None:
    assert NBDMAGIC.to_bytes(8, "big") == b"NBDMAGIC"
    assert IHAVEOPT.to_bytes(8, "big") == b"IHAVEOPT"


@settings(deadline=None)
@given(U64, U64, st.integers(0, 2**32 - 1), st.integers(0, 3))
def test_a_request_has_its_layout(cookie: int, offset: int, length: int, at: int) -> None:
    data = np.full(36, 0xAA, np.uint8)
    put_request(data, at, CMD_TRIM, np.uint64(cookie), np.uint64(offset), length)
    packed = REQUEST.pack(REQUEST_MAGIC, 0, CMD_TRIM, cookie, offset, length)
    assert data.tobytes() == b"\xaa" * at + packed + b"\xaa" * (8 - at)


@settings(deadline=None)
@given(st.sampled_from([2, 4, 8]), U64, st.integers(0, 7))
def test_a_number_is_taken_as_it_was_put(nbytes: int, number: int, at: int) -> None:
    number >>= 64 - 8 * nbytes
    data = np.zeros(16, np.uint8)
    put_number(data, at, nbytes, np.uint64(number))
    assert data.tobytes()[at : at + nbytes] == number.to_bytes(nbytes, "big")
    assert int(take_number(data, at, nbytes)) == number
    assert not data[:at].any() and not data[at + nbytes :].any()
