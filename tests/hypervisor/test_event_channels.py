"""Event channels: who may bind what, and what is left when an end closes."""

import errno

import numpy as np
import pytest

from common import abi
from common.event_channel import set_pending
from tests.hypervisor.world import PAGE, RESERVED_DOMIDS, World

SELF = abi.DOMID_SELF
CLOSED, UNBOUND, INTERDOMAIN = (
    abi.EVTCHNSTAT_CLOSED,
    abi.EVTCHNSTAT_UNBOUND,
    abi.EVTCHNSTAT_INTERDOMAIN,
)
HUGE_PORTS = [abi.EVTCHN_2L_NR_CHANNELS, 1 << 31, 2**32 - 1]


@pytest.fixture
def world() -> World:
    return World()


def alloc(world: World, *, by: int, remote: int, dom: int = SELF) -> int:
    """EVTCHNOP_alloc_unbound: the port, or -errno."""
    fields = {"dom": dom, "remote_dom": remote}
    rc, args = world.event_op(abi.EVTCHNOP_ALLOC_UNBOUND, abi.EVTCHN_ALLOC_UNBOUND, by=by, **fields)
    return int(args["port"]) if rc == 0 else rc


def bind(world: World, *, by: int, remote: int, port: int) -> int:
    """EVTCHNOP_bind_interdomain: the port, or -errno."""
    fields = {"remote_dom": remote, "remote_port": port}
    rc, args = world.event_op(
        abi.EVTCHNOP_BIND_INTERDOMAIN, abi.EVTCHN_BIND_INTERDOMAIN, by=by, **fields
    )
    return int(args["local_port"]) if rc == 0 else rc


def close(world: World, port: int, *, by: int) -> int:
    return world.event_op(abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE, by=by, port=port)[0]


def unmask(world: World, port: int, *, by: int) -> int:
    return world.event_op(abi.EVTCHNOP_UNMASK, abi.EVTCHN_UNMASK, by=by, port=port)[0]


def reset(world: World, *, by: int, dom: int = SELF) -> int:
    return world.event_op(abi.EVTCHNOP_RESET, abi.EVTCHN_RESET, by=by, dom=dom)[0]


def status(world: World, port: int, *, by: int, dom: int = SELF) -> tuple[int, ...]:
    """(EVTCHNSTAT_*, remote domain, remote port), or (-errno,)."""
    rc, args = world.event_op(abi.EVTCHNOP_STATUS, abi.EVTCHN_STATUS, by=by, dom=dom, port=port)
    if rc:
        return (rc,)
    assert args["vcpu"] == 0
    return int(args["status"]), int(args["remote_dom"]), int(args["remote_port"])


def bound(world: World) -> tuple[int, int]:
    """A channel that domain 1 allocated and dom0 bound: domain 1's port, dom0's."""
    port = alloc(world, by=1, remote=0)
    return port, bind(world, by=0, remote=1, port=port)


# --- allocating ---------------------------------------------------------------------------------


def test_ports_are_numbered_from_1_by_domain(world: World) -> None:
    assert [alloc(world, by=1, remote=0) for _ in range(3)] == [1, 2, 3]
    assert alloc(world, by=2, remote=0) == 1


def test_the_lowest_free_port_is_given_out_first(world: World) -> None:
    for _ in range(4):
        alloc(world, by=1, remote=0)
    for port in (3, 2):
        close(world, port, by=1)
    assert [alloc(world, by=1, remote=0) for _ in range(3)] == [2, 3, 5]


def test_bound_ports_are_numbered_with_allocated_ones(world: World) -> None:
    assert alloc(world, by=0, remote=1) == 1
    assert bound(world) == (1, 2)


def test_domain_0_allocates_in_another_domain(world: World) -> None:
    assert alloc(world, by=0, dom=1, remote=0) == 1
    assert status(world, 1, by=1) == (UNBOUND, 0, 0)
    assert status(world, 1, by=0) == (CLOSED, 0, 0)


def test_remote_domid_self_is_the_caller_also_where_it_acts_for_another(world: World) -> None:
    port = alloc(world, by=0, dom=1, remote=SELF)
    assert status(world, port, by=1) == (UNBOUND, 0, 0)
    port = alloc(world, by=2, remote=SELF)
    assert status(world, port, by=2) == (UNBOUND, 2, 0)


def test_a_domain_names_itself_by_its_number_too(world: World) -> None:
    assert alloc(world, by=2, dom=2, remote=0) == 1


NOBODY = [9, *(domid for domid in RESERVED_DOMIDS if domid != SELF)]


@pytest.mark.parametrize("domid", NOBODY)
@pytest.mark.parametrize("by", [0, 1])
def test_there_is_no_channel_with_nobody(world: World, by: int, domid: int) -> None:
    assert alloc(world, by=by, remote=domid) == -errno.ESRCH
    assert alloc(world, by=by, dom=domid, remote=0) == -errno.ESRCH
    assert bind(world, by=by, remote=domid, port=1) == -errno.ESRCH
    assert status(world, 1, by=by, dom=domid) == (-errno.ESRCH,)
    assert reset(world, by=by, dom=domid) == -errno.ESRCH


