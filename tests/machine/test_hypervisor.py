"""A hypervisor put together over given memory: whose is what."""

import weakref

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from hypervisor.cpus import ACCESSED_WORDS, Cpus
from hypervisor.domains import GUEST_HANDLES_MAX, DomainMemory
from hypervisor.hypercalls import Hypervisor
from hypervisor.maptrack import UNMAPPED
from machine.hypervisor import (
    HostMemory,
    build_domain,
    build_hypervisor,
    domain_memory,
    host_memory,
)

NR_CPUS = 3
HANDLES = 40


class Watched(Cpus):
    """The CPUs of a simulator."""


@pytest.fixture
def arena() -> Arena:
    return Arena()


@pytest.fixture
def machine(arena: Arena) -> HostMemory:
    return host_memory(arena, HANDLES)


def build(arena: Arena, machine: HostMemory, policy: str = "mask") -> Hypervisor:
    """With dom0 on NR_CPUS CPUs."""
    return build_hypervisor(
        arena,
        machine,
        domain_memory(arena, ram_frames=3),
        nr_cpus=NR_CPUS,
        policy=policy,
        cpus_class=Watched,
    )


def ports_used(hypervisor: Hypervisor, domid: int) -> list[int]:
    domain = hypervisor.domains.find(domid)
    assert domain is not None
    return domain.channels.ports()


def test_domain_0_has_a_vcpu_a_cpu_and_handles_as_accessed_has_room_for(
    arena: Arena, machine: HostMemory
) -> None:
    hypervisor = build(arena, machine)
    (dom0,) = hypervisor.domains
    assert (dom0.domid, dom0.nr_vcpus, dom0.nr_ram_frames) == (0, NR_CPUS, 3)
    assert len(dom0.maptrack.entries) == HANDLES == len(machine.accessed) // ACCESSED_WORDS
    assert isinstance(hypervisor.cpus, Watched) and hypervisor.cpus.nr_cpus == NR_CPUS


def test_a_guest_has_its_memory_and_its_row_of_counters(arena: Arena, machine: HostMemory) -> None:
    hypervisor = build(arena, machine)
    memory = domain_memory(arena, ram_frames=5, grant_frames=2)
    assert [len(each) // abi.XEN_PAGE_SIZE for each in memory] == [5, 2, 2]
    build_domain(hypervisor, machine, 7, memory, nr_vcpus=2)
    guest = hypervisor.domains.find(7)
    assert guest is not None
    assert (guest.nr_vcpus, guest.nr_ram_frames, guest.nr_grant_frames) == (2, 5, 2)
    assert len(guest.grants.active) == 1024 and len(guest.maptrack.entries) == GUEST_HANDLES_MAX
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["flags"], op["host_addr"] = 7, abi.GNTMAP_HOST_MAP, abi.XEN_PAGE_SIZE
    call = (abi.HYPERVISOR_GRANT_TABLE_OP, abi.GNTTABOP_MAP_GRANT_REF, bytearray(op.tobytes()))
    assert hypervisor.hypercall(0, 0, *call, False) == 0
    counts = machine.host["hypervisor"][0]
    assert counts["failed_ops"].nonzero()[0].tolist() == [7]


def test_flushes_look_at_and_count_in_the_machines_words(arena: Arena, machine: HostMemory) -> None:
    hypervisor = build(arena, machine)
    machine.host["dirty"][0, :] = 1
    assert hypervisor.cpus.flush(1, np.zeros(0, UNMAPPED), False) == NR_CPUS - 1
    assert machine.host["cpus"]["ipis_received"][0].nonzero()[0].tolist() == [0, 2]


def test_there_must_be_such_a_policy(arena: Arena, machine: HostMemory) -> None:
    with pytest.raises(ValueError, match="flush policy: 'none' is not one of mask, "):
        build(arena, machine, "none")


def test_a_restored_domain_is_there_again_with_what_it_had(
    arena: Arena, machine: HostMemory
) -> None:
    hypervisor = build(arena, machine)
    memory = domain_memory(arena, ram_frames=1)
    build_domain(hypervisor, machine, 1, memory, in_store=True)
    hypervisor.domains.find_dying(1).channels.alloc_unbound(0)  # type: ignore[union-attr]
    memory.ram[:] = 5
    alive = arena.snapshot()
    hypervisor.destroy_domain(1)
    dying = arena.snapshot()
    for again in (False, True):
        arena.restore(dying)
        assert hypervisor.domains.find(1) is None and 1 in hypervisor.domains
        hypervisor.released(1)
        assert 1 not in hypervisor.domains
        memory.ram[:] = 6
        if again:
            build_domain(hypervisor, machine, 1, memory)
        arena.restore(alive)
        assert ports_used(hypervisor, 1) == [1] and (memory.ram == 5).all()


def test_memory_elsewhere_goes_with_its_domain_and_the_next_brings_its_own(
    arena: Arena, machine: HostMemory
) -> None:
    """A segment stays mapped as long as somebody has a view of it."""
    hypervisor = build(arena, machine)
    used = 0
    for frames in (2, 1, 2):
        ram, grant, event = domain_memory(Arena(), frames, frames)
        build_domain(hypervisor, machine, 1, DomainMemory(ram, grant, event))
        gone = [weakref.ref(each) for each in (ram, grant, event)]
        used = used or len(arena.snapshot())
        del ram, grant, event
        hypervisor.destroy_domain(1)
        assert all(each() is None for each in gone)
    assert len(arena.snapshot()) == used


def test_a_domid_has_one_memory_in_an_arena(arena: Arena, machine: HostMemory) -> None:
    hypervisor = build(arena, machine)
    build_domain(hypervisor, machine, 1, domain_memory(arena, 1))
    hypervisor.destroy_domain(1)
    with pytest.raises(AssertionError):
        build_domain(hypervisor, machine, 1, domain_memory(arena, 1))
