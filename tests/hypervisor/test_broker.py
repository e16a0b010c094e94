"""The hypervisor's real process: hypercalls over ZeroMQ, memory, xenstore, and rude guests."""

import errno
import multiprocessing
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from common import abi
from common.hypercall import (
    DOMCTL_CREATEDOMAIN,
    DOMCTL_DESTROYDOMAIN,
    DOMCTL_DOMAIN,
    HYPERCALL,
    MESSAGE_MAX,
    HypercallError,
    Hypercalls,
    hypercall_address,
)
from common.machine_memory import (
    GUESTS_MAX,
    STATS,
    MachineMemory,
    SegmentRefused,
    host_of,
    whole_pages,
)
from common.xenstore import XenStoreClient, XenStoreError
from frontend.grants import end_access, grant_access, new_grants
from hypervisor.broker import BrokerConfig, main

pytestmark = pytest.mark.system

NR_CPUS = 3
DOM0_RAM_FRAMES = 16
ANSWER_MS = 60_000  # a limit for what answers at once
SILENCE_MS = 3_000  # given up after this, where no answer is a known bug
GRANT_TABLE, EVENT_CHANNEL = abi.HYPERVISOR_GRANT_TABLE_OP, abi.HYPERVISOR_EVENT_CHANNEL_OP
QUERY_SIZE = HYPERCALL.itemsize + abi.GNTTAB_QUERY_SIZE.itemsize


class Machine:
    """A broker in a process of its own, and the ways into it."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self.topology_id = secrets.token_hex(4)
        self.store_path = f"{run_dir}/xenstored"
        config = BrokerConfig(
            run_dir, self.topology_id, self.store_path, NR_CPUS, "mask", DOM0_RAM_FRAMES
        )
        context = multiprocessing.get_context("spawn")
        self.control, theirs = context.Pipe()
        self.process = context.Process(target=main, args=(config, theirs), daemon=True)
        self.process.start()
        theirs.close()
        assert self.said() == ("ok", None)
        self.zmq = zmq.Context()
        self.zmq.set(zmq.BLOCKY, 0)
        self._calls: dict[tuple[int, int], Hypercalls] = {}

    def said(self) -> Any:
        """The broker's next word on the control pipe."""
        assert self.control.poll(ANSWER_MS / 1000)
        return self.control.recv()

    def calls(self, domid: int, vcpu: int = 0) -> Hypercalls:
        """The hypercall client of a vCPU."""
        if (domid, vcpu) not in self._calls:
            self._calls[domid, vcpu] = Hypercalls(self.run_dir, domid, vcpu)
        return self._calls[domid, vcpu]

    def memory(self, domid: int) -> MachineMemory:
        """The memory a domain can have."""
        return MachineMemory(self.run_dir, domid)

    def domctl(self, cmd: int, domid: int, *, by: int = 0, **fields: int) -> int:
        """Create or destroy a domain; the rc."""
        order = np.zeros(1, DOMCTL_DOMAIN)
        values = {"nr_vcpus": 1, "ram_frames": 8, "grant_frames": 1, **fields}
        order["domid"] = domid
        for name, value in values.items():
            order[name] = value
        return self.calls(by).call(abi.HYPERVISOR_DOMCTL, cmd, order)

    def create(self, domid: int, **fields: int) -> int:
        return self.domctl(DOMCTL_CREATEDOMAIN, domid, **fields)

    def destroy(self, domid: int) -> int:
        return self.domctl(DOMCTL_DESTROYDOMAIN, domid)

    @contextmanager
    def rude(self, kind: int, domid: int = 1) -> Iterator["zmq.Socket[bytes]"]:
        """A raw socket to the domain's hypercalls."""
        sock: zmq.Socket[bytes] = self.zmq.socket(kind)
        sock.setsockopt(zmq.RCVTIMEO, ANSWER_MS)
        sock.connect(hypercall_address(self.run_dir, domid, 0))
        try:
            yield sock
        finally:
            sock.close(linger=0)

    def reply(self, sock: "zmq.Socket[bytes]", within_ms: int = ANSWER_MS) -> bytes | None:
        """What `sock` is answered; None if the time runs out, or at once if the process dies."""
        ready = zmq.Poller()
        ready.register(sock, zmq.POLLIN)
        ready.register(self.process.sentinel, zmq.POLLIN)
        return sock.recv_multipart()[-1] if sock in dict(ready.poll(within_ms)) else None

    def answers(self, domid: int = 0, within_ms: int = ANSWER_MS) -> bool:
        """Is a hypercall of the domain answered?"""
        with self.rude(zmq.REQ, domid) as sock:
            sock.send(query_size())
            return self.reply(sock, within_ms) is not None

    def goes_on(self) -> bool:
        """Does dom0 get its answers, for long enough that all that was sent has been taken?"""
        return all(self.answers(0, SILENCE_MS) for _ in range(20))

    def end(self) -> None:
        for calls in self._calls.values():
            calls.close()
        self.zmq.destroy(linger=0)
        self.process.kill()
        self.process.join()
        self.process.close()
        self.control.close()


