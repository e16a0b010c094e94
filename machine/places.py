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
from common.spinning import new_spin
from machine.connection import BackendOptions, Place


class Places:
    """hypercalls, memory: dom0's; run_dir: where ZeroMQ's sockets of guests are."""

    def __init__(
        self, hypercalls: Hypercalls, memory: MachineMemory, run_dir: str, options: BackendOptions
    ) -> None:
        host = host_of(memory.segment("host"))
        self._memory, self._run_dir = memory, run_dir
        self._vcpus = [
            VcpuThread(
                cpu,
                host["running"][0],
                host["dirty"][0],
                hypercalls.get_vcpu(cpu),
                new_spin(options.adaptive_spin, options.threads),
                options.events,
                RINGS_MAX,
            )
            for cpu in range(options.nr_vcpus)
        ]
        self._hypercalls = [hypercalls.get_vcpu(vcpu.cpu) for vcpu in self._vcpus]
        self._numbers = RingNumbers(host["backend"][0])
        self._turn = itertools.cycle(self._vcpus)

    def take(self, key: Key) -> Place:
        """One for a disk."""
        vcpu = next(self._turn)
        way = self._hypercalls[vcpu.cpu]
        return Place(way, self._memory, self._run_dir, *key, vcpu, self._numbers)

    def close(self) -> None:
        """End all threads, whose rings have ended."""
        for vcpu in self._vcpus:
            vcpu.close()
        for hypercalls in self._hypercalls:
            hypercalls.close()
