"""What threads share besides the flush lock: memory's bandwidth, the table lock, 2012's requests.

Owns: three resources. The first two are booked ahead: a user is told how long it takes, the
resource is busy until then, and the virtual clock need not stop for it.
"""

from typing import Final

import simpy

from common.abi import XEN_PAGE_SIZE
from simulator.costs import Costs
from simulator.cpus import Steps

COLD_TRAFFIC: Final = 3  # bytes moved for each byte copied: read, read for ownership, write back


class Channel:
    """A resource that serves one user after another."""

    def __init__(self, env: simpy.Environment) -> None:
        self.busy_ns = 0.0
        self._env = env
        self._free_at = 0.0

    def book(self, ns: float) -> float:
        """Use it for `ns` as soon as it is free; how long it takes from now."""
        now = float(self._env.now)
        self._free_at = max(now, self._free_at) + ns
        self.busy_ns += ns
        return self._free_at - now


class Memory:
    """Copies: a CPU's own speed, as long as all CPUs together stay below the memory's."""

    def __init__(self, env: simpy.Environment, costs: Costs) -> None:
        self.channel = Channel(env)
        self._cold_ns, self._hot_ns = costs.copy_cold_ns, costs.copy_hot_ns
        self._traffic_ns = COLD_TRAFFIC * 1000 / costs.memory_bytes_a_us

    def cold_ns(self, nbytes: int) -> int:
        """A copy between a page and the ramdisk."""
        own = self._cold_ns * nbytes / XEN_PAGE_SIZE
        return int(max(own, self.channel.book(self._traffic_ns * nbytes)))

    def hot_ns(self, nbytes: int) -> int:
        """A copy between two pages in the CPU's cache: no traffic."""
        return int(self._hot_ns * nbytes / XEN_PAGE_SIZE)


class RequestPool:
    """blkback's pool of pending requests (2012: 64 for all guests); `size` None: no limit."""

    def __init__(self, env: simpy.Environment, size: int | None) -> None:
        self.waits = 0
        self._env, self._free = env, size
        self._wanted: list[simpy.Event] = []

    def room(self, most: int) -> int:
        """How many requests may be taken now."""
        return most if self._free is None else min(most, self._free)

    def wait(self) -> Steps:
        """Until a request is given back."""
        self.waits += 1
        given = self._env.event()
        self._wanted.append(given)
        yield given

    def take(self, count: int) -> None:
        """Have `count` in flight; there is room."""
        if self._free is not None:
            self._free -= count
            assert self._free >= 0

    def give(self, count: int) -> None:
        """They are answered."""
        if self._free is not None and count:
            self._free += count
            wanted, self._wanted = self._wanted, []
            for event in wanted:
                event.succeed()