def query_size(domid: int = abi.DOMID_SELF) -> bytes:
    """The message of a GNTTABOP_query_size."""
    header, args = np.zeros(1, HYPERCALL), np.zeros(1, abi.GNTTAB_QUERY_SIZE)
    header["number"], header["cmd"] = GRANT_TABLE, abi.GNTTABOP_QUERY_SIZE
    args["dom"] = domid
    return header.tobytes() + args.tobytes()


def rc_of(reply: bytes) -> int:
    return int(np.frombuffer(reply, HYPERCALL, count=1)["rc"][0])


@contextmanager
def started() -> Iterator[Machine]:
    run_dir = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    machine = Machine(run_dir)
    try:
        yield machine
    finally:
        machine.end()
        shutil.rmtree(run_dir)


@pytest.fixture(scope="module")
def shared() -> Iterator[Machine]:
    """One machine for all tests that leave it as it was but for a domain of their own."""
    with started() as machine:
        yield machine


@pytest.fixture
def machine(shared: Machine) -> Machine:
    """The shared machine with guests 1 and 2."""
    for domid in (1, 2):
        assert shared.create(domid, ram_frames=8, grant_frames=2) in (0, -errno.EEXIST)
    return shared


@pytest.fixture
def fresh() -> Iterator[Machine]:
    """A machine of the test's own, with guest 1; it may be left in ruins."""
    with started() as machine:
        assert machine.create(1) == 0
        yield machine


# --- domains ------------------------------------------------------------------------------------


def test_a_created_domain_has_hypercalls_memory_and_a_store(machine: Machine) -> None:
    assert machine.create(5, ram_frames=9, grant_frames=3, nr_vcpus=2) == 0
    for vcpu in (0, 1):
        size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
        size["dom"] = abi.DOMID_SELF
        machine.calls(5, vcpu).grant_table_op(abi.GNTTABOP_QUERY_SIZE, size)
        assert (size["nr_frames"][0], size["status"][0]) == (3, abi.GNTST_OKAY)
    memory = machine.memory(5)
    sizes = {name: memory.segment(name, 5).nbytes for name in ("ram", "grant", "event", "stats")}
    assert sizes == {
        "ram": 9 * 4096,
        "grant": 3 * 4096,
        "event": 2 * 4096,
        "stats": whole_pages(STATS.itemsize),
    }
    memory.forget(5)
    store = XenStoreClient(f"{machine.run_dir}/xenstored-5")
    with pytest.raises(XenStoreError, match="EACCES"):
        store.directory("/")
    store.close()


def test_a_new_domains_memory_is_zero_but_for_its_masked_events(machine: Machine) -> None:
    assert machine.create(6) == 0
    memory = machine.memory(6)
    for name in ("ram", "grant", "stats"):
        assert not memory.segment(name, 6).bytes.any()
    words = memory.segment("event", 6).bytes.view(np.uint64)
    assert np.flatnonzero(words).tolist() == [*range(320, 384), *range(832, 896)]
    assert set(words[320:384].tolist()) == {2**64 - 1}
    memory.forget(6)


