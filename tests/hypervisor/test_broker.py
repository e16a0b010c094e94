"""Hypercalls through the real hypervisor: who calls, malformed messages, rude callers, its end."""

import errno
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from common.control import Control, ControlLost, control_pair
from common.hypercall import GATE_KICK, HYPERCALL, MESSAGE_MAX, HypercallError, Hypercalls
from common.machine_memory import host_of
from common.process import open_descriptors
from frontend.grants import end_access, grant_access, new_grants
from machine.broker import main
from tests.hypervisor.running import (
    DOM0_RAM_FRAMES,
    NR_CPUS,
    Born,
    Running,
    query_size,
    rc_of,
    running,
    seqpacket,
    status_of,
)
from toolstack.child import readable

GRANT_TABLE, EVENT_CHANNEL = abi.HYPERVISOR_GRANT_TABLE_OP, abi.HYPERVISOR_EVENT_CHANNEL_OP


@pytest.fixture(scope="module")
def shared() -> Iterator[Running]:
    """One hypervisor, with guests 1 and 2, for all tests that leave it as it was."""
    with running() as hypervisor:
        for domid in (1, 2):
            hypervisor.create(domid, ram_frames=8, grant_frames=2)
        yield hypervisor


@pytest.fixture
def machine(shared: Running) -> Iterator[Running]:
    yield shared
    assert shared.lives() and all(born.answers() for born in shared.guests[:2])


@pytest.fixture
def fresh() -> Iterator[Running]:
    """A hypervisor of the test's own, with guests 1 and 2; it may be left in ruins."""
    with running() as hypervisor:
        for domid in (1, 2):
            hypervisor.create(domid)
        yield hypervisor


# --- the caller is the connection ---------------------------------------------------------------


def test_who_calls_is_told_by_the_connection_not_by_the_message(machine: Running) -> None:
    one, two = (born.hypercalls for born in machine.guests[:2])
    fields = {"dom": abi.DOMID_SELF, "remote_dom": 0}
    alloc = (abi.EVTCHNOP_ALLOC_UNBOUND, abi.EVTCHN_ALLOC_UNBOUND)
    allocated, line = two.event_channel_op("alloc", *alloc, **fields)
    port = allocated["port"][0]
    status = (abi.EVTCHNOP_STATUS, abi.EVTCHN_STATUS)
    seen, _ = machine.dom0.event_channel_op("status", *status, dom=2, port=port)
    assert (seen["status"][0], seen["remote_dom"][0]) == (abi.EVTCHNSTAT_UNBOUND, 0)
    for what in (alloc, status):
        with pytest.raises(HypercallError, match="EPERM"):
            one.event_channel_op("as another", *what, dom=2, remote_dom=0)
    close = (abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE)
    with pytest.raises(HypercallError, match="EINVAL"):
        one.event_channel_op("close another's", *close, port=port)
    two.event_channel_op("close", *close, port=port)
    for fd in line:
        os.close(fd)


def test_a_grant_to_dom0_is_mapped_by_dom0_only(machine: Running) -> None:
    grants = new_grants(Arena(), machine.guests[0].segments["grant"])
    gref = int(grant_access(grants, 0, 3, False))
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["ref"], op["flags"], op["host_addr"] = 1, gref, abi.GNTMAP_HOST_MAP, 4096
    machine.guests[1].hypercalls.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == abi.GNTST_GENERAL_ERROR
    vcpu = machine.dom0.get_vcpu(1)
    vcpu.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == abi.GNTST_OKAY
    assert not end_access(grants, gref)
    unmap = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
    unmap["handle"], unmap["host_addr"] = op["handle"], 4096
    vcpu.grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, unmap)
    assert unmap["status"][0] == abi.GNTST_OKAY
    assert end_access(grants, gref)
    vcpu.close()


