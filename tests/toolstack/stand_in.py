"""Snapshots made by hand, and a machine that is only arithmetic: no process, no clock."""

from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np

from common.counters import (
    BACKEND_COUNTERS,
    CPU_COUNTERS,
    FRONTEND_COUNTERS,
    HYPERVISOR_COUNTERS,
    OPERATIONS,
    READS,
)
from common.histogram import BUCKETS, bucket_of
from toolstack.loadspec import LoadSpec
from toolstack.snapshot import Snapshot
from toolstack.topology import Topology
from toolstack.verify_state import Verdict

Given = dict[int, Any] | None  # a guest's values, or a list of its disks'


def record(dtype: np.dtype[np.void], **values: int) -> np.ndarray:
    """A one-element counter block, zero but for `values`."""
    block = np.zeros(1, dtype)
    for name, value in values.items():
        block[name] = value
    return block


def latencies(*microseconds: int) -> np.ndarray:
    """A latency block of these."""
    counts = np.zeros(BUCKETS, np.uint64)
    for value in microseconds:
        counts[bucket_of(value * 1000)] += np.uint64(1)
    return counts


def reads(*microseconds: int) -> np.ndarray:
    """A disk's latency blocks, of reads that took so long: u64, (len(OPERATIONS), BUCKETS)."""
    found = np.zeros((len(OPERATIONS), BUCKETS), np.uint64)
    found[READS] = latencies(*microseconds)
    return found


def snapshot(
    at_s: float = 0.0,
    *,
    frontend: Given = None,
    backend: Given = None,
    hypervisor: Given = None,
    latency: dict[int, tuple[int, ...]] | None = None,
    disks: int = 1,
    ipis_received: tuple[int, ...] = (0, 0),
    host_tlb_shootdowns: int | None = 0,
    cpu_seconds: float = 0.0,
    suspects: frozenset[int] = frozenset(),
) -> Snapshot:
    """A snapshot of guests 1 and 2, zero but for what is named: a guest's first disks' values.

    latency: of reads of a guest's first disk.
    """
    domids = (1, 2)
    cpus = np.zeros(len(ipis_received), CPU_COUNTERS)
    cpus["ipis_received"] = ipis_received

    def blocks(dtype: Any, given: Given, rows: int = disks) -> dict[int, np.ndarray]:
        found = {domid: np.zeros(rows, dtype) for domid in domids}
        for domid, values in (given or {}).items():
            for at, row in enumerate(values if isinstance(values, list) else [values]):
                found[domid][at] = record(dtype, **row)[0]
        return found

    def histograms(domid: int) -> np.ndarray:
        first = reads(*(latency or {}).get(domid, ()))
        return np.stack([first, *[np.zeros_like(first)] * (disks - 1)])

    return Snapshot(
        at_s=at_s,
        frontend=blocks(FRONTEND_COUNTERS, frontend),
        backend=blocks(BACKEND_COUNTERS, backend),
        hypervisor=blocks(HYPERVISOR_COUNTERS, hypervisor, 1),
        latency={domid: histograms(domid) for domid in domids},
        cpus=cpus,
        host_tlb_shootdowns=host_tlb_shootdowns,
        cpu_seconds=cpu_seconds,
        suspects=suspects,
    )


class StandIn:
    """What `toolstack.machine.Machine` is to the command line, without processes.

    A request of 4 KiB costs what the mode says; a step of the load is half a second and 1,000
    requests a disk. during_load is called after the first step.
    """

    def __init__(
        self,
        topology: Topology,
        during_load: Callable[["StandIn"], None] = lambda machine: None,
    ) -> None:
        self.topology = topology
        self.during_load = during_load
        self.specs: list[LoadSpec] = []
        self.xenstore_path, self.run_dir = "/run/stand-in/xenstored", "/run/stand-in"
        self.pids = {"hypervisor": 11, "dom0": 12}
        self.pids |= {f"guest-{domid}": 12 + domid for domid in self._domids()}
        self.times_closed = 0
        self._now_s, self._steps = 100.0, 0
        self.verify_errors = self.io_errors = self.left_mapped = self.bad_requests = 0
        self.suspects: frozenset[int] = frozenset()
        self.booted: Snapshot | None = self.snapshot()
        self.connected: Snapshot | None = self.snapshot()
        self.closed: Snapshot | None = None
        self.close_failure = ""
        self.failures: dict[str, str] = {}
        self.verdicts: list[Verdict] = []

    def _domids(self) -> range:
        return self.topology.domids

    def _rows(self, domid: int, row: np.ndarray) -> np.ndarray:
        """The same for each of a guest's disks."""
        return np.repeat(row, self.topology.rows_of(domid), axis=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.times_closed += 1
        self.closed = self.snapshot()

    def snapshot(self) -> Snapshot:
        domids, requests = self._domids(), 1000 * self._steps
        maps = 0 if self.topology.mode in ("persistent", "grant-copy") else requests
        targets = self.topology.dom0_vcpus - 1
        cpus = np.zeros(self.topology.dom0_vcpus, CPU_COUNTERS)
        cpus["ipis_received"][1:] = maps * self.topology.guests
        front = {
            "ios": requests,
            "requests": requests,
            "segments": requests,
            "bytes_read": requests * 4096,
            "verify_errors": self.verify_errors,
            "io_errors": self.io_errors,
        }
        back = {"bad_requests": self.bad_requests, "map_ops": maps}
        hypervisor = {
            "map_ops": maps,
            "unmap_ops": maps,
            "flushes": maps,
            "hypercalls": 2 * maps,
            "ipis": maps * targets,
            "grants_mapped": self.left_mapped,
        }
        return Snapshot(
            at_s=self._now_s,
            frontend={d: self._rows(d, record(FRONTEND_COUNTERS, **front)) for d in domids},
            backend={d: self._rows(d, record(BACKEND_COUNTERS, **back)) for d in domids},
            hypervisor={d: record(HYPERVISOR_COUNTERS, **hypervisor) for d in domids},
            latency={d: self._rows(d, reads(*[50] * self._steps)[None]) for d in domids},
            cpus=cpus,
            host_tlb_shootdowns=7 * self._steps,
            cpu_seconds=0.5 * self._steps,
            suspects=self.suspects,
        )

    def load(self, spec: LoadSpec, every_s: float = 0.5) -> Iterator[Snapshot]:
        self.specs.append(spec)
        for step in range(4):
            self._now_s += every_s
            self._steps += 1
            if step == 1:
                self.during_load(self)
            yield self.snapshot()

    def guest(self, domid: int) -> Any:
        raise NotImplementedError

    def counters(self) -> dict[str, Any]:
        raise NotImplementedError

    def judge(self) -> list[Verdict]:
        return self.verdicts


class Starter:
    """Starts stand-ins, and remembers them: the `obj` to hand to the command line."""

    def __init__(self, during_load: Callable[[StandIn], None] = lambda machine: None) -> None:
        self.machines: list[StandIn] = []
        self.verdicts: list[Verdict] = []
        self._during_load = during_load

    def __call__(self, topology: Topology) -> StandIn:
        self.machines.append(StandIn(topology, self._during_load))
        self.machines[-1].verdicts = self.verdicts
        return self.machines[-1]