def test_dom0_has_a_vcpu_for_each_cpu(machine: Machine) -> None:
    for vcpu in range(NR_CPUS):
        size = np.zeros(1, abi.GNTTAB_QUERY_SIZE)
        machine.calls(0, vcpu).grant_table_op(abi.GNTTABOP_QUERY_SIZE, size)
        assert (size["nr_frames"][0], size["status"][0]) == (1, abi.GNTST_OKAY)


@pytest.mark.parametrize("domid", [0, GUESTS_MAX + 1, abi.DOMID_SELF, 65535])
def test_a_domid_out_of_range_is_neither_made_nor_destroyed(machine: Machine, domid: int) -> None:
    assert machine.create(domid) == -errno.EINVAL
    assert machine.destroy(domid) == -errno.EINVAL


def test_a_domain_is_made_once_and_destroyed_once(machine: Machine) -> None:
    assert machine.create(7) == 0
    assert machine.create(7) == -errno.EEXIST
    assert machine.destroy(7) == 0
    assert machine.destroy(7) == -errno.ESRCH


@pytest.mark.parametrize("cmd", [DOMCTL_CREATEDOMAIN, DOMCTL_DESTROYDOMAIN, 99])
@pytest.mark.parametrize("domid", [1, 2, 9])
def test_a_guest_makes_and_destroys_no_domain(machine: Machine, cmd: int, domid: int) -> None:
    assert machine.domctl(cmd, domid, by=1) == -errno.EPERM
    assert machine.answers(1) and machine.answers(2)


def test_a_domctl_has_one_form(machine: Machine) -> None:
    assert machine.domctl(99, 9) == -errno.ENOSYS
    for nbytes in (0, 1, DOMCTL_DOMAIN.itemsize - 1, 2 * DOMCTL_DOMAIN.itemsize):
        payload = np.zeros(nbytes, np.uint8)
        for cmd in (DOMCTL_CREATEDOMAIN, DOMCTL_DESTROYDOMAIN):
            rc = machine.calls(0).call(abi.HYPERVISOR_DOMCTL, cmd, payload)
            assert rc == -errno.EINVAL


def test_ram_that_does_not_fit_is_enomem_with_the_reason_on_the_pipe(machine: Machine) -> None:
    assert machine.create(8, ram_frames=2**32 - 1) == -errno.ENOMEM
    kind, text = machine.said()
    assert kind == "error"
    assert f"grantlab-{machine.topology_id}-8-ram" in text
    assert machine.create(8) == 0


def test_a_destroyed_domain_has_no_memory_and_no_store(machine: Machine) -> None:
    assert machine.create(9) == 0
    assert machine.destroy(9) == 0
    for name in ("ram", "event", "stats"):
        with pytest.raises(SegmentRefused):
            machine.memory(0).segment(name, 9)
    for path in ("memory-9", "xenstored-9"):
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
            pytest.raises(OSError, match=r"refused|No such file|wrong type"),
        ):
            connection.connect(f"{machine.run_dir}/{path}")


# --- the caller is the socket -------------------------------------------------------------------


def test_who_calls_is_told_by_the_socket_not_by_the_message(machine: Machine) -> None:
    fields = {"dom": abi.DOMID_SELF, "remote_dom": 0}
    alloc = (abi.EVTCHNOP_ALLOC_UNBOUND, abi.EVTCHN_ALLOC_UNBOUND)
    port = machine.calls(2).event_channel_op("alloc", *alloc, **fields)["port"][0]
    status = (abi.EVTCHNOP_STATUS, abi.EVTCHN_STATUS)
    seen = machine.calls(0).event_channel_op("status", *status, dom=2, port=port)
    assert (seen["status"][0], seen["remote_dom"][0]) == (abi.EVTCHNSTAT_UNBOUND, 0)
    for what in (alloc, status):
        with pytest.raises(HypercallError, match="EPERM"):
            machine.calls(1).event_channel_op("as another", *what, dom=2, remote_dom=0)
    close = (abi.EVTCHNOP_CLOSE, abi.EVTCHN_CLOSE)
    with pytest.raises(HypercallError, match="EINVAL"):
        machine.calls(1).event_channel_op("close another's", *close, port=port)
    machine.calls(2).event_channel_op("close", *close, port=port)


