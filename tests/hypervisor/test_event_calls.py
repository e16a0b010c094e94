"""Ports and their wake-up lines come and go together, with `--events pipe`."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from common import abi
from common.process import open_descriptors
from hypervisor import wake_lines
from hypervisor.connections import close_all
from hypervisor.event_calls import EventCalls
from hypervisor.wake_lines import WAITING_MAX
from tests.hypervisor.world import World

NUMBER = abi.HYPERVISOR_EVENT_CHANNEL_OP
ALLOC, BIND = abi.EVTCHNOP_ALLOC_UNBOUND, abi.EVTCHNOP_BIND_INTERDOMAIN
CLOSE, RESET, STATUS = abi.EVTCHNOP_CLOSE, abi.EVTCHNOP_RESET, abi.EVTCHNOP_STATUS
STRUCTS = {
    ALLOC: abi.EVTCHN_ALLOC_UNBOUND,
    BIND: abi.EVTCHN_BIND_INTERDOMAIN,
    CLOSE: abi.EVTCHN_CLOSE,
    RESET: abi.EVTCHN_RESET,
}


@dataclass
class Done:
    """What a call came to."""

    rc: int | None
    args: np.void
    line: list[int]


class Calls:
    """Event-channel calls of domains 0 (a backend), 1 and 2."""

    def __init__(self, with_lines: bool = True) -> None:
        self.world = World()
        self.calls = EventCalls(self.world.hypervisor, with_lines=with_lines)
        self.held: list[int] = []

    def __call__(self, by: int, cmd: int, **fields: int) -> Done:
        args = np.zeros(1, STRUCTS[cmd])
        for name, value in fields.items():
            args[name] = value
        payload, line = bytearray(args.tobytes()), list[int]()
        rc = self.calls.call(by, NUMBER, cmd, payload, line)
        self.held += line
        return Done(rc, np.frombuffer(payload, STRUCTS[cmd])[0], line)

    def alloc(self, by: int = 1, remote: int = 0, dom: int = abi.DOMID_SELF) -> Done:
        return self(by, ALLOC, dom=dom, remote_dom=remote)

    def port(self, by: int = 1) -> int:
        done = self.alloc(by)
        assert done.rc == 0
        return int(done.args["port"])

    def bind(self, port: int, *, by: int = 0, remote: int = 1) -> Done:
        return self(by, BIND, remote_dom=remote, remote_port=port)

    def status(self, domid: int, port: int) -> int:
        rc, args = self.world.event_op(STATUS, abi.EVTCHN_STATUS, by=0, dom=domid, port=port)
        assert rc == 0
        return int(args["status"])

    def ports(self, domid: int) -> list[int]:
        return self.world.domain(domid).channels.ports()


@pytest.fixture
def calls() -> Iterator[Calls]:
    before = open_descriptors()
    calls = Calls()
    yield calls
    for domid in (0, 1, 2):
        calls.calls.forget(domid)
    close_all(calls.held)
    assert open_descriptors() == before


def linked(near: list[int], far: list[int]) -> bool:
    """Are these two ends of one line?"""
    for (_, writes), (reads, _) in ((near, far), (far, near)):
        os.write(writes, b"x")
        os.set_blocking(reads, False)
        try:
            if os.read(reads, 10) != b"x":
                return False
        except BlockingIOError:
            return False
    return True


# --- with lines -----------------------------------------------------------------------------------


def test_who_allocates_and_who_binds_hold_the_two_ends_of_a_line(calls: Calls) -> None:
    allocated = calls.alloc()
    assert allocated.rc == 0 and allocated.args["port"] == 1
    bound = calls.bind(1)
    assert bound.rc == 0 and calls.status(1, 1) == abi.EVTCHNSTAT_INTERDOMAIN
    assert len(allocated.line) == len(bound.line) == 2
    assert linked(allocated.line, bound.line)


def test_each_port_has_a_line_of_its_own(calls: Calls) -> None:
    first, second = calls.alloc(1), calls.alloc(2)
    third = calls.alloc(1)
    ends = [calls.bind(1), calls.bind(1, remote=2), calls.bind(2)]
    assert all(end.rc == 0 for end in ends)
    pairs = zip((first, second, third), ends, strict=True)
    assert all(linked(near.line, far.line) for near, far in pairs)


@pytest.mark.parametrize("fields", [{"remote": 9}, {"dom": 2}, {"dom": 9}])
def test_a_port_that_is_not_allocated_has_no_line(calls: Calls, fields: dict[str, int]) -> None:
    before = open_descriptors()
    refused = calls.alloc(1, **fields)
    assert refused.rc is not None and refused.rc < 0
    close_all(refused.line)
    calls.held.clear()
    assert calls.ports(1) == calls.ports(2) == []
    assert open_descriptors() == before


@pytest.mark.parametrize(("by", "remote", "port"), [(0, 1, 2), (2, 1, 1), (0, 2, 1), (0, 9, 1)])
def test_a_bind_that_fails_takes_no_line(calls: Calls, by: int, remote: int, port: int) -> None:
    allocated = calls.alloc()
    refused = calls.bind(port, by=by, remote=remote)
    assert refused.rc is not None and refused.rc < 0 and refused.line == []
    bound = calls.bind(1)
    assert bound.rc == 0 and linked(allocated.line, bound.line)


def test_a_bind_that_finds_no_line_has_not_happened(calls: Calls) -> None:
    """The far end closed, which leaves the port unbound; its line went to the first binding."""
    port = calls.port()
    bound = calls.bind(port)
    assert calls(0, CLOSE, port=int(bound.args["local_port"])).rc == 0
    assert calls.status(1, port) == abi.EVTCHNSTAT_UNBOUND
    for _ in range(3):
        again = calls.bind(port)
        assert (again.rc, again.line) == (-errno.EINVAL, [])
        assert calls.ports(0) == []
        assert calls.status(1, port) == abi.EVTCHNSTAT_UNBOUND


def test_a_closed_port_keeps_no_line_and_the_next_has_a_new_one(calls: Calls) -> None:
    before = open_descriptors()
    port = calls.port()
    assert calls(1, CLOSE, port=port).rc == 0
    assert len(open_descriptors()) == len(before) + 2  # the near end, which is the guest's
    allocated = calls.alloc()
    assert allocated.args["port"] == port
    bound = calls.bind(port)
    assert bound.rc == 0 and linked(allocated.line, bound.line)


def test_a_reset_closes_every_line_of_the_domain(calls: Calls) -> None:
    before = len(open_descriptors())
    for _ in range(3):
        calls.port(1)
    kept = calls.alloc(2)
    assert calls(1, RESET, dom=abi.DOMID_SELF).rc == 0
    assert len(open_descriptors()) == before + 4 * 2 + 2
    assert calls.ports(1) == []
    bound = calls.bind(1, remote=2)
    assert bound.rc == 0 and linked(kept.line, bound.line)


def test_dom0_may_reset_a_guest_and_a_guest_nobody_else(calls: Calls) -> None:
    calls.port(1)
    assert calls(2, RESET, dom=1).rc == -errno.EPERM
    assert calls.ports(1) == [1]
    assert calls.bind(1).rc == 0
    calls.port(1)
    assert calls(0, RESET, dom=1).rc == 0
    assert calls.ports(1) == []


def test_a_domain_that_is_gone_keeps_no_line(calls: Calls) -> None:
    for _ in range(3):
        calls.port(1)
    before = len(open_descriptors())
    calls.calls.forget(1)
    assert len(open_descriptors()) == before - 3 * 2


def test_unbound_ports_are_bounded_and_bound_ones_are_not_counted(calls: Calls) -> None:
    for _ in range(WAITING_MAX):
        calls.port(1)
    before = open_descriptors()
    for _ in range(3):
        refused = calls.alloc(1)
        assert (refused.rc, refused.line) == (-errno.ENOSPC, [])
    assert open_descriptors() == before
    assert calls.alloc(2).rc == 0  # nobody else has fewer
    assert calls.bind(3).rc == 0
    assert calls.alloc(1).rc == 0
    assert calls.alloc(1).rc == -errno.ENOSPC
    assert calls(1, CLOSE, port=5).rc == 0
    assert calls.alloc(1).rc == 0


def test_without_descriptors_a_port_is_not_allocated(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(wake_lines.os, "pipe", none_left)
        assert calls.alloc().rc == -errno.ENOMEM
    assert calls.ports(1) == []
    assert calls.alloc().rc == 0


@pytest.mark.parametrize("cmd", STRUCTS)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_struct_of_another_size_is_refused(calls: Calls, cmd: int, change: int) -> None:
    payload, line = bytearray(STRUCTS[cmd].itemsize + change), list[int]()
    assert calls.calls.call(1, NUMBER, cmd, payload, line) == -errno.EINVAL
    assert calls.calls.call(1, NUMBER, cmd, bytearray(), line) == -errno.EINVAL
    assert line == []


# --- calls that have nothing to do with lines -----------------------------------------------------


@pytest.mark.parametrize(
    ("number", "cmd"),
    [
        (NUMBER, STATUS),
        (NUMBER, abi.EVTCHNOP_UNMASK),
        (NUMBER, 99),
        (abi.HYPERVISOR_GRANT_TABLE_OP, ALLOC),
        (abi.HYPERVISOR_DOMCTL, BIND),
    ],
)
def test_other_calls_are_left_to_be_made(calls: Calls, number: int, cmd: int) -> None:
    payload, line = bytearray(b"\x01" * 8), list[int]()
    assert calls.calls.call(1, number, cmd, payload, line) is None
    assert (payload, line) == (b"\x01" * 8, [])


@pytest.mark.parametrize("cmd", STRUCTS)
def test_with_zeromq_every_call_is_left_to_be_made(cmd: int) -> None:
    calls = Calls(with_lines=False)
    done = calls(1, cmd)
    assert (done.rc, done.line) == (None, [])
    calls.calls.forget(1)
