"""The hypercall client against a hypervisor that answers as it is told."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq

from common import abi, hypercall
from common.hypercall import (
    DOMCTL_DOMAIN,
    HYPERCALL,
    HypercallError,
    Hypercalls,
    hypercall_address,
)

Answer = Callable[[np.ndarray, bytearray], None]


class Hypervisor:
    """One vCPU's socket; `answer` changes header and payload before they go back."""

    def __init__(self, run_dir: str) -> None:
        self.seen: list[tuple[int, int, bytes]] = []
        self.answer: Answer = lambda header, payload: None
        self._socket = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(hypercall_address(run_dir, 1, 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while message := self._socket.recv():
            header = np.frombuffer(message, HYPERCALL, count=1).copy()
            payload = bytearray(message[16:])
            self.seen.append((int(header["number"][0]), int(header["cmd"][0]), bytes(payload)))
            self.answer(header, payload)
            self._socket.send(header.tobytes() + payload)
        self._socket.send(b"")
        self._socket.close()

    def stop(self, run_dir: str) -> None:
        with zmq.Context.instance().socket(zmq.REQ) as socket:
            socket.connect(hypercall_address(run_dir, 1, 0))
            socket.send(b"")
            socket.recv()
        self._thread.join()


@pytest.fixture
def hypervisor(run_dir: str) -> Iterator[Hypervisor]:
    hypervisor = Hypervisor(run_dir)
    yield hypervisor
    hypervisor.stop(run_dir)


@pytest.fixture
def vcpu(run_dir: str) -> Iterator[Hypercalls]:
    vcpu = Hypercalls(run_dir, 1)
    yield vcpu
    vcpu.close()


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


def test_each_vcpu_of_each_domain_has_its_own_socket() -> None:
    assert hypercall_address("/run/x", 3, 1) == "ipc:///run/x/hypercall-3-1"


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
    filled = vcpu.event_channel_op("alloc", 6, abi.EVTCHN_ALLOC_UNBOUND, dom=0x7FF0, remote_dom=3)
    assert hypervisor.seen == [(32, 6, b"\xf0\x7f\x03\x00\0\0\0\0")]
    assert filled.shape == (1,)
    assert filled[0].item() == (0x7FF0, 3, 77)


def test_a_hypervisor_that_does_not_answer_is_an_error_and_stays_one(
    run_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypercall, "REPLY_TIMEOUT_MS", 20)
    nobody = Hypercalls(run_dir, 1)
    for _ in range(2):
        with pytest.raises(HypercallError, match=r"^the hypervisor does not answer: "):
            nobody.call(20, 0, np.zeros(1, abi.GNTTAB_MAP_GRANT_REF))
    assert nobody.calls == 0
    nobody.close()
