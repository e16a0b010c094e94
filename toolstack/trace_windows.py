"""The logs of a machine while it is traced: written for a moment, then read, then again.

Owns: when logs are on. Who writes them is each process itself (`common/trace_log.py`); between two
moments nothing is written, and what is written in one is bounded by the logs' sizes.
Rule: a guest's log is the guest's to write: how much there is in it is bounded here, what is in it
is for the reader to check (`toolstack/timeline.py`).
"""

import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from common.hypercall import HypercallError
from common.machine_memory import MachineMemory
from common.trace_log import Log, front_log, trace_logs

S: Final = 10**9  # nanoseconds
U64: Final = (1 << 64) - 1

Key = tuple[str, int]  # "front" of a domid, "back" of a vCPU, "calls" of the hypervisor (0)


class TraceWindows:
    """Of a machine with these guests and vCPUs of dom0."""

    def __init__(self, memory: MachineMemory, domids: Sequence[int], nr_cpus: int) -> None:
        self._memory, self._domids, self._nr_cpus = memory, domids, nr_cpus
        self._began: dict[Key, int] = {}

    def open(self, seconds: float) -> int:
        """From now on, for so long, everybody writes. When that ends, of CLOCK_MONOTONIC."""
        until_ns = time.monotonic_ns() + int(seconds * S)
        for key, log in self._logs().items():
            began = int(log.head["written"][0])
            self._began[key] = began
            log.head["limit"] = (began + len(log.entries)) & U64
            log.head["until_ns"] = until_ns
        return until_ns

    def take(self) -> dict[str, Any]:
        """What has been written since, as plain values: for each log its kind, its number, how many
        entries, and their bytes. rings: RING_NAME, of dom0."""
        found = []
        for key, log in self._logs().items():
            log.head["until_ns"] = 0
            began, size = self._began.get(key, 0), len(log.entries)
            count = max(0, min(int(log.head["written"][0]) - began, size))
            places = (began % size + np.arange(count)) % size
            found.append((*key, count == size, log.entries[places].tobytes()))
        return {"logs": found, "rings": self._traces().rings.tobytes()}

    def _traces(self) -> Any:
        return trace_logs(self._memory.segment("trace"), self._nr_cpus)

    def _logs(self) -> dict[Key, Log]:
        traces = self._traces()
        found: dict[Key, Log] = {("calls", 0): traces.calls}
        found |= {("back", cpu): log for cpu, log in enumerate(traces.backs)}
        for domid in self._domids:
            try:
                found["front", domid] = front_log(self._memory.segment("stats", domid))
            except HypercallError:
                continue  # it has died
        return found
