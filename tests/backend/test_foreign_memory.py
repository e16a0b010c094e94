"""Frames of a real segment, really mapped into this process and really gone afterwards."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from backend.foreign_memory import Balloon, map_granted, unmap_slots
from common.abi import (
    GNTMAP_HOST_MAP,
    GNTMAP_READONLY,
    GNTST_BAD_GNTREF,
    GNTTAB_MAP_GRANT_REF,
    GNTTAB_UNMAP_GRANT_REF,
    XEN_PAGE_SIZE,
)
from common.memory import create_segment, map_segment

NR_SLOTS = 4


class Ram(NamedTuple):
    """A guest's RAM: by its descriptor, and as the guest has it."""

    fd: int
    bytes: np.ndarray


@pytest.fixture
def ram() -> Iterator[Ram]:
    """Eight frames; each byte of frame n is n."""
    fd = create_segment(f"grantlab-test-{os.getpid()}", 8 * XEN_PAGE_SIZE)
    ram = Ram(fd, map_segment(os.dup(fd)))
    ram.bytes.reshape(8, -1)[:] = np.arange(8)[:, None]
    yield ram
    os.close(fd)


@pytest.fixture
def balloon() -> Iterator[Balloon]:
    balloon = Balloon(NR_SLOTS)
    yield balloon
    balloon.close()


def map_frames(
    balloon: Balloon, fd: int, frames: dict[int, int], flags: int = GNTMAP_HOST_MAP
) -> int:
    """Map slot -> frame, as if the hypervisor had granted it."""
    ops = np.zeros(len(frames), GNTTAB_MAP_GRANT_REF)
    ops["host_addr"] = [balloon.address + slot * XEN_PAGE_SIZE for slot in frames]
    ops["dev_bus_addr"] = [frame * XEN_PAGE_SIZE for frame in frames.values()]
    ops["flags"] = flags
    return int(map_granted(fd, ops, 0, len(ops)))


def unmap(balloon: Balloon, *slots: int) -> int:
    ops = np.zeros(len(slots), GNTTAB_UNMAP_GRANT_REF)
    ops["host_addr"] = [balloon.address + slot * XEN_PAGE_SIZE for slot in slots]
    return int(unmap_slots(ops, len(ops)))


def faults(act: Callable[[], object]) -> bool:
    """Does `act` die of a bad address? Tried in a child."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # not pytest's traceback
        act()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGSEGV
    return status != 0


def test_each_slot_shows_its_frame(balloon: Balloon, ram: Ram) -> None:
    assert map_frames(balloon, ram.fd, {0: 5, 1: 2, 3: 7}) == 0
    for slot, frame in ((0, 5), (1, 2), (3, 7)):
        assert (balloon.view(slot) == frame).all()


def test_it_is_the_guests_page_and_no_copy(balloon: Balloon, ram: Ram) -> None:
    map_frames(balloon, ram.fd, {2: 3})
    balloon.view(2)[100] = 99
    assert ram.bytes[3 * XEN_PAGE_SIZE + 100] == 99
    ram.bytes[3 * XEN_PAGE_SIZE + 200] = 88
    assert balloon.view(2)[200] == 88
    assert (np.delete(ram.bytes, 3 * XEN_PAGE_SIZE + np.array([100, 200])) < 8).all()


def test_one_frame_may_be_in_two_slots(balloon: Balloon, ram: Ram) -> None:
    map_frames(balloon, ram.fd, {0: 1, 1: 1})
    balloon.view(0)[0] = 77
    assert balloon.view(1)[0] == 77


def test_what_the_hypervisor_refused_is_not_mapped(balloon: Balloon, ram: Ram) -> None:
    ops = np.zeros(2, GNTTAB_MAP_GRANT_REF)
    ops["host_addr"] = [balloon.address, balloon.address + XEN_PAGE_SIZE]
    ops["flags"], ops["status"] = GNTMAP_HOST_MAP, [GNTST_BAD_GNTREF, 0]
    assert map_granted(ram.fd, ops, 0, 2) == 0
    assert faults(lambda: balloon.view(0)[0])
    assert not faults(lambda: balloon.view(1)[0])


def test_only_what_its_call_granted_is_mapped(balloon: Balloon, ram: Ram) -> None:
    """The others, said to be granted by whoever filled them, are another call's."""
    ops = np.zeros(4, GNTTAB_MAP_GRANT_REF)
    ops["host_addr"] = balloon.page_table()
    ops["dev_bus_addr"], ops["flags"] = np.arange(4) * XEN_PAGE_SIZE, GNTMAP_HOST_MAP
    assert map_granted(ram.fd, ops, 1, 3) == 0
    assert [faults(balloon.view(slot).tobytes) for slot in range(4)] == [True, False, False, True]


def test_a_page_mapped_read_only_cannot_be_written(balloon: Balloon, ram: Ram) -> None:
    map_frames(balloon, ram.fd, {0: 4}, GNTMAP_HOST_MAP | GNTMAP_READONLY)
    assert (balloon.view(0) == 4).all()
    assert faults(lambda: balloon.view(0).fill(1))
    assert (ram.bytes[4 * XEN_PAGE_SIZE :][:XEN_PAGE_SIZE] == 4).all()


def test_an_empty_slot_is_a_fault(balloon: Balloon) -> None:
    for slot in range(NR_SLOTS):
        assert faults(balloon.view(slot).tobytes)


def test_an_unmapped_slot_is_a_fault_again_and_its_neighbours_are_not(
    balloon: Balloon, ram: Ram
) -> None:
    map_frames(balloon, ram.fd, {0: 0, 1: 1, 2: 2})
    assert balloon.view(1)[0] == 1
    assert unmap(balloon, 1) == 0
    assert faults(lambda: balloon.view(1)[0])
    assert faults(lambda: balloon.view(1).fill(1))
    assert (balloon.view(0)[0], balloon.view(2)[0], ram.bytes[XEN_PAGE_SIZE]) == (0, 2, 1)


def test_an_emptied_slot_takes_another_frame(balloon: Balloon, ram: Ram) -> None:
    map_frames(balloon, ram.fd, {0: 6})
    unmap(balloon, 0)
    assert map_frames(balloon, ram.fd, {0: 7}) == 0
    assert (balloon.view(0) == 7).all()


def test_a_slot_stays_set_aside_while_it_is_empty(balloon: Balloon, ram: Ram) -> None:
    map_frames(balloon, ram.fd, {0: 6})
    unmap(balloon, 0)
    modes = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, mode = line.split()[:2]
        low, high = (int(end, 16) for end in span.split("-"))
        modes += [mode] * (low <= balloon.address < high)
    assert modes == ["---p"]


def test_failures_are_counted(balloon: Balloon, ram: Ram) -> None:
    assert map_frames(balloon, -1, {0: 0, 1: 1}) == 2
    ops = np.zeros(1, GNTTAB_UNMAP_GRANT_REF)
    ops["host_addr"] = balloon.address + 1
    assert unmap_slots(ops, 1) == 1


def test_the_page_table_says_where_each_slot_is(balloon: Balloon) -> None:
    expected = [balloon.address + slot * XEN_PAGE_SIZE for slot in range(NR_SLOTS)]
    assert balloon.page_table().tolist() == expected


def test_more_addresses_than_there_are_is_an_error_with_its_size() -> None:
    with pytest.raises(OSError, match=f"cannot set {1 << 40} pages"):
        Balloon(1 << 40)


def test_the_segment_leaves_no_name(ram: Ram) -> None:
    assert f"grantlab-test-{os.getpid()}" not in os.listdir("/dev/shm")
