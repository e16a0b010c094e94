"""What a hypercall does: from the caller, a number and an array of Xen's structs to statuses.

Owns: the dispatch, and a domain's beginning and end. The calls themselves are in `grant_calls.py`
and `port_calls.py`. Sans-I/O: `machine/broker.py` brings the calls from connections and gates, a
simulator or a test makes them directly. All state lies in the arena.
Rules: the caller is given, never read from the arguments. What a caller sends can make its own call
fail and nothing else. Each entry of a grant-table call has its own status; the call itself fails
(-errno) only where its form is wrong.
"""

import errno
from functools import partial

import numpy as np

from common import abi
from common.arena import Arena
from common.not_done import GNTST_UNFILLED
from hypervisor.cpus import NO_CPU, Cpus
from hypervisor.domains import (
    BACKEND,
    GUEST,
    GUEST_HANDLES_MAX,
    Caller,
    Domain,
    DomainMemory,
    Domains,
)
from hypervisor.grant_calls import GRANT_CALLS, GrantCalls
from hypervisor.port_calls import PORT_CALLS, PortCalls


class Hypervisor:
    """The machine's hypercalls. cpus: the worker CPUs that backends run on."""

    def __init__(self, cpus: Cpus, arena: Arena) -> None:
        self.cpus = cpus
        self.domains = Domains(arena)
        self._grants = GrantCalls(self.domains, cpus, arena)
        self._ports = PortCalls(self.domains)
        # By hypercall and command: the struct, whether only one is taken, and what to do.
        self.operations: dict[tuple[int, int], tuple[np.dtype[np.void], bool, partial[int]]] = {
            (abi.HYPERVISOR_GRANT_TABLE_OP, cmd): (dtype, single, partial(method, self._grants))
            for cmd, (dtype, single, method) in GRANT_CALLS.items()
        } | {
            (abi.HYPERVISOR_EVENT_CHANNEL_OP, cmd): (dtype, True, partial(method, self._ports))
            for cmd, (dtype, method) in PORT_CALLS.items()
        }

    @property
    def flushes(self) -> int:
        """Every flush there was."""
        return self._grants.flushes

    def create_domain(
        self,
        domid: int,
        memory: DomainMemory,
        counters: np.ndarray,
        *,
        nr_vcpus: int = 1,
        nr_handles: int = GUEST_HANDLES_MAX,
        in_store: bool = False,
        role: int = GUEST,
    ) -> None:
        """A new domain; its domid must be free. counters: HYPERVISOR_COUNTERS (1,).

        nr_handles: mappings that it may have; role: what it is here for. in_store: its domid is not
        free again before `released`.
        """
        self.domains.add(domid, nr_vcpus, memory, counters, nr_handles, in_store, role)

    def destroy_domain(self, domid: int) -> None:
        """End a domain: unmap what it has mapped, close its ports. Its own pages stay as long as
        others have them mapped."""
        domain = self.domains.find(domid)
        assert domain is not None
        self._let_go(domain, NO_CPU)
        self.domains.end(domain)

    def reset_backend(self, domid: int) -> None:
        """A backend's process is dead, and its domain lives: unmap what it has mapped, on a CPU of
        its; close its ports; its vCPUs run no more."""
        domain = self.domains.find(domid)
        assert domain is not None
        self._let_go(domain, 0)
        self.cpus.stop()

    def _let_go(self, domain: Domain, cpu: int) -> None:
        live = np.flatnonzero(domain.maptrack.entries["flags"])
        ops = np.zeros(len(live), abi.GNTTAB_UNMAP_GRANT_REF)
        ops["handle"], entries = live, domain.maptrack.entries[live]
        ops["host_addr"] = entries["host_addr"]
        device = (entries["flags"] & abi.GNTMAP_DEVICE_MAP) != 0
        ops["dev_bus_addr"] = entries["frame"].astype(np.uint64) * abi.XEN_PAGE_SIZE * device
        ops["status"] = GNTST_UNFILLED
        self._grants.unmap(Caller(domain, cpu, False), ops)
        assert not ops["status"].any(), "a mapping that the maptrack has cannot be unmapped"
        self._ports.close_all(domain)

    def released(self, domid: int) -> None:
        """xenstored has forgotten the domain, wholly."""
        self.domains.released(domid)

    def hypercall(
        self, domid: int, vcpu: int, number: int, cmd: int, payload: bytearray, waited: bool
    ) -> int:
        """Make one hypercall over `payload`, an array of the op's struct, filled in place.

        Returns 0 or -errno: ENOSYS for no such call, EINVAL for a payload of the wrong form.
        """
        domain = self.domains.find(domid)
        if domain is None:
            return -errno.ESRCH
        op = self.operations.get((number, cmd))
        if op is None:
            return -errno.ENOSYS
        dtype, single, method = op
        nbytes, size = len(payload), dtype.itemsize
        if not nbytes or nbytes % size or (single and nbytes > size):
            return -errno.EINVAL
        cpu = vcpu if domain.has_role(BACKEND) else NO_CPU
        return method(Caller(domain, cpu, waited), np.frombuffer(payload, dtype))
