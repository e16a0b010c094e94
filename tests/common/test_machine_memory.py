"""Who gets which segment from the hypervisor's memory service, and what lies where in it."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypervisor.memory_service import MemoryService

from common.counters import BACKEND_COUNTERS, CPU_COUNTERS, FRONTEND_COUNTERS, HYPERVISOR_COUNTERS
from common.histogram import BUCKETS
from common.machine_memory import (
    CPUS_MAX,
    DOMAIN_SEGMENTS,
    GUESTS_MAX,
    HOST,
    MACHINE_SEGMENTS,
    STATS,
    MachineMemory,
    SegmentRefused,
    host_of,
    memory_address,
    stats_of,
    wait_for_socket,
    whole_pages,
)
from common.memory import Segment, create_segment

DOMAINS = (0, 1, 2)


def content(domid: int, name: str) -> bytes:
    return f"{domid}/{name}".encode()


@pytest.fixture(scope="module")
def machine() -> Iterator[str]:
    """The run directory of dom0 and two guests, each segment filled with its own name."""
    with tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as run_dir:
        service = MemoryService(run_dir)
        for domid, name in [
            *((domid, name) for domid in DOMAINS for name in DOMAIN_SEGMENTS),
            *((0, name) for name in MACHINE_SEGMENTS),
        ]:
            fd = create_segment(f"grantlab-test-{os.getpid()}-{domid}-{name}", 4096)
            os.pwrite(fd, content(domid, name), 0)
            service.add(domid, name, fd)
        for domid in DOMAINS:
            service.listen(domid)
        yield run_dir
        service.stop()


def text(segment: Segment) -> bytes:
    return segment.bytes.tobytes().rstrip(b"\0")


@pytest.mark.parametrize("name", DOMAIN_SEGMENTS)
@pytest.mark.parametrize("domid", DOMAINS)
def test_a_domain_gets_its_own_segments(machine: str, domid: int, name: str) -> None:
    assert text(MachineMemory(machine, domid).segment(name, domid)) == content(domid, name)


@pytest.mark.parametrize("name", ["ram", "event", "stats"])
def test_dom0_gets_a_guests_memory(machine: str, name: str) -> None:
    assert text(MachineMemory(machine, 0).segment(name, 2)) == content(2, name)


@pytest.mark.parametrize("name", MACHINE_SEGMENTS)
def test_dom0_gets_what_is_the_machines_whatever_domain_it_names(machine: str, name: str) -> None:
    memory = MachineMemory(machine, 0)
    assert text(memory.segment(name)) == text(memory.segment(name, 2)) == content(0, name)


@pytest.mark.parametrize(
    ("caller", "name", "domid"),
    [
        (1, "host", 0),
        (1, "accessed", 0),
        (1, "ram", 0),
        (1, "ram", 2),
        (1, "event", 0),
        (1, "stats", 2),
        (1, "grant", 2),
        (0, "grant", 1),
        (0, "ram", 9),
        (0, "none", 0),
        (0, "", 0),
        (0, "a-name-that-is-too-long", 0),
    ],
)
def test_what_a_domain_may_not_have_is_refused_by_name(
    machine: str, caller: int, name: str, domid: int
) -> None:
    with pytest.raises(SegmentRefused) as refused:
        MachineMemory(machine, caller).segment(name, domid)
    assert str(refused.value) == f"segment '{name}' of domain {domid} was refused"


def test_a_segment_is_mapped_once(machine: str) -> None:
    memory = MachineMemory(machine, 0)
    assert memory.segment("ram", 1) is memory.segment("ram", 1)
    assert memory.segment("ram", 1) is not memory.segment("ram", 2)


def test_two_domains_that_have_a_segment_share_its_bytes(machine: str) -> None:
    mine = MachineMemory(machine, 1).segment("event", 1)
    theirs = MachineMemory(machine, 0).segment("event", 1)
    mine.bytes[4000] = 99
    assert theirs.bytes[4000] == 99


def test_forgetting_a_domain_gives_up_its_segments_and_no_others(machine: str) -> None:
    memory = MachineMemory(machine, 0)
    gone, kept = memory.segment("ram", 1), memory.segment("ram", 2)
    memory.forget(1)
    memory.forget(7)
    assert gone.fd == -1
    assert kept is memory.segment("ram", 2)
    assert os.fstat(kept.fd).st_size == 4096
    assert memory.segment("ram", 1) is not gone


def test_a_service_that_hangs_up_has_refused(run_dir: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(memory_address(run_dir, 1))
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        with pytest.raises((SegmentRefused, BrokenPipeError, ConnectionResetError)):
            MachineMemory(run_dir, 1).segment("ram", 1)
        hanging_up.join()


def test_a_segments_descriptor_is_not_inherited(machine: str) -> None:
    assert not os.get_inheritable(MachineMemory(machine, 1).segment("ram", 1).fd)


@pytest.mark.parametrize(
    ("nbytes", "pages"), [(0, 0), (1, 4096), (4095, 4096), (4096, 4096), (4097, 8192)]
)
def test_bytes_are_rounded_up_to_whole_pages(nbytes: int, pages: int) -> None:
    assert whole_pages(nbytes) == pages


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (STATS, [("counters", FRONTEND_COUNTERS, ()), ("latency", np.dtype("<u8"), (BUCKETS,))]),
        (
            HOST,
            [
                ("hypervisor", HYPERVISOR_COUNTERS, (GUESTS_MAX + 1,)),
                ("backend", BACKEND_COUNTERS, (GUESTS_MAX + 1,)),
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
    view: Callable[[Segment], np.ndarray], record: np.dtype
) -> None:
    name = f"grantlab-test-{os.getpid()}-{id(record)}"
    segment = Segment(create_segment(name, whole_pages(record.itemsize)))
    found = view(segment)
    assert (found.dtype, found.shape) == (record, (1,))
    segment.bytes[:] = 0xFF
    assert found.tobytes() == b"\xff" * record.itemsize
    segment.close()


def test_a_socket_is_waited_for_until_it_is_there(run_dir: str) -> None:
    path = Path(run_dir) / "socket"
    assert not wait_for_socket(str(path), 0)
    path.touch()
    assert wait_for_socket(str(path), 0)