def test_a_grant_to_dom0_is_mapped_by_dom0_only(machine: Machine) -> None:
    memory = machine.memory(1)
    grants = new_grants(memory.segment("grant", 1).bytes)
    gref = int(grant_access(grants, 0, 3, False))
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["ref"], op["flags"], op["host_addr"] = 1, gref, abi.GNTMAP_HOST_MAP, 4096
    machine.calls(2).grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == abi.GNTST_GENERAL_ERROR
    machine.calls(0, 1).grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == abi.GNTST_OKAY
    assert not end_access(grants, gref)
    unmap = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
    unmap["handle"], unmap["host_addr"] = op["handle"], 4096
    machine.calls(0, 1).grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, unmap)
    assert unmap["status"][0] == abi.GNTST_OKAY
    assert end_access(grants, gref)
    memory.forget(1)


def test_flushes_interrupt_the_dirty_cpus_of_shared_memory_and_are_counted_there(
    machine: Machine,
) -> None:
    assert machine.create(10) == 0
    memory, dom0 = machine.memory(10), machine.memory(0)
    host = host_of(dom0.segment("host"))
    before = host.copy()
    host["dirty"][0, [0, 2]] = 1
    grants = new_grants(memory.segment("grant", 10).bytes)
    grefs = [int(grant_access(grants, 0, 3, False)) for _ in range(33)]
    ops = np.zeros(33, abi.GNTTAB_MAP_GRANT_REF)
    ops["dom"], ops["ref"], ops["flags"], ops["host_addr"] = 10, grefs, 2, 4096
    machine.calls(0, 1).grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, ops)
    assert not ops["status"].any()
    unmaps = np.zeros(33, abi.GNTTAB_UNMAP_GRANT_REF)
    unmaps["handle"], unmaps["host_addr"] = ops["handle"], 4096
    machine.calls(0, 2).grant_table_op(abi.GNTTABOP_UNMAP_GRANT_REF, unmaps)
    assert not unmaps["status"].any()
    counted = host["hypervisor"][0, 10]
    assert {name: int(counted[name]) for name in counted.dtype.names if counted[name]} == {
        "hypercalls": 2,
        "map_ops": 33,
        "unmap_ops": 33,
        "flushes": 2,
        "flush_entries": 33,
        "ipis": 2,
    }
    cpus, earlier = host["cpus"][0, :NR_CPUS], before["cpus"][0, :NR_CPUS]
    assert (cpus["ipis_received"] - earlier["ipis_received"]).tolist() == [2, 0, 0]
    assert (cpus["flushes"] - earlier["flushes"]).tolist() == [0, 0, 2]
    host["dirty"][0] = 0
    del host, counted, cpus
    memory.forget(10)


def test_a_copy_moves_bytes_between_two_domains_segments(machine: Machine) -> None:
    guest, dom0 = machine.memory(1), machine.memory(0)
    guest.segment("ram", 1).frames(5, 1)[:] = 77
    grants = new_grants(guest.segment("grant", 1).bytes)
    gref = int(grant_access(grants, 0, 5, True))
    copy = np.zeros(1, abi.GNTTAB_COPY)
    copy["source"]["ref"], copy["source"]["domid"] = gref, 1
    copy["dest"]["gmfn"], copy["dest"]["domid"] = DOM0_RAM_FRAMES - 1, abi.DOMID_SELF
    copy["len"], copy["flags"] = 4096, abi.GNTCOPY_SOURCE_GREF
    machine.calls(0).grant_table_op(abi.GNTTABOP_COPY, copy)
    assert copy["status"][0] == abi.GNTST_OKAY
    ram = dom0.segment("ram", 0)
    assert set(ram.frames(DOM0_RAM_FRAMES - 1, 1).tolist()) == {77}
    assert not ram.frames(0, DOM0_RAM_FRAMES - 1).any()
    assert end_access(grants, gref)
    guest.forget(1)


def test_a_guests_memory_is_its_own(machine: Machine) -> None:
    for name, domid in (("ram", 2), ("ram", 0), ("grant", 0), ("host", 0), ("accessed", 0)):
        with pytest.raises(SegmentRefused):
            machine.memory(1).segment(name, domid)
    with pytest.raises(SegmentRefused):
        machine.memory(0).segment("grant", 1)


