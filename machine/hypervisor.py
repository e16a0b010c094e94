"""A hypervisor with its domains, put together over memory that is given to it.

Owns: what of the memory is whose. The hypervisor's process builds it over segments; the simulator,
the tests and the warm-up over an arena that also holds all of its state.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from common.abi import DOMID_0, XEN_PAGE_SIZE
from common.arena import Arena
from common.machine_memory import HOST, MAPTRACK_HANDLES_MAX
from hypervisor.cpus import ACCESSED_WORDS, Cpus
from hypervisor.domains import BACKEND, GUEST, GUEST_HANDLES_MAX, PRIVILEGED, DomainMemory
from hypervisor.hypercalls import Hypervisor


class HostMemory(NamedTuple):
    """The machine's: host: HOST (1,); accessed: u64, ACCESSED_WORDS for each handle of dom0."""

    host: np.ndarray
    accessed: np.ndarray


def host_memory(arena: Arena, nr_handles: int = MAPTRACK_HANDLES_MAX) -> HostMemory:
    """New: dom0 may have `nr_handles` mappings."""
    return HostMemory(arena.array(1, HOST), arena.array(nr_handles * ACCESSED_WORDS, np.uint64))


def domain_memory(arena: Arena, ram_frames: int, grant_frames: int = 1) -> DomainMemory:
    """A domain's, new: so many frames."""
    ram, grant, event = (
        arena.array(frames * XEN_PAGE_SIZE, np.uint8) for frames in (ram_frames, grant_frames, 2)
    )
    return DomainMemory(ram, grant, event)


def build_hypervisor(
    arena: Arena,
    machine: HostMemory,
    dom0: DomainMemory,
    *,
    nr_cpus: int,
    policy: str,
    cpus_class: Callable[..., Cpus] = Cpus,
) -> Hypervisor:
    """The hypervisor of `nr_cpus` worker CPUs, and domain 0 with a vCPU on each.

    policy: of flushes, see `hypervisor/cpus.py`. Raises ValueError if there is none of that name.
    """
    host, accessed = machine
    cpus = cpus_class(
        nr_cpus,
        policy,
        dirty=host["dirty"][0, :nr_cpus],
        running=host["running"][0, :nr_cpus],
        counters=host["cpus"][0, :nr_cpus],
        accessed=accessed,
        holders=arena.array(ACCESSED_WORDS, np.uint64),
    )
    hypervisor = Hypervisor(cpus, arena)
    nr_handles = len(accessed) // ACCESSED_WORDS
    build_domain(
        hypervisor,
        machine,
        DOMID_0,
        dom0,
        nr_vcpus=nr_cpus,
        nr_handles=nr_handles,
        role=PRIVILEGED | BACKEND,
    )
    return hypervisor


def build_domain(
    hypervisor: Hypervisor,
    machine: HostMemory,
    domid: int,
    memory: DomainMemory,
    *,
    nr_vcpus: int = 1,
    nr_handles: int = GUEST_HANDLES_MAX,
    in_store: bool = False,
    role: int = GUEST,
) -> None:
    """Another domain: see `Hypervisor.create_domain`."""
    hypervisor.create_domain(
        domid,
        memory,
        machine.host["hypervisor"][0, domid : domid + 1],
        nr_vcpus=nr_vcpus,
        nr_handles=nr_handles,
        in_store=in_store,
        role=role,
    )
