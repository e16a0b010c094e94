"""Domains come, go, and linger while others have their pages mapped."""

import errno

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from hypervisor.domains import Domains
from hypervisor.event_channels import CLOSED
from tests.hypervisor.world import DEVICE_RO, DEVICE_RW, RO, RW, World

OKAY = abi.GNTST_OKAY
QUERY = abi.GNTTABOP_QUERY_SIZE


@pytest.fixture
def world() -> World:
    return World()


def alive(world: World, domid: int) -> bool:
    return world.hypervisor.domains.find(domid) is not None


def known(world: World, domid: int) -> bool:
    return domid in world.hypervisor.domains


def test_the_domains_are_those_that_were_made(world: World) -> None:
    assert [domain.domid for domain in world.hypervisor.domains] == [0, 1, 2]
    assert 1 in world.hypervisor.domains and 3 not in world.hypervisor.domains
    assert world.domain(1).nr_ram_frames == 16


def test_there_are_none_at_first() -> None:
    assert list(Domains(Arena())) == []


@pytest.mark.parametrize("domid", [1, abi.DOMID_FIRST_RESERVED])
def test_a_domid_is_used_once_and_is_no_reserved_one(world: World, domid: int) -> None:
    with pytest.raises(AssertionError):
        world.create(domid)


def test_a_destroyed_domain_is_gone_and_its_domid_free(world: World) -> None:
    world.hypervisor.destroy_domain(1)
    assert not known(world, 1)
    world.create(1)
    assert world.map(world[1].grant(frame=3))["status"] == OKAY


def test_a_domain_can_go_while_the_others_are_looked_through(world: World) -> None:
    for domain in world.hypervisor.domains:
        if domain.domid:
            world.hypervisor.destroy_domain(domain.domid)
    assert [domain.domid for domain in world.hypervisor.domains] == [0]


# --- what a domain leaves behind ----------------------------------------------------------------


@pytest.mark.parametrize("flags", [RO, RW, DEVICE_RO, DEVICE_RW, RO | DEVICE_RO, RW | DEVICE_RW])
def test_a_destroyed_domain_has_nothing_mapped_any_more(world: World, flags: int) -> None:
    grefs = [world[1].grant(frame, to=2) for frame in range(1, 11)]
    world.map_all([(1, gref) for gref in grefs for _ in range(4)], flags, by=2)
    world.hypervisor.destroy_domain(2)
    assert not known(world, 2)
    assert (world.pins(1), world.domain(1).mapped) == (0, 0)
    assert all(world[1].end_access(gref) for gref in grefs)


def test_mappings_half_undone_go_with_their_domain(world: World) -> None:
    grefs = [world[1].grant(frame, to=2) for frame in (3, 4)]
    mapped = world.map_all([(1, gref) for gref in grefs], RW | DEVICE_RW, by=2)
    assert world.unmap(mapped[0], by=2, host_addr=0) == OKAY
    assert world.unmap(mapped[1], by=2, dev_bus_addr=0) == OKAY
    world.hypervisor.destroy_domain(2)
    assert all(world[1].end_access(gref) for gref in grefs)


def test_a_device_mapping_of_frame_0_goes_with_its_domain(world: World) -> None:
    gref = world[1].grant(frame=0, to=2)
    world.map(gref, DEVICE_RW, by=2)
    world.hypervisor.destroy_domain(2)
    assert world[1].end_access(gref)


def test_the_unmaps_of_a_destroyed_domain_are_counted_for_the_granting_ones(world: World) -> None:
    world.dirty[:] = world.running[:] = 1
    grants = [(domid, world[domid].grant(3, to=2)) for domid in (0, 1) for _ in range(20)]
    world.map_all(grants, by=2)
    world.hypervisor.destroy_domain(2)
    assert world.counted(0)["unmap_ops"] == world.counted(1)["unmap_ops"] == 20
    assert world.counted(0)["flush_entries"] + world.counted(1)["flush_entries"] == 40
    assert world.by_cpu("ipis_received") == [0, 0, 0, 0]
    assert world.counted(0).get("grants_mapped", 0) == 0


def test_a_domain_that_maps_its_own_grants_can_be_destroyed(world: World) -> None:
    gref = world[1].grant(frame=3, to=1)
    assert world.map(gref, by=1)["status"] == OKAY
    world.hypervisor.destroy_domain(1)
    assert not known(world, 1)


