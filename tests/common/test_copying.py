"""Bytes from one address to another, and not one more."""

import mmap

import numpy as np
import pytest

from common.copying import address_of, byte_view, copy_bytes, copy_page

GUARD = 64


@pytest.mark.parametrize("size", [0, 1, 7, 8, 511, 512, 513, 4095, 4096, 4097, 45056])
@pytest.mark.parametrize("shift", [0, 1, 8])
def test_exactly_the_bytes_asked_for_are_copied(size: int, shift: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size + GUARD, np.uint8)
    dest = np.full(size + 2 * GUARD, 0xA5, np.uint8)
    copy_bytes(address_of(dest) + GUARD, address_of(source) + shift, size)
    assert (dest[GUARD : GUARD + size] == source[shift : shift + size]).all()
    assert (dest[:GUARD] == 0xA5).all()
    assert (dest[GUARD + size :] == 0xA5).all()


def test_a_page_is_4096_bytes() -> None:
    source = np.random.default_rng(1).integers(0, 256, 4096, np.uint8)
    dest = np.full(4096 + 2 * GUARD, 0xA5, np.uint8)
    copy_page(address_of(dest) + GUARD, address_of(source))
    assert (dest[GUARD:-GUARD] == source).all()
    assert (dest[:GUARD] == 0xA5).all()
    assert (dest[-GUARD:] == 0xA5).all()


def test_the_address_of_a_slice_is_where_the_slice_begins() -> None:
    array = np.zeros(100, np.uint32)
    assert address_of(array[7:]) == address_of(array) + 28


def test_a_byte_view_is_the_memory_itself() -> None:
    memory = mmap.mmap(-1, 4096)
    array = np.frombuffer(memory, np.uint8)
    view = byte_view(address_of(array) + 100, 5)
    assert (view.dtype, view.shape) == (np.uint8, (5,))
    view[:] = 7
    assert memory[99:106] == b"\0\7\7\7\7\7\0"
    memory[100] = 9
    assert view[0] == 9
