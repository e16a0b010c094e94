"""What a machine takes of its host, added up before anything starts.

Owns: for each process its mappings, descriptors and threads, a guest's grant frames, and the
shared memory of all; and how a machine that does not fit is refused: one line that names the limit,
what is needed, what there is, and what would do. A limit that the host does not tell refuses
nothing.

What is counted is the most that guests can bring about, whoever they are: dom0 must live whatever
they do.
"""

import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Self

from common.abi import BLKIF_MAX_SEGMENTS_PER_REQUEST, BLKIF_RING_SIZE, XEN_PAGE_SIZE
from common.hypercall_gate import gate_bytes
from common.machine_memory import HOST, MAPTRACK_HANDLES_MAX, whole_pages
from common.trace_log import STATS_BYTES, trace_bytes
from frontend.frames import grant_frames, ram_frames
from hypervisor.domctl import GRANT_FRAMES_MAX
from machine.connection import dom0_frames
from toolstack.loadspec import ConfigError
from toolstack.settings import Settings

MIB: Final = 1 << 20
# What a process with Python, Numba and a thread for each vCPU maps anyway, with room to spare.
MAPPINGS_RESERVED: Final = 4096
ZEROMQ_SOCKETS_MAX: Final = 1023  # of a process, if it is not told otherwise
EVENT_PAGES: Final = 2
MAPPINGS_OF_A_DISK: Final = 3

# Descriptors: those that a process has anyway, with room to spare, and for each guest and each
# ring, with either carrier.
DESCRIPTORS_RESERVED: Final = 64
DESCRIPTORS_A_GUEST: Final = {"dom0": 2, "hypervisor": 8, "xenstored": 2, "the toolstack": 4}
DESCRIPTORS_A_RING: Final = {"dom0": 10, "hypervisor": 4, "xenstored": 0, "the toolstack": 1}
DESCRIPTORS_OF_A_GUEST_S_DISK: Final = 4
THREADS_A_PROCESS: Final = 3  # its own, and two of ZeroMQ's
HUGE_PAGES: Final = 1  # dom0's thread that makes them
PROCESSES: Final = 5  # toolstack, fork server, hypervisor, xenstored, dom0


class Shape(NamedTuple):
    """A machine as its host sees it. disks: that each guest has room for; kept: pages that a ring's
    backend keeps mapped; together: requests of a ring that are mapped together; grant_frames: of
    the guest with most; shared: bytes of shared memory.
    """

    disks: Sequence[int]
    vcpus: int
    kept: int
    together: int
    zeromq: bool
    grant_frames: int
    shared: int

    @classmethod
    def of(cls, machine: Settings) -> Self:
        """That of a machine that could be started."""
        disks = [machine.places_of(domid) for domid in machine.domids]
        maps = machine.mode != "grant-copy"
        return cls(
            disks,
            machine.dom0_vcpus,
            machine.max_persistent_grants if machine.mode == "persistent" else 0,
            (BLKIF_RING_SIZE if machine.batching == "drain" else 1) if maps else 0,
            machine.events == "zeromq",
            grant_frames(max(disks)),
            _shared(machine, disks),
        )

    @property
    def rings(self) -> int:
        """One for each disk."""
        return sum(self.disks)


class Host(NamedTuple):
    """What there is; None where the host does not tell."""

    mappings: int | None
    descriptors: int | None
    threads: int | None
    shared: int | None


