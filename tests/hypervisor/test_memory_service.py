"""The memory service: who gets which segment, and what a rude caller can do to the others."""

import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from common.machine_memory import (
    DOMAIN_SEGMENTS,
    GRANTED,
    MACHINE_SEGMENTS,
    REFUSED,
    REQUEST,
    memory_address,
)
from hypervisor.memory_service import CALLERS_MAX, MemoryService, may_have


class Service:
    """A memory service with domains 0, 1 and 2; each segment's first bytes are its name."""

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir
        self.server = MemoryService(run_dir)
        for name in MACHINE_SEGMENTS:
            self.add(0, name)
        for domid in (0, 1, 2):
            self.add_domain(domid)

    def add(self, domid: int, name: str) -> None:
        fd = os.memfd_create(name)
        os.write(fd, f"{name} of {domid}".encode())
        self.server.add(domid, name, fd)

    def add_domain(self, domid: int) -> None:
        for name in DOMAIN_SEGMENTS:
            self.add(domid, name)
        self.server.listen(domid)

    def connect(self, domid: int) -> socket.socket:
        """A connection of `domid` that has not spoken yet."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(memory_address(self.run_dir, domid))  # waits while the backlog is full
        connection.settimeout(10)
        return connection

    def ask(self, caller: int, name: str, domid: int = 0) -> str | None:
        """What a segment begins with, or None if it is refused."""
        with self.connect(caller) as connection:
            connection.send(request_bytes(name, domid))
            answer, fds, _, _ = socket.recv_fds(connection, 10, 4)
        if answer == REFUSED:
            assert fds == []
            return None
        (fd,) = fds
        try:
            return os.pread(fd, 100, 0).decode()
        finally:
            os.close(fd)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr("hypervisor.memory_service.POLL_S", 0.01)  # how long a stop takes
    run_dir = tempfile.mkdtemp(prefix="gl-", dir="/tmp")
    service = Service(run_dir)
    yield service
    service.server.stop()
    shutil.rmtree(run_dir)


def request_bytes(name: str, domid: int) -> bytes:
    request = np.zeros(1, REQUEST)
    request["segment"], request["domid"] = name.encode(), domid
    return request.tobytes()


def ended(connection: socket.socket) -> bool:
    """Has the other end closed it, or reset it because something of ours was left unread?"""
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


# --- who may have what --------------------------------------------------------------------------

RIGHTS = [
    # segment, the domain's own, another guest's, a guest's to dom0, dom0's to a guest
    ("ram", True, False, True, False),
    ("event", True, False, True, False),
    ("stats", True, False, True, False),
    ("grant", True, False, False, False),
]


@pytest.mark.parametrize(("name", "own", "others", "to_dom0", "of_dom0"), RIGHTS)
def test_rights_to_a_domains_segments(
    service: Service, name: str, own: bool, others: bool, to_dom0: bool, of_dom0: bool
) -> None:
    table = [(1, 1, own), (0, 0, own), (1, 2, others), (0, 1, to_dom0), (1, 0, of_dom0)]
    for caller, domid, allowed in table:
        assert may_have(caller, name, domid) == allowed
        assert service.ask(caller, name, domid) == (f"{name} of {domid}" if allowed else None)


@pytest.mark.parametrize("name", MACHINE_SEGMENTS)
def test_what_is_the_machines_is_dom0s_only(service: Service, name: str) -> None:
    for domid in (0, 1, 65535):  # whatever domain the request names
        assert service.ask(0, name, domid) == f"{name} of 0"
        assert service.ask(1, name, domid) is None


def test_a_segment_and_a_domain_that_are_not_there_are_refused(service: Service) -> None:
    for caller in (0, 1):
        for name, domid in (("disk", caller), ("", caller), ("ram", 9), ("ram", 65535)):
            assert service.ask(caller, name, domid) is None


# --- rude callers -------------------------------------------------------------------------------

RUDE = [
    b"x",
    request_bytes("ram", 1)[:-1],
    request_bytes("ram", 1) + b"\0",
    b"\xff" * REQUEST.itemsize,
    bytes(REQUEST.itemsize),
    b"A" * 60_000,
]


@pytest.mark.parametrize("message", RUDE, ids=[f"{len(m)}-{m[:1]!r}" for m in RUDE])
def test_a_malformed_request_is_refused_and_its_caller_dropped(
    service: Service, message: bytes
) -> None:
    with service.connect(1) as connection:
        connection.send(message)
        assert connection.recv(10) == REFUSED
        assert ended(connection)
    assert service.ask(1, "ram", 1) == "ram of 1"


def test_a_caller_gets_one_answer_and_the_socket_ends(service: Service) -> None:
    with service.connect(1) as connection:
        connection.send(request_bytes("ram", 1))
        answer, fds, _, _ = socket.recv_fds(connection, 10, 4)
        assert (answer, len(fds)) == (GRANTED, 1)
        os.close(fds[0])
        assert ended(connection)


def test_who_connects_and_goes_away_harms_nobody(service: Service) -> None:
    for _ in range(2 * CALLERS_MAX):
        service.connect(1).close()
        with service.connect(1) as connection:
            connection.send(request_bytes("ram", 1))
    assert service.ask(1, "ram", 1) == "ram of 1"


def test_the_silent_callers_of_one_domain_delay_nobody(service: Service) -> None:
    silent = [service.connect(1) for _ in range(CALLERS_MAX + 5)]
    assert service.ask(2, "ram", 2) == "ram of 2"
    assert service.ask(1, "ram", 1) == "ram of 1"
    for connection in silent[:5]:
        assert ended(connection)  # the oldest had to go
    silent[-1].send(request_bytes("ram", 1))
    answer, fds, _, _ = socket.recv_fds(silent[-1], 10, 1)
    assert answer == GRANTED
    for fd in (*fds, *silent):
        os.close(fd if isinstance(fd, int) else fd.detach())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_service_outlives_a_moment_without_file_descriptors(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, tries = socket.socket.accept, []

    def accept_when_there_are_some(listener: socket.socket) -> Any:
        tries.append(listener)
        if len(tries) == 1:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "accept", accept_when_there_are_some)
    with service.connect(1):
        while len(tries) < 2 and service.server._thread.is_alive():
            time.sleep(0.001)
    assert service.server._thread.is_alive()
    assert service.ask(1, "ram", 1) == "ram of 1"


# --- domains that go ----------------------------------------------------------------------------


def test_a_forgotten_domain_has_neither_socket_nor_segments(service: Service) -> None:
    waiting = service.connect(1)
    service.server.forget(1)
    assert ended(waiting)
    waiting.close()
    with pytest.raises(OSError, match=r"refused|No such file"):
        service.connect(1)
    assert service.ask(0, "ram", 1) is None
    assert service.ask(2, "ram", 2) == "ram of 2"


def test_to_forget_who_is_not_there_is_nothing(service: Service) -> None:
    service.server.forget(9)
    assert service.ask(1, "ram", 1) == "ram of 1"


def test_a_domid_can_be_used_again(service: Service) -> None:
    service.server.forget(1)
    service.add_domain(1)
    assert service.ask(1, "ram", 1) == "ram of 1"


def test_a_stopped_service_keeps_no_descriptors(service: Service) -> None:
    def segments() -> list[str]:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        targets = [os.readlink(link) for link in links if os.path.islink(link)]
        return [target for target in targets if target.startswith("/memfd:")]

    before = len(segments())
    assert before >= 3 * len(DOMAIN_SEGMENTS) + len(MACHINE_SEGMENTS)
    service.server.stop()
    assert len(segments()) == before - 3 * len(DOMAIN_SEGMENTS) - len(MACHINE_SEGMENTS)