def test_only_domain_0_acts_for_others(world: World) -> None:
    port, far = bound(world)
    for other, its_port in ((1, port), (0, far)):
        assert alloc(world, by=2, dom=other, remote=2) == -errno.EPERM
        assert status(world, its_port, by=2, dom=other) == (-errno.EPERM,)
        assert reset(world, by=2, dom=other) == -errno.EPERM
    assert status(world, port, by=0, dom=1) == (INTERDOMAIN, 0, far)
    assert reset(world, by=0, dom=1) == 0
    assert status(world, port, by=1) == (CLOSED, 0, 0)


def test_4095_ports_are_all_there_are(world: World) -> None:
    ports = [alloc(world, by=1, remote=0) for _ in range(abi.EVTCHN_2L_NR_CHANNELS)]
    assert ports == [*range(1, abi.EVTCHN_2L_NR_CHANNELS), -errno.ENOSPC]
    assert alloc(world, by=2, remote=0) == 1  # the others have theirs
    there = alloc(world, by=2, remote=1)
    assert bind(world, by=1, remote=2, port=there) == -errno.ENOSPC
    assert status(world, there, by=2) == (UNBOUND, 1, 0)
    assert close(world, 4000, by=1) == 0
    assert bind(world, by=1, remote=2, port=there) == 4000


# --- binding ------------------------------------------------------------------------------------


def test_both_ends_of_a_channel_know_each_other(world: World) -> None:
    alloc(world, by=0, remote=2)
    port, far = bound(world)
    assert (port, far) == (1, 2)
    assert status(world, port, by=1) == (INTERDOMAIN, 0, far)
    assert status(world, far, by=0) == (INTERDOMAIN, 1, port)


def test_a_port_is_bound_only_by_the_domain_it_is_for(world: World) -> None:
    port = alloc(world, by=1, remote=0)
    for by in (1, 2):
        assert bind(world, by=by, remote=1, port=port) == -errno.EINVAL
    assert status(world, port, by=1) == (UNBOUND, 0, 0)
    assert bind(world, by=0, remote=1, port=port) == 1


def test_a_port_is_bound_once(world: World) -> None:
    port, far = bound(world)
    assert bind(world, by=0, remote=1, port=port) == -errno.EINVAL
    assert status(world, port, by=1) == (INTERDOMAIN, 0, far)
    assert status(world, far + 1, by=0) == (CLOSED, 0, 0)


@pytest.mark.parametrize("port", [0, 2, *HUGE_PORTS])
def test_a_port_that_is_not_allocated_cannot_be_bound(world: World, port: int) -> None:
    assert alloc(world, by=1, remote=0) == 1
    assert bind(world, by=0, remote=1, port=port) == -errno.EINVAL
    assert status(world, 1, by=0) == (CLOSED, 0, 0)


def test_a_domain_binds_to_itself_and_closes_either_end(world: World) -> None:
    port = alloc(world, by=1, remote=SELF)
    far = bind(world, by=1, remote=SELF, port=port)
    assert (port, far) == (1, 2)
    assert status(world, port, by=1) == (INTERDOMAIN, 1, far)
    assert close(world, far, by=1) == 0
    assert status(world, port, by=1) == (UNBOUND, 1, 0)
    assert bind(world, by=1, remote=1, port=port) == far
    assert close(world, port, by=1) == 0
    assert status(world, far, by=1) == (UNBOUND, 1, 0)
    assert reset(world, by=1) == 0


def test_an_end_cannot_be_bound_to_itself(world: World) -> None:
    port = alloc(world, by=1, remote=SELF)
    far = bind(world, by=1, remote=SELF, port=port)
    assert bind(world, by=1, remote=SELF, port=far) == -errno.EINVAL


# --- pending and masked -------------------------------------------------------------------------


def test_a_new_port_is_masked_and_nothing_is_pending_at_either_end(world: World) -> None:
    port = alloc(world, by=1, remote=0)
    for far in (False, True):
        assert world[1].masked(port, far=far)
        assert not world[1].pending(port, far=far)


def test_the_binding_end_is_pending_at_once_and_only_it(world: World) -> None:
    port, _ = bound(world)
    assert world[1].pending(port, far=True)
    assert not world[1].pending(port)
    assert not world[0].events.view(np.uint64)[256:320].any()


