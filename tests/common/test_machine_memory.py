"""dom0's view of the machine's segments, and what lies where in them."""

import errno
import os
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pytest

from common.counters import CPU_COUNTERS, FRONTEND_COUNTERS, HYPERVISOR_COUNTERS
from common.histogram import BUCKETS
from common.hypercall import HypercallError, Hypercalls
from common.machine_memory import (
    BACKEND_RING,
    CPUS_MAX,
    GUESTS_MAX,
    HOST,
    RINGS_MAX,
    STATS,
    MachineMemory,
    host_of,
    stats_of,
    whole_pages,
)
from common.memory import create_segment
from common.process import open_descriptors


class Asked:
    """The hypercalls of dom0: each segment begins with its own name; what was asked, in order.

    (Who gets what from the real ones: tests/hypervisor/test_domctl.py.)
    """

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []
        self._segments: dict[tuple[int, str], int] = {}

    def get_memory(self, domid: int, segment: str) -> int:
        self.asked.append((domid, segment))
        if segment == "none":
            raise HypercallError(f"segment: {errno.errorcode[errno.ESRCH]}")
        key = (domid, segment)
        if key not in self._segments:
            fd = create_segment(f"grantlab-test-{os.getpid()}-{domid}-{segment}", 4096)
            os.pwrite(fd, f"{domid}/{segment}".encode(), 0)
            self._segments[key] = fd
        return os.dup(self._segments[key])

    def close(self) -> None:
        for fd in self._segments.values():
            os.close(fd)


@pytest.fixture
def asked() -> Iterator[Asked]:
    asked = Asked()
    yield asked
    asked.close()


@pytest.fixture
def memory(asked: Asked) -> MachineMemory:
    return MachineMemory(cast(Hypercalls, asked))


def text(segment: np.ndarray) -> bytes:
    return segment.tobytes().rstrip(b"\0")


def test_a_segment_is_asked_for_and_mapped_once(memory: MachineMemory, asked: Asked) -> None:
    first = memory.segment("ram", 1)
    assert text(first) == b"1/ram"
    assert memory.segment("ram", 1) is first
    assert text(memory.segment("ram", 2)) == b"2/ram"
    assert text(memory.segment("host")) == b"0/host"
    assert asked.asked == [(1, "ram"), (2, "ram"), (0, "host")]


def test_a_mapping_keeps_no_descriptor(memory: MachineMemory, asked: Asked) -> None:
    os.close(asked.get_memory(1, "ram"))
    held = len(open_descriptors())
    memory.segment("ram", 1)
    assert len(open_descriptors()) == held


def test_a_descriptor_is_asked_for_once_and_maps_nothing(
    memory: MachineMemory, asked: Asked
) -> None:
    fd = memory.descriptor("ram", 1)
    assert memory.descriptor("ram", 1) == fd
    assert os.pread(fd, 5, 0) == b"1/ram"
    assert asked.asked == [(1, "ram")]
    memory.forget(1)


def test_what_is_refused_is_an_error_each_time(memory: MachineMemory, asked: Asked) -> None:
    for _ in range(2):
        with pytest.raises(HypercallError, match="ESRCH"):
            memory.segment("none")
        with pytest.raises(HypercallError, match="ESRCH"):
            memory.descriptor("none", 1)
    assert len(asked.asked) == 4


def test_forgetting_a_domain_gives_up_its_segments_and_no_others(
    memory: MachineMemory, asked: Asked
) -> None:
    fd, kept_fd = memory.descriptor("ram", 1), memory.descriptor("ram", 2)
    gone, kept = memory.segment("event", 1), memory.segment("event", 2)
    memory.forget(1)
    memory.forget(7)
    assert fd not in open_descriptors()
    assert memory.descriptor("ram", 2) == kept_fd and memory.segment("event", 2) is kept
    again = memory.segment("event", 1)
    assert again is not gone
    again[100] = 7
    assert gone[100] == 7  # a view that somebody still has stays good
    memory.forget(1)
    memory.forget(2)


@pytest.mark.parametrize(
    ("nbytes", "pages"), [(0, 0), (1, 4096), (4095, 4096), (4096, 4096), (4097, 8192)]
)
def test_bytes_are_rounded_up_to_whole_pages(nbytes: int, pages: int) -> None:
    assert whole_pages(nbytes) == pages


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (
            STATS,
            [
                ("counters", FRONTEND_COUNTERS, (16,)),
                ("latency", np.dtype("<u8"), (16, 3, BUCKETS)),
            ],
        ),
        (
            HOST,
            [
                ("hypervisor", HYPERVISOR_COUNTERS, (GUESTS_MAX + 1,)),
                ("backend", BACKEND_RING, (RINGS_MAX,)),
                ("cpus", CPU_COUNTERS, (CPUS_MAX,)),
                ("dirty", np.dtype("<u4"), (CPUS_MAX,)),
                ("running", np.dtype("<u4"), (CPUS_MAX,)),
            ],
        ),
    ],
)
def test_a_shared_record_holds_each_block_aligned_for_atomic_words(
    record: np.dtype, fields: list[tuple[str, np.dtype, tuple[int, ...]]]
) -> None:
    assert record.fields is not None
    found = [(name, kind.base, kind.shape) for name, (kind, *_) in record.fields.items()]
    assert found == fields
    assert [at % 8 for _, at, *_ in record.fields.values()] == [0] * len(fields)
    assert record.itemsize % 8 == 0


@pytest.mark.parametrize(("view", "record"), [(stats_of, STATS), (host_of, HOST)])
def test_a_record_is_a_view_of_its_segments_first_bytes(
    view: Callable[[np.ndarray], np.ndarray], record: np.dtype
) -> None:
    segment = np.zeros(whole_pages(record.itemsize), np.uint8)
    found = view(segment)
    assert (found.dtype, found.shape) == (record, (1,))
    segment[:] = 0xFF
    assert found.tobytes() == b"\xff" * record.itemsize
