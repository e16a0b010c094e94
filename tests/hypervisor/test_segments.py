"""The machine's segments: found by domain and name, and gone with their domain."""

import os
import secrets
from collections.abc import Iterator

import numpy as np
import pytest

from common.machine_memory import MACHINE_SEGMENTS
from common.process import open_descriptors
from hypervisor.segments import Segments


@pytest.fixture
def segments() -> Iterator[Segments]:
    before = open_descriptors()
    segments = Segments(f"test-{secrets.token_hex(4)}")
    yield segments
    for domid in range(4):
        segments.forget(domid)
    assert open_descriptors() == before


@pytest.mark.parametrize(("nbytes", "mapped"), [(1, 4096), (4096, 4096), (4097, 8192)])
def test_a_segment_is_zeroed_whole_pages_and_its_descriptor_is_of_the_same(
    segments: Segments, nbytes: int, mapped: int
) -> None:
    made = segments.make(1, "ram", nbytes)
    assert (made.dtype, made.shape, int(made.sum())) == (np.uint8, (mapped,), 0)
    fd = segments.descriptor(1, "ram")
    assert fd is not None and os.fstat(fd).st_size == mapped
    made[-1] = 9
    assert os.pread(fd, 1, mapped - 1) == b"\x09"


def test_segments_are_found_by_domain_and_name(segments: Segments) -> None:
    for domid in (1, 2):
        for name in ("ram", "event"):
            segments.make(domid, name, 4096)[0] = domid * 16 + len(name)
    for domid in (1, 2):
        for name in ("ram", "event"):
            fd = segments.descriptor(domid, name)
            assert fd is not None and os.pread(fd, 1, 0)[0] == domid * 16 + len(name)
    assert segments.descriptor(3, "ram") is None
    assert segments.descriptor(1, "disk") is None


@pytest.mark.parametrize("name", MACHINE_SEGMENTS)
def test_the_machines_are_found_whoever_is_named(segments: Segments, name: str) -> None:
    assert segments.descriptor(0, name) is segments.descriptor(5, name) is None
    segments.make(0, name, 4096)
    assert segments.descriptor(0, name) == segments.descriptor(5, name) is not None


def test_a_forgotten_domain_keeps_no_descriptor_and_its_mappings_live_on(
    segments: Segments,
) -> None:
    gone, kept = segments.make(1, "ram", 4096), segments.make(2, "ram", 4096)
    segments.make(0, "host", 4096)
    segments.forget(1)
    segments.forget(1)
    assert segments.descriptor(1, "ram") is None
    assert segments.descriptor(2, "ram") is not None
    assert segments.descriptor(1, "host") is not None
    gone[:] = 1
    assert not kept.any()
    assert not segments.make(1, "ram", 4096).any()
