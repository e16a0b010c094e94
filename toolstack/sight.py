"""Where a machine's counters are had from: the memory that its processes write them into.

Owns: the taking of a snapshot. What one is, is `toolstack/snapshot.py`'s.
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from common.counters import BACKEND_COUNTERS
from common.machine_memory import MachineMemory, backend_ring, host_of
from toolstack.cpu_time import CpuTime
from toolstack.disks import device_of
from toolstack.guest_stats import GuestStats
from toolstack.load_fields import VDEVS
from toolstack.settings import Settings
from toolstack.snapshot import Snapshot, host_tlb_shootdowns


class Sight:
    """Of a machine of this shape. stats: what its guests count, by domid; rows: how many of a
    guest's disks are looked at, by number: as many as it has had, so that sums only grow.
    """

    def __init__(
        self, memory: MachineMemory, topology: Settings, stats: Mapping[int, GuestStats]
    ) -> None:
        self._memory, self._stats = memory, stats
        self._nr_cpus = topology.dom0_vcpus
        self.rows = {domid: topology.rows_of(domid) for domid in topology.domids}
        self._cpu_time = CpuTime()

    def snapshot(self, pids: Sequence[int]) -> Snapshot:
        """Every counter as it stands; pids: whose CPU time counts."""
        host = host_of(self._memory.segment("host"))[0]
        stats = {domid: self._stats[domid].read() for domid in self.rows}
        return Snapshot(
            at_s=time.monotonic(),
            frontend={d: stats[d].counters[:rows] for d, rows in self.rows.items()},
            backend={d: self._backend(host, d, rows) for d, rows in self.rows.items()},
            hypervisor={d: host["hypervisor"][d : d + 1].copy() for d in self.rows},
            latency={d: stats[d].latency[:rows] for d, rows in self.rows.items()},
            cpus=host["cpus"][: self._nr_cpus].copy(),
            host_tlb_shootdowns=host_tlb_shootdowns(),
            cpu_seconds=self._cpu_time.seconds(list(pids)),
            suspects=frozenset(d for d in self.rows if self._stats[d].suspect),
        )

    @staticmethod
    def _backend(host: np.void, domid: int, rows: int) -> np.ndarray:
        """What dom0 counts for a guest's disks, by number: nothing for one it has not met yet, and
        all that it has counted for one that has gone."""
        found = np.zeros(rows, BACKEND_COUNTERS)
        for number, vdev in enumerate(VDEVS[:rows]):
            ring = backend_ring(host, domid, device_of(vdev))
            if ring is not None:
                found[number : number + 1] = ring
        return found