def test_each_domain_has_a_store_socket_that_is_its_identity(machine: Machine) -> None:
    dom0 = XenStoreClient(machine.store_path)
    dom0.write("/grantlab-test", b"dom0's")
    dom0.set_perms("/grantlab-test", ["n0", "r1"])
    guest, other = (XenStoreClient(f"{machine.run_dir}/xenstored-{domid}") for domid in (1, 2))
    assert guest.read("/grantlab-test") == b"dom0's"
    for client, act in ((guest, guest.write), (other, other.write)):
        with pytest.raises(XenStoreError, match="EACCES"):
            act("/grantlab-test", b"mine")
        client.close()
    dom0.rm("/grantlab-test")
    dom0.close()


# --- malformed messages -------------------------------------------------------------------------

HEADER = np.array([(GRANT_TABLE, abi.GNTTABOP_MAP_GRANT_REF, 0, 0)], HYPERCALL).tobytes()
MALFORMED = [
    ("only a header", HEADER, errno.EINVAL),
    ("a byte behind the header", HEADER + b"x", errno.EINVAL),
    ("a struct and a half", HEADER + bytes(48), errno.EINVAL),
    ("an unknown hypercall", b"\xff" * 16, errno.ENOSYS),
    ("an unknown hypercall with a payload", b"\xff" * 4096, errno.ENOSYS),
    ("a domctl", np.array([(36, 1, 0, 0)], HYPERCALL).tobytes() + bytes(12), errno.EPERM),
    ("the longest message", HEADER + bytes(MESSAGE_MAX - 16 - 1), errno.EINVAL),
]
SHORT = [b"", b"x", bytes(HYPERCALL.itemsize - 1), b"\xff" * (HYPERCALL.itemsize - 1)]


@pytest.mark.parametrize(("case", "message", "error"), MALFORMED, ids=[c[0] for c in MALFORMED])
def test_a_malformed_message_gets_its_error_and_the_next_one_its_answer(
    machine: Machine, case: str, message: bytes, error: int
) -> None:
    with machine.rude(zmq.REQ) as sock:
        for _ in range(2):
            sock.send(message)
            reply = sock.recv()
            assert rc_of(reply) == -error
            assert reply[HYPERCALL.itemsize :] == message[HYPERCALL.itemsize :]
        sock.send(query_size())
        assert rc_of(sock.recv()) == 0
    assert machine.answers(0) and machine.answers(2)


@pytest.mark.parametrize("message", SHORT, ids=[f"{len(m)}-{m[:1]!r}" for m in SHORT])
def test_a_message_without_a_header_is_answered_and_the_next_one_too(
    machine: Machine, message: bytes
) -> None:
    with machine.rude(zmq.REQ) as sock:
        sock.send(message)
        assert len(sock.recv()) == HYPERCALL.itemsize
        sock.send(query_size())
        assert rc_of(sock.recv()) == 0


def test_a_message_without_a_header_is_an_error(machine: Machine) -> None:
    with machine.rude(zmq.REQ) as sock:
        sock.send(b"x")
        assert rc_of(sock.recv()) == -errno.EINVAL