def test_flushes_interrupt_the_dirty_cpus_of_shared_memory_and_are_counted_there(
    fresh: Running,
) -> None:
    host = host_of(fresh.memory.segment("host"))
    host["dirty"][0, [0, 2]] = 1
    grants = new_grants(Arena(), fresh.guests[0].segments["grant"])
    grefs = [int(grant_access(grants, 0, 3, False)) for _ in range(33)]
    ops = np.zeros(33, abi.GNTTAB_MAP_GRANT_REF)
    ops["dom"], ops["ref"], ops["flags"], ops["host_addr"] = 1, grefs, 2, 4096
    one, two = fresh.dom0.get_vcpu(1), fresh.dom0.get_vcpu(2)
    one.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, ops)
    assert not ops["status"].any()
    unmaps = np.zeros(33, abi.GNTTAB_UNMAP_GRANT_REF)
    unmaps["handle"], unmaps["host_addr"] = ops["handle"], 4096
    two.grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, unmaps)
    assert not unmaps["status"].any()
    counted = host["hypervisor"][0, 1]
    assert {name: int(counted[name]) for name in counted.dtype.names if counted[name]} == {
        "hypercalls": 2,
        "map_ops": 33,
        "unmap_ops": 33,
        "flushes": 2,
        "flush_entries": 33,
        "ipis": 2,
    }
    cpus = host["cpus"][0, :NR_CPUS]
    assert cpus["ipis_received"].tolist() == [2, 0, 0]
    assert cpus["flushes"].tolist() == [0, 0, 2]
    one.close()
    two.close()


def test_a_copy_moves_bytes_between_two_domains_segments(machine: Running) -> None:
    guest = machine.guests[0]
    guest.segments["ram"][5 * 4096 : 6 * 4096] = 77
    grants = new_grants(Arena(), guest.segments["grant"])
    gref = int(grant_access(grants, 0, 5, True))
    copy = np.zeros(1, abi.GNTTAB_COPY)
    copy["source"]["ref"], copy["source"]["domid"] = gref, 1
    copy["dest"]["gmfn"], copy["dest"]["domid"] = DOM0_RAM_FRAMES - 1, abi.DOMID_SELF
    copy["len"], copy["flags"] = 4096, abi.GNTCOPY_SOURCE_GREF
    machine.dom0.grant_table_op(abi.GNTTABOP_COPY, copy)
    assert copy["status"][0] == abi.GNTST_OKAY
    ram = machine.memory.segment("ram", 0)
    assert set(ram[-4096:].tolist()) == {77}
    assert not ram[:-4096].any()
    assert end_access(grants, gref)


# --- malformed messages -------------------------------------------------------------------------

HEADER = np.array([(GRANT_TABLE, abi.GNTTABOP_MAP_GRANT_REF, 0, 0)], HYPERCALL).tobytes()
KICK = np.array([(GATE_KICK, 0, 0, 0)], HYPERCALL).tobytes()
MALFORMED = [
    ("only a header", HEADER, errno.EINVAL),
    ("a byte behind the header", HEADER + b"x", errno.EINVAL),
    ("a struct and a half", HEADER + bytes(48), errno.EINVAL),
    ("an unknown hypercall", b"\xfe" * 16, errno.ENOSYS),
    ("an unknown hypercall with a payload", b"\xfe" * 4096, errno.ENOSYS),
    ("a kick, which is dom0's", KICK, errno.ENOSYS),
    ("a domctl", np.array([(36, 1, 0, 0)], HYPERCALL).tobytes() + bytes(12), errno.EPERM),
    ("an event channel's", np.array([(32, 6, 0, 0)], HYPERCALL).tobytes() + b"x", errno.EINVAL),
    ("the longest message", HEADER + bytes(MESSAGE_MAX - 16 - 1), errno.EINVAL),
]
NO_CALLS = [b"x", bytes(15), b"\xff" * 15, HEADER + bytes(MESSAGE_MAX - 16 + 1), bytes(150_000)]


@pytest.mark.parametrize(("case", "message", "error"), MALFORMED, ids=[c[0] for c in MALFORMED])
def test_a_malformed_call_gets_its_error_and_the_next_one_its_answer(
    machine: Running, case: str, message: bytes, error: int
) -> None:
    connection = machine.guests[0].socket
    for _ in range(2):
        connection.send(message)
        reply = connection.recv(1 << 16)
        assert rc_of(reply) == -error
        assert reply[HYPERCALL.itemsize :] == message[HYPERCALL.itemsize :]
    connection.send(query_size())
    assert rc_of(connection.recv(1 << 16)) == 0


@pytest.mark.parametrize("message", NO_CALLS, ids=[f"{len(m)}-{m[:1]!r}" for m in NO_CALLS])
def test_what_is_no_call_is_an_error_of_16_bytes_and_the_next_one_has_its_answer(
    machine: Running, message: bytes
) -> None:
    connection = machine.guests[0].socket
    connection.send(message)
    reply = connection.recv(1 << 16)
    assert (len(reply), rc_of(reply)) == (HYPERCALL.itemsize, -errno.EINVAL)
    connection.send(query_size())
    assert rc_of(connection.recv(1 << 16)) == 0


