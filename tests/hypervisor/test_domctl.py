"""Domains' birth and death through the real hypervisor, and who gets which of their memory."""

import errno
import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from common.hypercall import (
    DOMCTL_CREATEDOMAIN,
    DOMCTL_DESTROYDOMAIN,
    DOMCTL_DOMAIN,
    DOMCTL_GET_MEMORY,
    DOMCTL_GET_VCPU,
    DOMCTL_MEMORY,
    DOMCTL_VCPU,
    HypercallError,
)
from common.machine_memory import (
    DOMAIN_SEGMENTS,
    GUESTS_MAX,
    HOST,
    MACHINE_SEGMENTS,
    MAPTRACK_HANDLES_MAX,
    whole_pages,
)
from common.memory import SharedMemoryError
from common.process import open_descriptors
from common.trace_log import STATS_BYTES
from frontend.grants import grant_access, new_grants
from hypervisor import segments as segments_module
from tests.hypervisor.running import DOM0_RAM_FRAMES, NR_CPUS, Born, Running, answers, running

DOMCTLS = {
    DOMCTL_CREATEDOMAIN: DOMCTL_DOMAIN,
    DOMCTL_DESTROYDOMAIN: DOMCTL_DOMAIN,
    DOMCTL_GET_VCPU: DOMCTL_VCPU,
    DOMCTL_GET_MEMORY: DOMCTL_MEMORY,
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One hypervisor for all tests here; each has domids of its own."""
    with running() as hypervisor:
        yield hypervisor


@pytest.fixture
def machine(shared: Running) -> Iterator[Running]:
    yield shared
    assert shared.lives()


# --- birth --------------------------------------------------------------------------------------


def test_a_new_domain_has_one_connection_and_its_four_segments(machine: Running) -> None:
    born = machine.create(5, ram_frames=9, grant_frames=3, nr_vcpus=2)
    assert {name: len(segment) for name, segment in born.segments.items()} == {
        "ram": 9 * 4096,
        "grant": 3 * 4096,
        "event": 2 * 4096,
        "stats": whole_pages(STATS_BYTES),
    }
    size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    size["dom"] = abi.DOMID_SELF
    born.hypercalls.grant_table_op(abi.GNTTABOP_QUERY_SIZE, size)
    assert (size["nr_frames"][0], size["status"][0]) == (3, abi.GNTST_OKAY)


def test_a_new_domains_memory_is_zero_but_for_its_masked_events(machine: Running) -> None:
    born = machine.create(6)
    for name in ("ram", "grant", "stats"):
        assert not born.segments[name].any()
    words = born.segments["event"].view(np.uint64)
    assert np.flatnonzero(words).tolist() == [*range(320, 384), *range(832, 896)]
    assert set(words[320:384].tolist()) == {2**64 - 1}


def test_the_hypervisor_keeps_what_dom0_may_ask_for_and_nothing_else(machine: Running) -> None:
    before = len(open_descriptors())
    born = machine.create(7)
    # Its end of the connection and four segments there; here a guest's end, its segments mapped.
    assert machine.lives()
    assert len(open_descriptors()) == before + 5 + 1
    machine.bury(7)
    assert machine.lives()
    born.hypercalls.close()
    assert len(open_descriptors()) == before


@pytest.mark.parametrize("domid", [0, GUESTS_MAX + 1, abi.DOMID_SELF, 65535])
def test_a_domid_out_of_range_is_not_made(machine: Running, domid: int) -> None:
    assert machine.cannot_create(domid) == errno.EINVAL


@pytest.mark.parametrize(
    "fields",
    [
        {"nr_vcpus": 0},
        {"nr_vcpus": 257},
        {"ram_frames": 0},
        {"grant_frames": 0},
        {"grant_frames": 65},
        {"grant_frames": 2**32 - 1},
    ],
)
def test_what_no_domain_may_have_is_refused_and_leaves_nothing(
    machine: Running, fields: dict[str, int]
) -> None:
    before = open_descriptors()
    assert machine.cannot_create(9, **fields) == errno.EINVAL
    assert open_descriptors() == before
    with pytest.raises(HypercallError, match="ESRCH"):
        machine.dom0.get_memory(9, "ram")


def test_a_domain_is_made_once(machine: Running) -> None:
    machine.create(10)
    assert machine.cannot_create(10) == errno.EEXIST


def test_ram_that_does_not_fit_is_enomem_with_the_reason_for_the_toolstack(
    machine: Running,
) -> None:
    before = open_descriptors()
    assert machine.cannot_create(11, ram_frames=2**32 - 1) == errno.ENOMEM
    kind, text = machine.said()
    assert kind == "error"
    assert f"grantlab-{machine.topology_id}-11-ram" in text
    assert machine.lives()
    assert open_descriptors() == before
    machine.create(11)


@pytest.mark.parametrize("segment", DOMAIN_SEGMENTS)
def test_a_creation_that_fails_half_way_leaves_nothing(
    machine: Running, segment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = segments_module.create_segment

    def full(name: str, nbytes: int) -> int:
        if name.endswith(f"-{segment}"):
            raise SharedMemoryError(f"no room for {segment}")
        return create(name, nbytes)

    before = open_descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(segments_module, "create_segment", full)
        assert machine.cannot_create(12) == errno.ENOMEM
    assert machine.said() == ["error", f"no room for {segment}"]
    assert machine.lives()
    assert open_descriptors() == before
    for name in DOMAIN_SEGMENTS:
        with pytest.raises(HypercallError, match="ESRCH"):
            machine.dom0.get_memory(12, name)


# --- who may ask ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cmd", [*DOMCTLS, 0, 99])
def test_a_guest_asks_for_nothing_here(machine: Running, cmd: int) -> None:
    guest = machine.create(13) if machine.broker._hypervisor.domains.find(13) is None else None
    guest = guest or machine.guests[-1]
    dtype = DOMCTLS.get(cmd, DOMCTL_DOMAIN)
    for fields in ({"domid": 13}, {"domid": 20}, {"domid": 0}):
        args = np.zeros(1, dtype)
        for name, value in fields.items():
            if name in (dtype.names or ()):
                args[name] = value
        if cmd == DOMCTL_GET_MEMORY:
            args["segment"] = b"ram"
        rc, descriptors = guest.hypercalls.call_for_descriptors(abi.HYPERVISOR_DOMCTL, cmd, args)
        assert (rc, descriptors) == (-errno.EPERM, [])
    assert guest.answers()


def test_a_domctl_has_one_form(machine: Running) -> None:
    assert machine.domctl(99, 14)[0] == -errno.ENOSYS
    for cmd, dtype in DOMCTLS.items():
        for nbytes in (0, 1, dtype.itemsize - 1, dtype.itemsize + 1, 2 * dtype.itemsize):
            payload = np.zeros(nbytes, np.uint8)
            assert machine.toolstack.call(abi.HYPERVISOR_DOMCTL, cmd, payload) == -errno.EINVAL


# --- segments -------------------------------------------------------------------------------------


def size_of(fd: int) -> int:
    try:
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def test_dom0_gets_its_own_segments_and_a_guests_but_no_grant_table(machine: Running) -> None:
    born = machine.create(15, ram_frames=5)
    born.segments["ram"][100], born.segments["event"][4000] = 7, 9
    born.segments["stats"][0] = 3
    memory = machine.memory
    assert memory.segment("ram", 15)[100] == 7
    assert memory.segment("event", 15)[4000] == 9
    assert memory.segment("stats", 15)[0] == 3
    memory.segment("ram", 15)[101] = 8
    assert born.segments["ram"][101] == 8
    assert size_of(machine.dom0.get_memory(0, "ram")) == DOM0_RAM_FRAMES * 4096
    assert size_of(machine.dom0.get_memory(0, "event")) == 2 * 4096
    for domid in (0, 15):
        with pytest.raises(HypercallError, match=f"'grant' of domain {domid}: ESRCH"):
            machine.dom0.get_memory(domid, "grant")


@pytest.mark.parametrize("name", MACHINE_SEGMENTS)
def test_dom0_gets_what_is_the_machines_whatever_domain_it_names(
    machine: Running, name: str
) -> None:
    sizes = {size_of(machine.dom0.get_memory(domid, name)) for domid in (0, 1, 65535)}
    assert len(sizes) == 1
    if name == "host":
        assert sizes == {whole_pages(HOST.itemsize)}
    if name == "accessed":
        assert sizes == {MAPTRACK_HANDLES_MAX * 32}


@pytest.mark.parametrize(
    ("domid", "name"),
    [(63, "ram"), (65535, "ram"), (0, "stats"), (0, ""), (0, "sched"), (0, "xxxxxxxxxxxx")],
)
def test_a_segment_and_a_domain_that_are_not_there_are_refused(
    machine: Running, domid: int, name: str
) -> None:
    with pytest.raises(HypercallError, match=f"^segment '{name}' of domain {domid}: ESRCH"):
        machine.dom0.get_memory(domid, name)


def test_a_segments_name_may_be_any_bytes(machine: Running) -> None:
    args = np.zeros(1, DOMCTL_MEMORY)
    args["segment"] = b"\xff\xfe/../../\0\xff"
    rc = machine.dom0.call_for_descriptors(abi.HYPERVISOR_DOMCTL, DOMCTL_GET_MEMORY, args)
    assert rc == (-errno.ESRCH, [])


def test_what_dom0_is_given_stays_the_hypervisors_too(machine: Running) -> None:
    before = open_descriptors()
    for _ in range(3):
        os.close(machine.dom0.get_memory(0, "ram"))
    assert open_descriptors() == before


# --- dom0's vCPUs ---------------------------------------------------------------------------------


def test_dom0_has_a_connection_for_each_vcpu_as_often_as_it_asks(machine: Running) -> None:
    for vcpu in (*range(NR_CPUS), 0):
        calls = machine.dom0.get_vcpu(vcpu)
        size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
        size["dom"] = abi.DOMID_SELF
        calls.grant_table_op(abi.GNTTABOP_QUERY_SIZE, size)
        assert (size["nr_frames"][0], size["status"][0]) == (1, abi.GNTST_OKAY)
        calls.close()


@pytest.mark.parametrize("vcpu", [NR_CPUS, 2**32 - 1])
def test_a_vcpu_that_is_not_there_is_refused(machine: Running, vcpu: int) -> None:
    with pytest.raises(HypercallError, match=f"^vCPU {vcpu}: EINVAL"):
        machine.dom0.get_vcpu(vcpu)


def test_a_vcpu_given_up_leaves_nothing_and_is_no_death(machine: Running) -> None:
    assert machine.lives()
    before = open_descriptors()
    for _ in range(5):
        machine.dom0.get_vcpu(1).close()
    assert machine.lives() and machine.lives()
    assert open_descriptors() == before


# --- death ----------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[Running]:
    """A hypervisor of the test's own, with guests 1 and 2."""
    with running() as hypervisor:
        hypervisor.create(1)
        hypervisor.create(2)
        yield hypervisor


def die_by_toolstack(machine: Running) -> None:
    assert machine.destroy(1) == 0


def die_by_leaving(machine: Running) -> None:
    machine.guests[0].hypercalls.close()


def die_by_shutdown(machine: Running) -> None:
    machine.guests[0].socket.shutdown(socket.SHUT_WR)


def die_by_an_empty_packet(machine: Running) -> None:
    machine.guests[0].socket.send(b"")


DEATHS = [die_by_toolstack, die_by_leaving, die_by_shutdown, die_by_an_empty_packet]


@pytest.mark.parametrize("die", DEATHS)
def test_however_a_guest_dies_both_are_told_once_and_the_others_go_on(
    alone: Running, die: "type[Running]"
) -> None:
    die(alone)
    assert alone.said() == ["died", 1]
    assert alone.hears_of_death() == 1
    assert alone.lives() and alone.guests[1].answers()
    for name in ("ram", "event", "stats"):
        with pytest.raises(HypercallError, match="ESRCH"):
            alone.dom0.get_memory(1, name)
        os.close(alone.dom0.get_memory(2, name))
    assert alone.destroy(1) == -errno.ESRCH
    assert alone.control.receive(0) is None
    alone.virq.setblocking(False)
    with pytest.raises(BlockingIOError):
        alone.virq.recv(10)


def test_a_destroyed_guests_connection_ends(alone: Running) -> None:
    assert alone.destroy(1) == 0
    assert alone.guests[0].socket.recv(100) == b""
    assert not alone.guests[0].answers()


def test_a_domid_is_taken_until_xenstored_has_forgotten_it(alone: Running) -> None:
    assert alone.destroy(1) == 0
    assert alone.cannot_create(1) == errno.EEXIST
    assert alone.hears_of_death() == 1
    assert alone.cannot_create(1) == errno.EEXIST
    alone.releases(1)
    again = alone.create(1)
    assert again.answers() and not again.segments["ram"].any()


def mapped_page(machine: Running, born: Born) -> np.ndarray:
    """Map a page of guest 1 into dom0."""
    grants = new_grants(Arena(), born.segments["grant"])
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["flags"], op["host_addr"] = 1, abi.GNTMAP_HOST_MAP, 4096
    op["ref"] = int(grant_access(grants, 0, 3, False))
    machine.dom0.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == abi.GNTST_OKAY
    return op


def unmap_page(machine: Running, mapped: np.ndarray) -> None:
    unmap = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
    unmap["handle"], unmap["host_addr"] = mapped["handle"], 4096
    machine.dom0.grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, unmap)
    assert unmap["status"][0] == abi.GNTST_OKAY