def test_the_longest_call_there_can_be_is_answered_whole(machine: Machine) -> None:
    ops = np.zeros((MESSAGE_MAX - 16) // abi.GNTTAB_COPY.itemsize, abi.GNTTAB_COPY)
    assert machine.calls(1).call(GRANT_TABLE, abi.GNTTABOP_COPY, ops) == 0
    assert set(ops["status"].tolist()) == {abi.GNTST_PERMISSION_DENIED}


def test_random_bytes_get_an_answer_each(machine: Machine) -> None:
    rng = np.random.default_rng(1)
    with machine.rude(zmq.REQ) as sock:
        for _ in range(300):
            message = rng.bytes(int(rng.integers(16, 200)))
            if rng.random() < 0.8:
                call = (int(rng.choice([20, 32, 36])), int(rng.integers(0, 12)), 0, 0)
                message = np.array([call], HYPERCALL).tobytes() + message
            sock.send(message)
            reply = sock.recv()
            assert len(reply) == len(message)
            assert -200 < rc_of(reply) <= 0
    assert machine.answers(0) and machine.answers(2)


# --- rude sockets -------------------------------------------------------------------------------


def test_who_connects_and_goes_away_is_missed_by_nobody(machine: Machine) -> None:
    for _ in range(20):
        with machine.rude(zmq.REQ):
            pass
        with machine.rude(zmq.REQ) as sock:
            sock.send(query_size())
    assert machine.answers(1) and machine.answers(0)


def test_a_client_that_sends_many_without_reading_gets_them_answered_in_order(
    machine: Machine,
) -> None:
    with machine.rude(zmq.DEALER) as sock:
        for domid in (1, 2, 9) * 50:
            sock.send_multipart([b"", query_size(domid)])
        statuses = []
        for _ in range(150):
            _, reply = sock.recv_multipart()
            op = np.frombuffer(reply, abi.GNTTAB_QUERY_SIZE, offset=HYPERCALL.itemsize)
            statuses.append(int(op["status"][0]))
    expected = [abi.GNTST_OKAY, abi.GNTST_PERMISSION_DENIED, abi.GNTST_BAD_DOMAIN]
    assert statuses == expected * 50


def test_answers_that_nobody_reads_stop_nobody(machine: Machine) -> None:
    with machine.rude(zmq.DEALER) as sock:
        sock.setsockopt(zmq.RCVHWM, 1)
        for _ in range(500):
            sock.send_multipart([b"", query_size()])
        assert machine.answers(0) and machine.answers(2)


def test_two_clients_of_one_vcpu_get_each_its_own_answers(machine: Machine) -> None:
    with machine.rude(zmq.REQ) as first, machine.rude(zmq.REQ) as second:
        first.send(query_size(2))
        second.send(query_size())
        replies = [second.recv(), first.recv()]
    ops = [np.frombuffer(r, abi.GNTTAB_QUERY_SIZE, offset=HYPERCALL.itemsize) for r in replies]
    assert [int(op["status"][0]) for op in ops] == [abi.GNTST_OKAY, abi.GNTST_PERMISSION_DENIED]


def test_a_message_beyond_the_limit_is_dropped_with_its_connection(machine: Machine) -> None:
    with machine.rude(zmq.REQ) as sock:
        sock.send(bytes(MESSAGE_MAX + 1))
        assert machine.answers(1) and machine.answers(0)


def test_bytes_that_are_no_zeromq_stop_nobody(machine: Machine) -> None:
    path = hypercall_address(machine.run_dir, 1, 0).removeprefix("ipc://")
    for garbage in (b"", b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10_000):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(garbage)
    assert machine.answers(1) and machine.answers(0)


@pytest.mark.parametrize(
    "parts",
    [[query_size(), b""], [HEADER, bytes(32)], [b"", b"", b""]],
    ids=["call-empty", "header-payload", "empty"],
)
def test_a_message_of_several_parts_stops_nobody(fresh: Machine, parts: list[bytes]) -> None:
    with fresh.rude(zmq.REQ) as sock:
        sock.send(query_size())
        assert fresh.reply(sock)
        sock.send_multipart(parts)
        assert fresh.goes_on()
        assert fresh.answers(1)


@pytest.mark.parametrize("message", [b"x", query_size()], ids=["a-byte", "a-call"])
def test_a_message_without_the_empty_part_before_it_stops_nobody(
    fresh: Machine, message: bytes
) -> None:
    with fresh.rude(zmq.DEALER) as sock:
        sock.send_multipart([b"", query_size()])
        assert fresh.reply(sock)
        sock.send(message)
        assert fresh.goes_on()
        assert fresh.answers(1)


# --- domains that go and come -------------------------------------------------------------------


def test_a_domain_destroyed_with_a_call_on_its_way_stops_nobody(fresh: Machine) -> None:
    long = np.zeros((MESSAGE_MAX - 16) // abi.GNTTAB_COPY.itemsize, abi.GNTTAB_COPY)
    call = np.array([(GRANT_TABLE, abi.GNTTABOP_COPY, 0, 0)], HYPERCALL).tobytes() + long.tobytes()
    order = np.array([(1, 0, 0, 0)], DOMCTL_DOMAIN)
    destroy = np.array([(abi.HYPERVISOR_DOMCTL, DOMCTL_DESTROYDOMAIN, 0, 0)], HYPERCALL)
    with fresh.rude(zmq.REQ, 0) as dom0, fresh.rude(zmq.DEALER, 1) as guest:
        dom0.send(query_size())
        assert fresh.reply(dom0)
        for _ in range(5):
            guest.send_multipart([b"", call])
        assert fresh.reply(guest)
        # The hypervisor is at the guest's second call now, with more of them behind it.
        dom0.send(destroy.tobytes() + order.tobytes())
        assert fresh.reply(dom0)
        assert fresh.goes_on()


def test_a_destroyed_domain_can_be_made_again(fresh: Machine) -> None:
    assert fresh.destroy(1) == 0
    order = np.array([(1, 1, 8, 1)], DOMCTL_DOMAIN)
    create = np.array([(abi.HYPERVISOR_DOMCTL, DOMCTL_CREATEDOMAIN, 0, 0)], HYPERCALL)
    with fresh.rude(zmq.REQ, 0) as sock:
        sock.send(create.tobytes() + order.tobytes())
        reply = fresh.reply(sock)
    assert reply and rc_of(reply) == 0
    assert fresh.answers(1)


def test_a_dying_domains_domid_is_refused_until_it_is_gone(fresh: Machine) -> None:
    grants = new_grants(fresh.memory(1).segment("grant", 1).bytes)
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["dom"], op["flags"], op["host_addr"] = 1, abi.GNTMAP_HOST_MAP, 4096
    op["ref"] = int(grant_access(grants, 0, 3, False))
    fresh.calls(0).grant_table_op(abi.GNTTABOP_MAP_GRANT_REF, op)
    assert op["status"][0] == abi.GNTST_OKAY
    assert fresh.destroy(1) == 0
    order = np.array([(1, 1, 8, 1)], DOMCTL_DOMAIN)
    create = np.array([(abi.HYPERVISOR_DOMCTL, DOMCTL_CREATEDOMAIN, 0, 0)], HYPERCALL)
    with fresh.rude(zmq.REQ, 0) as sock:
        sock.send(create.tobytes() + order.tobytes())
        reply = fresh.reply(sock)
    assert reply and rc_of(reply) == -errno.EEXIST


@pytest.mark.parametrize("fields", [{"grant_frames": 2**32 - 1}, {"grant_frames": 0}])
def test_a_domain_half_made_leaves_nothing_behind(fresh: Machine, fields: dict[str, int]) -> None:
    assert fresh.create(3, **fields) in (-errno.ENOMEM, -errno.EINVAL)
    with pytest.raises(SegmentRefused):
        fresh.memory(0).segment("ram", 3)
    assert fresh.create(3) == 0
    assert fresh.destroy(3) == 0


# --- its own end --------------------------------------------------------------------------------


def test_it_ends_when_told_and_leaves_no_memory_and_no_store(fresh: Machine) -> None:
    memory = fresh.memory(1)
    memory.segment("ram", 1)
    assert not list(Path("/dev/shm").glob(f"grantlab-{fresh.topology_id}*"))
    fresh.control.send(("exit",))
    assert fresh.said() == ("ok", None)
    fresh.process.join(ANSWER_MS / 1000)
    assert fresh.process.exitcode == 0
    assert not [name for name in os.listdir(fresh.run_dir) if name.startswith("xenstored")]
    memory.forget(1)


def test_it_says_why_it_cannot_start() -> None:
    run_dir = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    ours, theirs = multiprocessing.Pipe()
    config = BrokerConfig(f"{run_dir}/none", secrets.token_hex(4), f"{run_dir}/x", 1, "mask", 16)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=main, args=(config, theirs), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(ANSWER_MS / 1000)
    kind, text = ours.recv()
    process.join()
    assert (kind, process.exitcode) == ("error", 1)
    assert text.startswith("hypervisor: ")
    process.close()
    ours.close()
    shutil.rmtree(run_dir)