def test_a_port_allocated_again_forgets_what_was_pending_and_unmasked(world: World) -> None:
    port, _ = bound(world)
    assert unmask(world, port, by=1) == 0
    world[1].events[: PAGE // 2 + 512] = 0xFF  # the guest sets every pending bit it has
    close(world, port, by=1)
    assert not world[1].pending(port, far=True)
    assert alloc(world, by=1, remote=0) == port
    assert not world[1].pending(port)
    assert world[1].masked(port) and world[1].masked(port, far=True)


def test_a_port_is_masked_until_it_is_unmasked(world: World) -> None:
    ports = [alloc(world, by=1, remote=0) for _ in range(70)]
    assert unmask(world, ports[64], by=1) == 0
    assert [port for port in ports if not world[1].masked(port)] == [ports[64]]
    assert world[1].masked(ports[64], far=True)


def test_an_event_at_a_masked_port_wakes_nobody_and_stays_pending(world: World) -> None:
    port = alloc(world, by=1, remote=0)
    info = world[1].events[:PAGE].view(abi.SHARED_INFO)
    words = info["evtchn_pending"][0], info["evtchn_mask"][0]
    assert not set_pending(*words, port)
    assert world[1].pending(port)
    assert unmask(world, port, by=1) == 0
    assert not set_pending(*words, port)  # it is pending already


def test_the_binding_end_cannot_unmask_the_allocating_one(world: World) -> None:
    port, far = bound(world)
    assert unmask(world, far, by=0) == 0
    assert world[1].masked(port)
    assert world[0].masked(far)


@pytest.mark.parametrize("port", [0, 5, *HUGE_PORTS])
def test_a_port_that_is_not_in_use_can_only_be_asked_about(world: World, port: int) -> None:
    bound(world)
    words = [world[domid].events.tobytes() for domid in (0, 1, 2)]
    for by in (0, 1, 2):
        assert unmask(world, port, by=by) == -errno.EINVAL
        assert close(world, port, by=by) == -errno.EINVAL
        assert status(world, port, by=by) == (CLOSED, 0, 0)
    assert [world[domid].events.tobytes() for domid in (0, 1, 2)] == words


def test_nothing_a_domain_does_to_its_ports_touches_anothers_words(world: World) -> None:
    bound(world)
    words = world[1].events.tobytes()
    for _ in range(3):
        bind(world, by=2, remote=SELF, port=alloc(world, by=2, remote=SELF))
    unmask(world, 1, by=2)
    close(world, 1, by=2)
    reset(world, by=2)
    assert world[1].events.tobytes() == words


# --- closing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", [0, 1])
def test_closing_one_end_leaves_the_other_unbound_for_the_same_domain(
    world: World, closer: int
) -> None:
    ports = dict(zip((1, 0), bound(world), strict=True))
    assert close(world, ports[closer], by=closer) == 0
    assert status(world, ports[closer], by=closer) == (CLOSED, 0, 0)
    assert status(world, ports[1 - closer], by=1 - closer) == (UNBOUND, closer, 0)


def test_the_far_end_can_bind_again(world: World) -> None:
    port, far = bound(world)
    close(world, far, by=0)
    assert bind(world, by=2, remote=1, port=port) == -errno.EINVAL
    assert bind(world, by=0, remote=1, port=port) == far
    assert status(world, port, by=1) == (INTERDOMAIN, 0, far)
    assert world[1].pending(port, far=True)


def test_a_close_takes_the_callers_own_port_never_anothers(world: World) -> None:
    port, far = bound(world)
    assert close(world, port, by=2) == -errno.EINVAL
    alloc(world, by=2, remote=1)
    assert close(world, port, by=2) == 0  # its own port of that number
    assert status(world, port, by=1) == (INTERDOMAIN, 0, far)
    assert status(world, far, by=0) == (INTERDOMAIN, 1, port)


def test_a_port_is_closed_once(world: World) -> None:
    port = alloc(world, by=1, remote=0)
    assert [close(world, port, by=1) for _ in range(2)] == [0, -errno.EINVAL]


def test_an_unbound_ports_close_leaves_port_0_of_the_other_domain_alone(world: World) -> None:
    port = alloc(world, by=1, remote=0)
    assert close(world, port, by=1) == 0
    assert status(world, 0, by=0) == (CLOSED, 0, 0)


def test_reset_closes_all_ports_and_leaves_the_far_ends_unbound(world: World) -> None:
    port, far = bound(world)
    alloc(world, by=1, remote=2)
    bind(world, by=1, remote=SELF, port=alloc(world, by=1, remote=SELF))
    other = alloc(world, by=2, remote=0)
    assert reset(world, by=1) == 0
    assert [status(world, p, by=1) for p in range(1, 5)] == [(CLOSED, 0, 0)] * 4
    assert status(world, far, by=0) == (UNBOUND, 1, 0)
    assert status(world, other, by=2) == (UNBOUND, 0, 0)
    assert alloc(world, by=1, remote=0) == port


def test_to_send_is_no_hypercall(world: World) -> None:
    port, _ = bound(world)
    rc, _ = world.event_op(abi.EVTCHNOP_SEND, abi.EVTCHN_SEND, by=1, port=port)
    assert rc == -errno.ENOSYS


def test_a_channel_always_has_an_end_that_allocated_it(world: World) -> None:
    port, far = bound(world)
    close(world, port, by=1)
    again = bind(world, by=1, remote=0, port=far)  # to refuse it would do as well
    ends = (world.domain(0).channels.get(far), world.domain(1).channels.get(again))
    assert again < 0 or [end.allocated for end in ends].count(True) == 1
