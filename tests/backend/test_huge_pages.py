"""A ramdisk's small pages become large ones, where the host lets them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backend import huge_pages
from backend.huge_pages import HugePages
from backend.stores import RamStores
from common.copying import address_of
from common.memory import HUGE_PAGE, map_shared, sealed_memory

STRETCHES = 4
SMALL = 4096


def huge_bytes(memory: np.ndarray) -> int:
    """How much of it is reached through large pages."""
    mine = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "ShmemPmdMapped" and mine:
            return int(value.split()[0]) << 10
        if "-" in name:
            mine = name.split("-")[0] == f"{address_of(memory):x}"
    raise AssertionError("it is not mapped")


def memory_of(stretches: int) -> np.ndarray:
    memory = map_shared(sealed_memory("some", stretches * HUGE_PAGE))
    assert address_of(memory) % HUGE_PAGE == 0
    return memory


@pytest.fixture
def pages() -> Iterator[HugePages]:
    """Whose thread does not run: `look` is called here."""
    pages = HugePages()
    pages._thread = threading.Thread(target=lambda: None)
    probe = memory_of(1)
    probe[::SMALL] = 1
    pages.watch(probe)
    pages.look()
    if pages._refused:
        pytest.skip("this host makes no large pages of shared memory")
    pages.forget(address_of(probe))
    pages._at_once = 0
    yield pages
    pages.close()


def test_what_is_in_use_becomes_large_and_stays_what_it_was(pages: HugePages) -> None:
    memory = memory_of(STRETCHES)
    data = np.random.default_rng(3).integers(0, 256, 2 * HUGE_PAGE, np.uint8)
    memory[HUGE_PAGE : 3 * HUGE_PAGE] = data
    pages.watch(memory)
    assert pages.look() == 2
    assert huge_bytes(memory) == 2 * HUGE_PAGE
    assert pages.look() == 0
    assert (memory[HUGE_PAGE : 3 * HUGE_PAGE] == data).all() and not memory[:HUGE_PAGE].any()


def test_what_is_hardly_used_stays_small_until_more_of_it_is(pages: HugePages) -> None:
    memory = memory_of(1)
    pages.watch(memory)
    memory[: 63 * SMALL : SMALL] = 1
    assert pages.look() == 0 and huge_bytes(memory) == 0
    memory[63 * SMALL] = 1
    assert pages.look() == 1 and huge_bytes(memory) == HUGE_PAGE


def test_the_first_are_large_before_they_are_used(pages: HugePages) -> None:
    pages._at_once = STRETCHES + 1
    first, second = memory_of(STRETCHES), memory_of(STRETCHES)
    pages.watch(first)
    pages.watch(second)
    assert pages.look() == STRETCHES + 1
    assert huge_bytes(first) == STRETCHES * HUGE_PAGE and huge_bytes(second) == HUGE_PAGE
    assert not first.any() and not second.any()


def test_a_disk_that_comes_later_does_not_wait_for_the_next_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huge_pages, "PAUSE_S", 3600.0)
    monkeypatch.setattr(huge_pages, "PAUSE_S_MAX", 3600.0)
    pages = HugePages()
    deadline = time.monotonic() + 60
    for _ in range(2):
        memory = memory_of(1)
        pages.watch(memory)
        while pages._small[address_of(memory)][1] and not pages._refused:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    pages.close()


def test_what_is_forgotten_is_left_alone(pages: HugePages) -> None:
    memory = memory_of(1)
    memory[::SMALL] = 1
    pages.forget(pages.watch(memory))
    assert pages.look() == 0 and huge_bytes(memory) == 0


def test_a_disk_of_dom0s_becomes_large_by_itself(pages: HugePages) -> None:
    rams = RamStores()
    disk = rams.open("x", HUGE_PAGE // 512)
    assert disk.memory is not None
    disk.memory[::SMALL] = 1
    deadline = time.monotonic() + 60
    while not huge_bytes(disk.memory):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    disk.close()
    rams.close()
    assert "hugepages" not in {thread.name for thread in threading.enumerate()}


def test_a_small_disk_has_no_thread() -> None:
    rams = RamStores()
    rams.open("x", 1).close()
    assert "hugepages" not in {thread.name for thread in threading.enumerate()}
    rams.close()
