"""Where dom0 serves its disks: its vCPUs, each with a thread of its own, and its rings' numbers.

Owns: which vCPU has which disk: in turn. The main thread makes its own hypercalls for a disk on
that vCPU's CPU, too, over a connection of its own: so that a flush spares the CPU it is made on.
"""

import itertools

from backend.due import Key
from backend.ring_numbers import RingNumbers
from backend.vcpu_thread import VcpuThread
from common.hypercall import Hypercalls
from common.machine_memory import RINGS_MAX, MachineMemory, host_of
from common.napping import BACK_SHARE
from common.spinning import new_spin
from common.trace_log import trace_logs
from machine.connection import BackendOptions, Place


class Places:
    """hypercalls, memory: dom0's; run_dir: where ZeroMQ's sockets of guests are."""

    def __init__(
        self, hypercalls: Hypercalls, memory: MachineMemory, run_dir: str, options: BackendOptions
    ) -> None:
        self._host = host_of(memory.segment("host"))[0]
        self._hypercalls, self._memory = hypercalls, memory
        self._run_dir, self._options = run_dir, options
        self._host["dirty"][: options.nr_vcpus] = 1  # booting a domain runs each of its vCPUs once
        self._vcpus: dict[int, VcpuThread] = {}
        self._ways: dict[int, Hypercalls] = {}
        self._traces = trace_logs(memory.segment("trace"), options.nr_vcpus)
        self._numbers = RingNumbers(self._host["backend"], self._traces.rings)
        self._turn = itertools.cycle(range(options.nr_vcpus))

    def take(self, key: Key) -> Place:
        """One for a disk."""
        cpu = next(self._turn)
        if cpu not in self._vcpus:
            self._vcpus[cpu] = self._new_vcpu(cpu)
            self._ways[cpu] = self._hypercalls.get_vcpu(cpu)
        vcpu, way = self._vcpus[cpu], self._ways[cpu]
        return Place(way, self._memory, self._run_dir, *key, vcpu, self._numbers)

    def _new_vcpu(self, cpu: int) -> VcpuThread:
        """Not before it has a disk: the hypervisor looks at each connection all the time."""
        return VcpuThread(
            cpu,
            self._host["running"],
            self._host["dirty"],
            self._hypercalls.get_vcpu(cpu),
            new_spin(self._options.adaptive_spin, self._options.threads, BACK_SHARE),
            self._options.events,
            RINGS_MAX,
            self._traces.backs[cpu],
        )

    def close(self) -> None:
        """End all threads, whose rings have ended."""
        for vcpu in self._vcpus.values():
            vcpu.close()
        for way in self._ways.values():
            way.close()