def test_the_longest_call_there_can_be_is_answered_whole(machine: Running) -> None:
    ops = np.zeros((MESSAGE_MAX - 16) // abi.GNTTAB_COPY.itemsize, abi.GNTTAB_COPY)
    assert machine.guests[0].hypercalls.call(GRANT_TABLE, abi.GNTTABOP_COPY, ops) == 0
    assert set(ops["status"].tolist()) == {abi.GNTST_PERMISSION_DENIED}


def test_random_bytes_get_an_answer_each(machine: Running) -> None:
    rng = np.random.default_rng(1)
    rude = machine.create(30)
    rude.socket.settimeout(60)
    for _ in range(500):
        message = rng.bytes(int(rng.integers(16, 200)))
        if rng.random() < 0.8:
            call = (int(rng.choice([20, 32, 36])), int(rng.integers(0, 12)), 0, 0)
            message = np.array([call], HYPERCALL).tobytes() + message
        rude.socket.send(message)
        reply, descriptors, _, _ = socket.recv_fds(rude.socket, 1 << 16, 8)
        for fd in descriptors:
            os.close(fd)
        assert len(reply) == len(message)
        assert -200 < rc_of(reply) <= 0
    machine.bury(30)


def test_descriptors_that_come_with_a_call_are_dropped(machine: Running) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    before = open_descriptors()
    connection = machine.guests[0].socket
    for _ in range(20):
        socket.send_fds(connection, [query_size()], [null] * 50)
        assert rc_of(connection.recv(1 << 16)) == 0
    assert open_descriptors() == before
    os.close(null)


# --- rude callers -------------------------------------------------------------------------------


def test_calls_sent_before_the_answers_are_read_are_answered_in_order(machine: Running) -> None:
    connection = machine.guests[0].socket
    for domid in (1, 2, 9) * 10:
        connection.send(query_size(domid))
    statuses = [status_of(connection.recv(1 << 16)) for _ in range(30)]
    expected = [abi.GNTST_OKAY, abi.GNTST_PERMISSION_DENIED, abi.GNTST_BAD_DOMAIN]
    assert statuses == expected * 10


def flood(born: Born, messages: list[bytes]) -> None:
    """Send calls and read no answer, until that cannot be done any more."""
    born.socket.settimeout(20)
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for message in itertools.cycle(messages):
            born.socket.send(message)


ALLOC = np.array([(EVENT_CHANNEL, abi.EVTCHNOP_ALLOC_UNBOUND, 0, 0)], HYPERCALL).tobytes()
ALLOC += np.array([(abi.DOMID_SELF, 0, 0)], abi.EVTCHN_ALLOC_UNBOUND).tobytes()
RESET = np.array([(EVENT_CHANNEL, abi.EVTCHNOP_RESET, 0, 0)], HYPERCALL).tobytes()
RESET += np.array([abi.DOMID_SELF], abi.EVTCHN_RESET).tobytes()


@pytest.mark.parametrize(
    "messages",
    [[query_size()], [HEADER + bytes(MESSAGE_MAX - 16)], [*[ALLOC] * 10, RESET]],
    ids=["small", "long", "with descriptors"],
)
def test_who_does_not_read_its_answers_loses_its_connection_and_nobody_else_does(
    fresh: Running, messages: list[bytes]
) -> None:
    assert fresh.lives()
    before = len(open_descriptors())
    flood(fresh.guests[0], messages)
    assert fresh.said() == ["died", 1]
    assert fresh.hears_of_death() == 1
    assert fresh.lives() and fresh.guests[1].answers()
    fresh.guests[0].socket.close()
    assert len(open_descriptors()) == before - 6  # both ends of the connection, four segments


def test_who_floods_is_served_no_more_often_than_others(fresh: Running) -> None:
    """Between two calls of one, each of the others has had one."""
    stop = threading.Event()
    rude = fresh.guests[0].socket

    def pump() -> None:
        while not stop.is_set():
            rude.send(query_size())
            rude.recv(1 << 16)

    pumping = [threading.Thread(target=pump) for _ in range(2)]
    for thread in pumping:
        thread.start()
    for _ in range(200):
        assert fresh.lives()
    stop.set()
    for thread in pumping:
        thread.join(60)
    assert fresh.guests[1].answers()


def test_many_callers_at_once_have_each_its_own_answers(fresh: Running) -> None:
    vcpus = [fresh.dom0.get_vcpu(cpu) for cpu in range(NR_CPUS)]
    callers = [*vcpus, *(born.hypercalls for born in fresh.guests)]
    wrong: list[str] = []

    def call(me: int, calls: Hypercalls) -> None:
        for number in range(300):
            count = 1 + (me + number) % 7
            ops = np.zeros(count, abi.GNTTAB_MAP_GRANT_REF)
            ops["dom"], ops["ref"] = 99, me * 1000 + number
            calls.grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, ops)
            if (ops["status"] != abi.GNTST_BAD_DOMAIN).any() or (
                ops["ref"] != me * 1000 + number
            ).any():
                wrong.append(f"{me}: {number}")

    threads = [threading.Thread(target=call, args=each) for each in enumerate(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []
    for vcpu in vcpus:
        vcpu.close()


def test_a_domain_destroyed_with_calls_on_their_way_stops_nobody(fresh: Running) -> None:
    long = np.zeros((MESSAGE_MAX - 16) // abi.GNTTAB_COPY.itemsize, abi.GNTTAB_COPY)
    call = np.array([(GRANT_TABLE, abi.GNTTABOP_COPY, 0, 0)], HYPERCALL).tobytes() + long.tobytes()
    for _ in range(5):
        fresh.guests[0].socket.send(call)
    assert fresh.destroy(1) == 0
    assert fresh.lives() and fresh.guests[1].answers()
    assert fresh.hears_of_death() == 1


# --- its own end --------------------------------------------------------------------------------


def test_it_has_no_named_memory_at_any_time(fresh: Running) -> None:
    assert not list(Path("/dev/shm").glob(f"grantlab-{fresh.topology_id}*"))


def test_it_ends_when_told_and_every_connection_with_it(fresh: Running) -> None:
    fresh.exit()
    assert not any(born.answers() for born in fresh.guests)
    with pytest.raises(HypercallError, match="does not answer"):
        fresh.dom0.get_vcpu(0)


def test_without_xenstored_it_lives_until_the_toolstack_ends_it(fresh: Running) -> None:
    fresh.virq.close()
    assert fresh.lives()
    fresh.guests[0].hypercalls.close()
    assert fresh.said() == ["died", 1]
    assert fresh.lives() and fresh.guests[1].answers()


def test_an_xenstored_that_goes_with_a_death_unread_is_no_more_than_gone(fresh: Running) -> None:
    fresh.guests[0].hypercalls.close()
    assert fresh.said() == ["died", 1]
    assert readable(fresh.virq.fileno(), 60)
    fresh.virq.close()  # a reset, not an end
    assert fresh.lives() and fresh.guests[1].answers()


def test_an_unknown_command_is_answered_and_it_lives(fresh: Running) -> None:
    fresh.control.send("help")
    assert fresh.said() == ["error", "no such command 'help'; allowed are exit, grants, maptrack"]
    assert fresh.lives()


def test_a_packet_on_the_virq_line_that_is_no_domid_is_xenstoreds_end(fresh: Running) -> None:
    fresh.virq.send(b"x")
    assert fresh.lives() and fresh.lives()


def given_to_main() -> tuple[Control, list[socket.socket], list[int]]:
    """The toolstack's end, the other ends, and the descriptors a process is born with."""
    control, its = control_pair()
    pairs = [seqpacket() for _ in range(3)]
    return control, [a for a, _ in pairs], [its.detach(), *(b.detach() for _, b in pairs)]


def test_it_says_why_it_cannot_start() -> None:
    control, others, descriptors = given_to_main()
    config = {
        "topology_id": "test",
        "nr_cpus": 1,
        "flush_policy": "mask",
        "dom0_ram_frames": 2**32 - 1,
        "events": "pipe",
    }
    with pytest.raises(SystemExit) as ended:
        main(config, descriptors)
    assert ended.value.code == 1
    message = control.receive(10)
    assert message is not None and message[0] == "error"
    assert message[1].startswith("hypervisor: ") and "grantlab-test-0-ram" in message[1]
    for end in (control, *others):
        end.close()


def test_a_toolstack_that_is_gone_ends_it() -> None:
    control, others, descriptors = given_to_main()
    config = {
        "topology_id": "test",
        "nr_cpus": 1,
        "flush_policy": "mask",
        "dom0_ram_frames": 1,
        "events": "pipe",
    }
    threading.Timer(0.2, control.close).start()
    with pytest.raises(ControlLost):  # which the fork server takes for what it is
        main(config, descriptors)
    for end in others:
        end.close()
