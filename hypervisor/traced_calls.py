"""The hypercalls of the gate while they are traced: when, how long, and whom a flush interrupted.

Owns: what of a call goes into the log (`common/trace_log.py`).
"""

import time

import numpy as np

from common.trace_log import Log


class TracedCalls:
    """log: of CALL_ENTRY; cpus: CPU_COUNTERS, by worker CPU."""

    def __init__(self, log: Log, cpus: np.ndarray) -> None:
        self._log, self._cpus = log, cpus
        self.is_on = log.asks()  # now? to be asked before each call
        self._began_ns, self._before = 0, cpus.copy()

    def begin(self) -> None:
        """A call is made now."""
        self._began_ns, self._before = time.monotonic_ns(), self._cpus.copy()

    def end(self, vcpu: int, cmd: int) -> None:
        """It has been made, for a vCPU."""
        head, entries = self._log
        entry = entries[int(head["written"][0]) % len(entries)]
        received = self._cpus["ipis_received"] - self._before["ipis_received"]
        entry["at_ns"], entry["end_ns"] = self._began_ns, time.monotonic_ns()
        entry["vcpu"], entry["cmd"] = vcpu, cmd
        entry["flushes"] = int((self._cpus["flushes"] - self._before["flushes"]).sum())
        entry["ipis"] = int(received.sum())
        bits = np.packbits(received[:256] > 0, bitorder="little")
        entry["interrupted"] = np.frombuffer(bits.tobytes().ljust(32, b"\0"), "<u8")
        head["written"] += np.uint64(1)
