"""A backend's process is dead and its domain lives: nothing of what it had is left, and nothing of
anybody else's is touched.
"""

import errno
import gc
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from common.hypercall import DOMCTL_BACKEND, DOMCTL_RESET_BACKEND, HypercallError, Hypercalls
from common.hypercall_gate import IDLE
from common.process import open_descriptors
from frontend.grants import grant_access, new_grants
from tests.hypervisor.running import Born, Running, answers, running
from tests.hypervisor.test_gate_server import Gates
from tests.hypervisor.world import RO, RW, World
from tests.patience import eventually

OKAY = abi.GNTST_OKAY


@pytest.fixture
def world() -> World:
    return World()


# --- the core -----------------------------------------------------------------------------------


def test_all_that_it_had_mapped_can_be_ended_and_mapped_anew(world: World) -> None:
    grefs = {domid: [world[domid].grant(frame) for frame in range(3, 13)] for domid in (1, 2)}
    flags = (RW, RO, RW | abi.GNTMAP_DEVICE_MAP)
    for at, gref in enumerate(grefs[1]):
        assert world.map(gref, flags=flags[at % 3])["status"] == OKAY
    world.map_all([(2, gref) for gref in grefs[2]] + [(2, grefs[2][0])])
    world.hypervisor.reset_backend(0)
    assert world.handles_used(0) == 0
    for domid in (1, 2):
        assert world.domain(domid).mapped == world.counted(domid).get("grants_mapped", 0) == 0
        assert not any(world[domid].status_bits(gref) for gref in grefs[domid])
        assert world.map(grefs[domid][0], of=domid)["status"] == OKAY
        assert all(world[domid].end_access(gref) for gref in grefs[domid][1:])


def test_one_flush_ends_each_batch_and_is_booked_to_whose_pages_they_were(world: World) -> None:
    world.map_all([(1, world[1].grant(3)) for _ in range(40)])
    before = world.counted(1)
    world.hypervisor.reset_backend(0)
    after = world.counted(1)
    assert after["flushes"] - before.get("flushes", 0) == 2
    assert after["flush_entries"] == after["unmap_ops"] == 40


def test_what_others_have_mapped_stays(world: World) -> None:
    gref = world[1].grant(frame=3, to=2)
    world.map(gref, by=2)
    own = world[0].grant(frame=3, to=1)
    world.map(own, of=0, by=1)
    world.hypervisor.reset_backend(0)
    assert not world[1].end_access(gref) and not world[0].end_access(own)


def test_a_zombie_that_it_kept_is_buried(world: World) -> None:
    world.map(world[1].grant(frame=3))
    world.hypervisor.destroy_domain(1)
    assert 1 in world.hypervisor.domains
    world.hypervisor.reset_backend(0)
    assert 1 not in world.hypervisor.domains


def test_the_far_ends_of_its_ports_wait_for_it_again(world: World) -> None:
    channels = {domid: world.domain(domid).channels for domid in (0, 1, 2)}
    ports = [channels[domid].alloc_unbound(0) for domid in (1, 2)]
    for domid, port in zip((1, 2), ports, strict=True):
        channels[0].bind(channels[domid], port)
    between = channels[1].alloc_unbound(2)
    channels[2].bind(channels[1], between)
    world.hypervisor.reset_backend(0)
    assert channels[0].ports() == []
    assert channels[1].get(ports[0])[:3] == (abi.EVTCHNSTAT_UNBOUND, 0, 0)
    assert channels[1].get(between).state == abi.EVTCHNSTAT_INTERDOMAIN
    assert channels[0].bind(channels[1], ports[0]) > 0


def test_its_vcpus_run_no_more(world: World) -> None:
    world.running[:2] = 1
    world.hypervisor.reset_backend(0)
    assert not world.running.any()


# --- the process --------------------------------------------------------------------------------


@pytest.fixture
def machine() -> Iterator[Running]:
    """A hypervisor of the test's own, with guest 1."""
    with running() as hypervisor:
        hypervisor.create(1)
        yield hypervisor


def map_op(born: Born) -> np.ndarray:
    """A page that guest 1 grants dom0, to be mapped."""
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["ref"] = grant_access(new_grants(Arena(), born.segments["grant"]), 0, 3, False)
    op["dom"], op["flags"], op["host_addr"] = 1, abi.GNTMAP_HOST_MAP, abi.XEN_PAGE_SIZE
    return op


def reset(machine: Running) -> Hypercalls:
    """The toolstack's; dom0's old connection, which is in use no more."""
    fd, old = machine.toolstack.reset_backend(0), machine.dom0
    machine.dom0 = Hypercalls(socket.socket(fileno=fd))
    return old


def test_a_new_process_goes_on_where_the_dead_one_was(machine: Running) -> None:
    born, old = machine.guests[0], machine.dom0
    op = map_op(born)
    old.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    other = old.get_vcpu(1)
    gc.collect()  # what other tests have left to Python goes now, and not meanwhile
    before = len(open_descriptors())
    for end in (reset(machine), other):
        end.close()
    eventually(lambda: len(open_descriptors()) <= before - 2)  # the vCPU's: both ends
    assert machine.lives() and born.answers()
    again = op.copy()
    again["status"] = -1
    machine.dom0.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, again)
    assert again["status"][0] == OKAY and again["handle"][0] == op["handle"][0]
    machine.dom0.get_vcpu(1).close()


def test_the_dead_ones_connections_have_ended(machine: Running) -> None:
    other = machine.dom0.get_vcpu(2)
    for end in (reset(machine), other):
        assert not answers(end._socket)
        end.close()


def test_a_call_that_it_had_posted_is_not_made() -> None:
    gates = Gates()
    op = gates.post_map(1)
    gates.server.empty()
    assert gates.server.serve() is False
    assert gates.state(1) == IDLE and op["status"][0] == 0
    assert gates.world.handles_used(0) == 0
    again = gates.post_map(1)  # the slot can be taken again
    gates.server.make_call(1, False)
    assert gates.take(1, again) == 0 and gates.world.handles_used(0) == 1


@pytest.mark.parametrize(("domid", "why"), [(1, "EINVAL"), (7, "ESRCH"), (65535, "ESRCH")])
def test_only_a_backend_can_be_reset(machine: Running, domid: int, why: str) -> None:
    with pytest.raises(HypercallError, match=f"^reset of domain {domid}'s backend: {why}"):
        machine.toolstack.reset_backend(domid)
    assert machine.lives() and machine.guests[0].answers()


def test_a_guest_may_reset_nobody(machine: Running) -> None:
    args = np.zeros(1, DOMCTL_BACKEND)
    rc = machine.guests[0].hypercalls.call(abi.HYPERVISOR_DOMCTL, DOMCTL_RESET_BACKEND, args)
    assert rc == -errno.EPERM
    assert machine.lives()