def host() -> Host:
    """This host's limits."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Host(
        _number("/proc/sys/vm/max_map_count"),
        None if hard == resource.RLIM_INFINITY else hard,
        _least(
            _number("/proc/sys/kernel/threads-max"),
            _number("/sys/fs/cgroup/pids.max"),
            None if os.geteuid() == 0 else resource.getrlimit(resource.RLIMIT_NPROC)[0],
        ),
        _free_shared(),
    )


def check_host(machine: Settings, there: Host | None = None) -> None:
    """Raises ConfigError with the first limit of this host that `machine` exceeds."""
    shape, there = Shape.of(machine), there or host()
    for complaint in (*_of_xen(shape), *_of_processes(shape, there)):
        raise ConfigError(complaint)


def mappings_of_ring(kept: int, together: int) -> int:
    """Of dom0, at most: the ring's page, its disk's memory with what is kept free at both sides of
    it, and its slots: each is a mapping or, where none beside it is, a part of a hole."""
    slots = kept + BLKIF_RING_SIZE * BLKIF_MAX_SEGMENTS_PER_REQUEST
    mapped = kept + together * BLKIF_MAX_SEGMENTS_PER_REQUEST
    return 1 + MAPPINGS_OF_A_DISK + min(slots, 2 * mapped + 1)


def _shared(machine: Settings, disks: Sequence[int]) -> int:
    """Bytes of the segments that the hypervisor makes (`hypervisor/segments.py`)."""
    frames = machine.buffer_frames
    stats = whole_pages(STATS_BYTES) // XEN_PAGE_SIZE
    pages = [ram_frames(nr, frames) + grant_frames(nr) + EVENT_PAGES + stats for nr in disks]
    dom0 = dom0_frames(sum(disks) if machine.grant_copy else 0) + 1 + EVENT_PAGES
    nr_cpus = machine.dom0_vcpus
    whole = HOST.itemsize, gate_bytes(nr_cpus), MAPTRACK_HANDLES_MAX * 32, trace_bytes(nr_cpus)
    return (sum(pages) + dom0) * XEN_PAGE_SIZE + sum(map(whole_pages, whole))


def _of_xen(shape: Shape) -> Iterator[str]:
    if shape.grant_frames > GRANT_FRAMES_MAX:
        yield (
            f"disks: {max(shape.disks)} of a guest need {shape.grant_frames} grant frames, and a"
            f" domain has at most {GRANT_FRAMES_MAX}; fewer disks would do"
        )
    ring = 1 + shape.together * BLKIF_MAX_SEGMENTS_PER_REQUEST
    if (handles := shape.rings * (shape.kept + ring)) > MAPTRACK_HANDLES_MAX:
        less = MAPTRACK_HANDLES_MAX // shape.rings - ring
        yield (
            f"max-persistent-grants: {shape.kept} for each of {shape.rings} disks may need"
            f" {handles} maptrack handles, and dom0 has {MAPTRACK_HANDLES_MAX};"
            f" {_would_do(less)}"
        )
    if shape.zeromq and shape.rings > ZEROMQ_SOCKETS_MAX:
        yield (
            f"events: zeromq has {ZEROMQ_SOCKETS_MAX} sockets in a process, and dom0 needs one for"
            f" each of {shape.rings} disks; pipe would do"
        )


def _of_processes(shape: Shape, there: Host) -> Iterator[str]:
    rings, guests = f"{shape.rings} disks", len(shape.disks)
    needed, limit = _mappings(shape, shape.kept), there.mappings
    if limit is not None and needed > limit:
        fitting = [kept for kept in range(shape.kept) if _mappings(shape, kept) <= limit]
        yield (
            f"max-persistent-grants: {shape.kept} for each of {rings} may need {needed} mappings in"
            f" dom0, and this host allows {limit} to a process;"
            f" {_would_do(max(fitting, default=-1))}, or a vm.max_map_count of {needed}"
        )
    for process, needed in _descriptors(shape).items():
        if there.descriptors is not None and needed > there.descriptors:
            yield (
                f"disks: {rings} of {guests} guests may need {needed} descriptors in {process}, and"
                f" this host allows {there.descriptors} to a process; fewer disks would do, or a"
                f" hard limit (ulimit -Hn) of {needed}"
            )
    needed = THREADS_A_PROCESS * (PROCESSES + guests) + min(shape.vcpus, shape.rings) + HUGE_PAGES
    if there.threads is not None and needed > there.threads:
        yield (
            f"guests: {guests} and what serves them may need {needed} threads, and this host allows"
            f" {there.threads}; fewer guests would do, or more by ulimit -u, pids.max or"
            " kernel.threads-max"
        )
    if there.shared is not None and shape.shared > there.shared:
        yield (
            f"buffer-mib: the machine's shared memory takes {-(-shape.shared // MIB)} MiB of"
            f" /dev/shm, which has {there.shared // MIB} MiB free; smaller buffers, fewer disks or"
            " a larger /dev/shm would do"
        )


def _mappings(shape: Shape, kept: int) -> int:
    """dom0's, if it keeps so many for each ring."""
    return shape.rings * mappings_of_ring(kept, shape.together) + MAPPINGS_RESERVED


def _would_do(kept: int) -> str:
    return "fewer disks would do" if kept < 0 else f"{kept} would do"


def _descriptors(shape: Shape) -> dict[str, int]:
    """What each process may need."""
    found = {
        process: DESCRIPTORS_RESERVED
        + DESCRIPTORS_A_GUEST[process] * len(shape.disks)
        + DESCRIPTORS_A_RING[process] * shape.rings
        for process in DESCRIPTORS_A_GUEST
    }
    found["dom0"] += 2 * shape.vcpus
    most = DESCRIPTORS_RESERVED + DESCRIPTORS_OF_A_GUEST_S_DISK * max(shape.disks)
    return {**found, "a guest": most}


def _number(path: str) -> int | None:
    """What a file of the kernel's says; None if it says no number."""
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _free_shared() -> int | None:
    try:
        free = os.statvfs("/dev/shm")
    except OSError:
        return None
    return free.f_bavail * free.f_frsize