def test_a_destroyed_domains_ports_are_closed_and_their_far_ends_unbound(world: World) -> None:
    channels = {domid: world.domain(domid).channels for domid in (0, 1, 2)}
    first = channels[1].alloc_unbound(0)
    far = channels[0].bind(channels[1], first)
    second = channels[0].alloc_unbound(1)
    near = channels[1].bind(channels[0], second)
    loop = channels[1].alloc_unbound(1)
    channels[1].bind(channels[1], loop)
    bystander = channels[2].alloc_unbound(0)
    channels[0].bind(channels[2], bystander)
    world.hypervisor.destroy_domain(1)
    assert channels[1].ports() == []
    assert channels[0].get(far)[:3] == (abi.EVTCHNSTAT_UNBOUND, 1, 0)
    assert channels[0].get(second)[:3] == (abi.EVTCHNSTAT_UNBOUND, 1, 0)
    assert channels[2].get(bystander).state == abi.EVTCHNSTAT_INTERDOMAIN
    assert channels[1].get(near) == CLOSED


# --- a dying domain -----------------------------------------------------------------------------


def dying(world: World, flags: int = RW) -> np.ndarray:
    """Domain 1 destroyed while dom0 has two of its pages mapped: the map ops."""
    mapped = world.map_all([(1, world[1].grant(frame)) for frame in (3, 4)], flags)
    world.hypervisor.destroy_domain(1)
    return mapped


def test_a_domain_with_mapped_pages_is_dying_until_the_last_is_unmapped(world: World) -> None:
    mapped = dying(world)
    assert known(world, 1) and not alive(world, 1)
    assert world.unmap(mapped[0]) == OKAY
    assert known(world, 1)
    assert world.unmap(mapped[1]) == OKAY
    assert not known(world, 1)
    assert world.handles_used(0) == 0
    world.create(1)


def test_the_last_unmaps_of_a_dying_domain_may_come_in_one_hypercall(world: World) -> None:
    grants = [(domid, world[domid].grant(3)) for domid in (1, 2) for _ in range(40)]
    mapped = world.map_all(grants)
    world.hypervisor.destroy_domain(1)
    world.hypervisor.destroy_domain(2)
    assert world.unmap_all(mapped) == [OKAY] * 80
    assert [domain.domid for domain in world.hypervisor.domains] == [0]


def test_the_mapper_of_a_dying_domains_pages_can_be_destroyed_too(world: World) -> None:
    world.map(world[1].grant(frame=3, to=2), by=2)
    world.hypervisor.destroy_domain(1)
    assert known(world, 1)
    world.hypervisor.destroy_domain(2)
    assert [domain.domid for domain in world.hypervisor.domains] == [0]


def test_two_domains_that_have_each_other_mapped_can_both_go(world: World) -> None:
    world.map(world[1].grant(frame=3, to=2), by=2)
    world.map(world[2].grant(frame=3, to=1), of=2, by=1)
    world.hypervisor.destroy_domain(1)
    world.hypervisor.destroy_domain(2)
    assert [domain.domid for domain in world.hypervisor.domains] == [0]


def test_nothing_more_of_a_dying_domain_can_be_mapped_or_copied(world: World) -> None:
    gref = world[1].grant(frame=5)
    dying(world)
    assert world.map(gref)["status"] == abi.GNTST_BAD_DOMAIN
    assert world.copy(source_ref=gref, source_domid=1, dest_gmfn=0, len=1) == (abi.GNTST_BAD_DOMAIN)
    size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    size["dom"] = 1
    assert world.grant_table_op(QUERY, size)["status"][0] == abi.GNTST_BAD_DOMAIN


def test_a_dying_domain_has_no_event_channels(world: World) -> None:
    dying(world)
    fields = {"dom": abi.DOMID_SELF, "remote_dom": 1}
    args = (abi.EVTCHNOP_ALLOC_UNBOUND, abi.EVTCHN_ALLOC_UNBOUND)
    assert world.event_op(*args, by=0, **fields)[0] == -errno.ESRCH
    fields = {"dom": 1, "remote_dom": 0}
    assert world.event_op(*args, by=0, **fields)[0] == -errno.ESRCH


@pytest.mark.parametrize("domid", [1, 9, abi.DOMID_SELF])
def test_who_is_dying_or_not_there_makes_no_hypercalls(world: World, domid: int) -> None:
    dying(world)
    size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    size["dom"] = abi.DOMID_SELF
    rc = world.call(abi.HYPERVISOR_GRANT_TABLE_OP, QUERY, size, by=domid)
    assert rc == -errno.ESRCH


def test_a_dying_domains_unmaps_are_still_counted_for_it(world: World) -> None:
    mapped = dying(world)
    world.unmap_all(mapped)
    assert world.counted(1)["unmap_ops"] == 2
    assert "grants_mapped" not in world.counted(1)