@pytest.mark.parametrize("first", ["xenstored", "dom0"])
def test_a_domid_is_taken_until_dom0_has_let_go_of_it_too(alone: Running, first: str) -> None:
    mapped = mapped_page(alone, alone.guests[0])
    assert alone.destroy(1) == 0 and alone.hears_of_death() == 1
    steps = [lambda: alone.releases(1), lambda: unmap_page(alone, mapped)]
    if first == "dom0":
        steps.reverse()
    steps[0]()
    assert alone.lives() and alone.cannot_create(1) == errno.EEXIST
    steps[1]()
    assert alone.create(1).answers()


@pytest.mark.parametrize("domid", [1, 2, 9, 0, 65535])
def test_a_release_of_who_has_not_died_changes_nothing(alone: Running, domid: int) -> None:
    alone.releases(domid)
    assert alone.lives()
    assert alone.guests[0].answers() and alone.guests[1].answers()
    assert alone.cannot_create(1) == errno.EEXIST
    assert alone.destroy(1) == 0
    assert alone.cannot_create(1) == errno.EEXIST


@pytest.mark.parametrize("domid", [0, 9, GUESTS_MAX + 1, 65535])
def test_who_is_not_there_is_not_destroyed(machine: Running, domid: int) -> None:
    assert machine.destroy(domid) == (-errno.ESRCH if domid else -errno.EINVAL)


def test_a_domid_can_be_used_over_and_over(alone: Running) -> None:
    before = None
    for _ in range(20):
        alone.bury(1)
        alone.guests.pop(0).hypercalls.close()
        alone.guests.insert(0, alone.create(1))
        alone.guests.pop()
        assert alone.lives()
        assert before in (None, len(open_descriptors()))
        before = len(open_descriptors())


def test_two_that_die_together_are_both_told(alone: Running) -> None:
    for born in alone.guests:
        born.hypercalls.close()
    assert sorted([alone.said(), alone.said()]) == [["died", 1], ["died", 2]]
    assert sorted([alone.hears_of_death(), alone.hears_of_death()]) == [1, 2]
    assert answers(alone.dom0._socket)
