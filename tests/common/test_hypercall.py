"""The hypercall client against a hypervisor that answers as it is told."""

import os
import socket
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from common import abi, hypercall
from common.hypercall import (
    DOMCTL_DOMAIN,
    DOMCTL_GET_MEMORY,
    DOMCTL_GET_VCPU,
    DOMCTL_MEMORY,
    DOMCTL_VCPU,
    GATE_KICK,
    HYPERCALL,
    MESSAGE_MAX,
    VIRQ_DOM_EXC,
    HypercallError,
    Hypercalls,
)
from common.process import open_descriptors

Answer = Callable[[np.ndarray, bytearray], None]


class Hypervisor:
    """One vCPU's connection; `answer` changes header and payload before they go back, with
    `descriptors`."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, bytes]] = []
        self.answer: Answer = lambda header, payload: None
        self.descriptors: list[int] = []
        self._socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while message := self._socket.recv(MESSAGE_MAX + 1):
            header = np.frombuffer(message, HYPERCALL, count=1).copy()
            payload = bytearray(message[16:])
            self.seen.append((int(header["number"][0]), int(header["cmd"][0]), bytes(payload)))
            self.answer(header, payload)
            socket.send_fds(self._socket, [header.tobytes() + payload], self.descriptors)

    def stop(self) -> None:
        """The connection has been closed at the other end."""
        self._thread.join()
        self._socket.close()


@pytest.fixture
def hypervisor() -> Hypervisor:
    return Hypervisor()


@pytest.fixture
def vcpu(hypervisor: Hypervisor) -> Iterator[Hypercalls]:
    vcpu = Hypercalls(hypervisor.theirs)
    yield vcpu
    vcpu.close()
    hypervisor.stop()


def refusing(rc: int) -> Answer:
    def answer(header: np.ndarray, payload: bytearray) -> None:
        header["rc"] = rc

    return answer


def test_a_message_is_16_bytes_and_the_array() -> None:
    assert HYPERCALL.fields is not None
    assert [(name, at, kind.str) for name, (kind, at, *_) in HYPERCALL.fields.items()] == [
        ("number", 0, "<u4"),
        ("cmd", 4, "<u4"),
        ("rc", 8, "<i4"),
        ("pad", 12, "<u4"),
    ]
    assert (HYPERCALL.itemsize, DOMCTL_DOMAIN.itemsize) == (16, 12)
    assert (DOMCTL_VCPU.itemsize, DOMCTL_MEMORY.itemsize, VIRQ_DOM_EXC.size) == (4, 16, 2)


def test_the_whole_array_goes_out_and_comes_back_filled_in_place(
    hypervisor: Hypervisor, vcpu: Hypercalls
) -> None:
    def answer(header: np.ndarray, payload: bytearray) -> None:
        maps = np.frombuffer(payload, abi.GNTTAB_MAP_GRANT_REF)
        maps["status"], maps["handle"] = [0, -3], [7, 8]

    hypervisor.answer = answer
    args = np.zeros(2, abi.GNTTAB_MAP_GRANT_REF)
    args["ref"], args["host_addr"] = [8, 9], [4096, 2**63]
    sent = args.tobytes()
    assert vcpu.call(20, 0, args) == 0
    assert hypervisor.seen == [(20, 0, sent)]
    assert args["status"].tolist() == [0, -3]
    assert args["handle"].tolist() == [7, 8]
    assert args["ref"].tolist() == [8, 9]
    assert args["host_addr"].tolist() == [4096, 2**63]


def test_an_empty_array_is_a_hypercall_too(hypervisor: Hypervisor, vcpu: Hypercalls) -> None:
    assert vcpu.call(20, 1, np.zeros(0, abi.GNTTAB_UNMAP_GRANT_REF)) == 0
    assert hypervisor.seen == [(20, 1, b"")]


def test_calls_are_counted_refused_ones_too(hypervisor: Hypervisor, vcpu: Hypercalls) -> None:
    for rc in (0, -22, 0):
        hypervisor.answer = refusing(rc)
        assert vcpu.call(20, 0, np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)) == rc
    assert vcpu.calls == 3


def test_an_array_of_another_length_coming_back_changes_nothing(
    hypervisor: Hypervisor, vcpu: Hypercalls
) -> None:
    def answer(header: np.ndarray, payload: bytearray) -> None:
        payload[:] = b"\xff" * (len(payload) - 1)
        header["rc"] = -14

    hypervisor.answer = answer
    args = np.zeros(2, abi.GNTTAB_MAP_GRANT_REF)
    assert vcpu.call(20, 0, args) == -14
    assert args.tobytes() == bytes(64)


@pytest.mark.parametrize(
    ("rc", "text"),
    [
        (-1, "bind: EPERM (Operation not permitted)"),
        (-22, "bind: EINVAL (Invalid argument)"),
        (-38, "bind: ENOSYS (Function not implemented)"),
    ],
)
def test_a_refusal_says_what_was_refused_and_why(
    hypervisor: Hypervisor, vcpu: Hypercalls, rc: int, text: str
) -> None:
    hypervisor.answer = refusing(rc)
    with pytest.raises(HypercallError) as refused:
        vcpu.checked("bind", 32, 0, np.zeros(1, abi.EVTCHN_BIND_INTERDOMAIN))
    assert str(refused.value) == text


def test_an_error_without_a_name_is_told_by_its_number(
    hypervisor: Hypervisor, vcpu: Hypercalls
) -> None:
    hypervisor.answer = refusing(-4000)
    with pytest.raises(HypercallError, match=r"^bind: -4000 \("):
        vcpu.checked("bind", 32, 0, np.zeros(1, abi.EVTCHN_BIND_INTERDOMAIN))


def test_a_grant_table_op_leaves_each_entrys_status_to_the_caller(
    hypervisor: Hypervisor, vcpu: Hypercalls
) -> None:
    def answer(header: np.ndarray, payload: bytearray) -> None:
        np.frombuffer(payload, abi.GNTTAB_UNMAP_GRANT_REF)["status"] = -4

    hypervisor.answer = answer
    args = np.zeros(3, abi.GNTTAB_UNMAP_GRANT_REF)
    assert vcpu.grant_table_op(1, args) is args
    assert args["status"].tolist() == [-4, -4, -4]
    assert hypervisor.seen[0][:2] == (20, 1)
    hypervisor.answer = refusing(-14)
    with pytest.raises(HypercallError, match=r"^grant_table_op 1: EFAULT"):
        vcpu.grant_table_op(1, args)


def test_an_event_channel_op_is_one_struct_of_the_fields_named(
    hypervisor: Hypervisor, vcpu: Hypercalls
) -> None:
    def answer(header: np.ndarray, payload: bytearray) -> None:
        np.frombuffer(payload, abi.EVTCHN_ALLOC_UNBOUND)["port"] = 77

    hypervisor.answer = answer
    filled, descriptors = vcpu.event_channel_op(
        "alloc", 6, abi.EVTCHN_ALLOC_UNBOUND, dom=0x7FF0, remote_dom=3
    )
    assert hypervisor.seen == [(32, 6, b"\xf0\x7f\x03\x00\0\0\0\0")]
    assert filled.shape == (1,) and descriptors == []
    assert filled[0].item() == (0x7FF0, 3, 77)


def test_a_kick_is_no_hypercall_of_xens_and_carries_nothing(
    hypervisor: Hypervisor, vcpu: Hypercalls
) -> None:
    vcpu.kick()
    assert hypervisor.seen == [(GATE_KICK, 0, b"")]


# --- descriptors --------------------------------------------------------------------------------


def test_descriptors_come_with_an_answer_and_are_not_inherited(
    hypervisor: Hypervisor, vcpu: Hypercalls
) -> None:
    reads, writes = os.pipe()
    hypervisor.descriptors = [reads, writes]
    _, (r, w) = vcpu.event_channel_op("alloc", 6, abi.EVTCHN_ALLOC_UNBOUND)
    os.write(w, b"x")
    assert os.read(reads, 1) == b"x"
    assert not os.get_inheritable(r) and not os.get_inheritable(w)
    for fd in (reads, writes, r, w):
        os.close(fd)


def test_a_call_that_asks_for_none_gets_none(hypervisor: Hypervisor, vcpu: Hypercalls) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    hypervisor.descriptors = [null]
    before = open_descriptors()
    assert vcpu.call(20, 0, np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)) == 0
    assert open_descriptors() == before
    os.close(null)


def test_a_segment_is_asked_for_by_domain_and_name(
    hypervisor: Hypervisor, vcpu: Hypercalls
) -> None:
    hypervisor.descriptors = [memory := os.memfd_create("ram")]
    os.write(memory, b"its")
    fd = vcpu.get_memory(3, "ram")
    assert os.pread(fd, 3, 0) == b"its"
    payload = b"\x03\0\0\0ram" + bytes(9)
    assert hypervisor.seen == [(abi.HYPERVISOR_DOMCTL, DOMCTL_GET_MEMORY, payload)]
    hypervisor.answer = refusing(-3)
    hypervisor.descriptors = []
    with pytest.raises(HypercallError, match=r"^segment 'disk' of domain 9: ESRCH"):
        vcpu.get_memory(9, "disk")
    for each in (fd, memory):
        os.close(each)


def test_another_vcpu_is_another_connection(hypervisor: Hypervisor, vcpu: Hypercalls) -> None:
    other = Hypervisor()
    hypervisor.descriptors = [other.theirs.fileno()]
    second = vcpu.get_vcpu(5)
    other.theirs.close()
    assert hypervisor.seen == [(abi.HYPERVISOR_DOMCTL, DOMCTL_GET_VCPU, b"\x05\0\0\0")]
    second.call(20, 7, np.zeros(1, abi.GNTTAB_QUERY_SIZE))
    assert [seen[:2] for seen in other.seen] == [(20, 7)]
    second.close()
    other.stop()


# --- no answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("for_descriptors", [False, True])
def test_a_hypervisor_that_does_not_answer_is_an_error_and_stays_one(
    monkeypatch: pytest.MonkeyPatch, for_descriptors: bool
) -> None:
    """What comes late is never taken for the answer to the next call."""
    monkeypatch.setattr(hypercall, "REPLY_TIMEOUT_S", 0.02)
    silent, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nobody = Hypercalls(ours)
    args = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    call = nobody.call_for_descriptors if for_descriptors else nobody.call
    for _ in range(2):
        with pytest.raises(HypercallError, match=r"^the hypervisor does not answer: "):
            call(20, 0, args)
    request = silent.recv(MESSAGE_MAX)
    with silent, pytest.raises(BrokenPipeError):
        silent.send(b"\xff" * len(request))
    assert nobody.calls == 0 and not args["status"].any()
    nobody.close()


@pytest.mark.parametrize("answered", [None, b"", bytes(HYPERCALL.itemsize - 1)])
def test_a_hypervisor_that_is_gone_is_an_error(answered: bytes | None) -> None:
    gone, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    vcpu = Hypercalls(ours)
    if answered is not None:
        gone.send(answered)
    else:
        gone.close()
    with gone, pytest.raises(HypercallError, match="the hypervisor does not answer: "):
        vcpu.call(20, 0, np.zeros(1, abi.GNTTAB_MAP_GRANT_REF))
    vcpu.close()
