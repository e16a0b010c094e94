"""The pipes of unbound ports: whose they are, and that none stays open."""

import os
import select
from collections.abc import Iterator

import pytest

from common.process import open_descriptors
from hypervisor import wake_lines
from hypervisor.connections import close_all
from hypervisor.wake_lines import WAITING_MAX, WakeLines


@pytest.fixture
def lines() -> Iterator[WakeLines]:
    before = open_descriptors()
    lines = WakeLines()
    yield lines
    for domid in range(4):
        lines.forget(domid)
    assert open_descriptors() == before


def readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


def kept(lines: WakeLines, domid: int, port: int) -> tuple[int, int]:
    """Make a line and keep its far end; that."""
    near, far = lines.make()
    close_all(near)
    lines.keep(domid, port, far)
    return far


def test_a_line_is_a_pipe_each_way(lines: WakeLines) -> None:
    near, far = lines.make()
    for (_, writes), (reads, _) in ((near, far), (far, near)):
        os.write(writes, b"x")
        assert os.read(reads, 10) == b"x"
    assert not any(os.get_inheritable(fd) for fd in (*near, *far))
    close_all([*near, *far])


def test_each_descriptor_is_a_description_of_its_own(lines: WakeLines) -> None:
    near, far = lines.make()
    for fd in far:
        os.set_blocking(fd, False)
    assert [os.get_blocking(fd) for fd in (*near, *far)] == [True, True, False, False]
    close_all([*near, *far])


def test_a_far_end_is_taken_once_by_its_domain_and_port(lines: WakeLines) -> None:
    ends = {(domid, port): kept(lines, domid, port) for domid in (1, 2) for port in (1, 2)}
    assert lines.take(3, 1) is None and lines.take(1, 3) is None
    for place, far in ends.items():
        assert lines.take(*place) == far
        assert lines.take(*place) is None
        close_all(far)


def test_a_closed_port_and_a_forgotten_domain_keep_nothing_open(lines: WakeLines) -> None:
    ends = {(domid, port): kept(lines, domid, port) for domid in (1, 2) for port in (1, 2)}
    lines.close(1, 1)
    lines.close(1, 9)
    held = open_descriptors()
    assert not set(ends[1, 1]) & set(held) and set(ends[1, 2]) <= set(held)
    lines.forget(1)
    held = open_descriptors()
    assert not set(ends[1, 2]) & set(held) and set(ends[2, 1]) <= set(held)
    assert lines.take(1, 2) is None


def test_a_port_that_is_used_again_has_a_new_line(lines: WakeLines) -> None:
    old, new = kept(lines, 1, 1), kept(lines, 1, 1)
    assert lines.take(1, 1) == new
    close_all(new)
    assert not set(old) & set(open_descriptors())


def test_a_domain_has_room_for_so_many_and_for_others_no_less(lines: WakeLines) -> None:
    for port in range(1, WAITING_MAX + 1):
        assert lines.room(1)
        kept(lines, 1, port)
    assert not lines.room(1) and lines.room(2)
    lines.close(1, 5)
    assert lines.room(1)
    far = lines.take(1, 6)
    assert far is not None
    close_all(far)
    kept(lines, 1, 5)
    assert lines.room(1)


def test_a_line_half_made_leaves_nothing(lines: WakeLines, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, made = os.pipe, []

    def only_one() -> tuple[int, int]:
        if made:
            raise OSError(24, "Too many open files")
        made.append(pipe())
        return made[0]

    before = open_descriptors()
    monkeypatch.setattr(wake_lines.os, "pipe", only_one)
    with pytest.raises(OSError, match="Too many"):
        lines.make()
    assert made and open_descriptors() == before
