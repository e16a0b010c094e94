"""Ram stores: sealed memory that is the toolstack's, given to dom0."""

import mmap
import os
from collections.abc import Iterator
from typing import Any

import pytest

from common.memory import sealed_memory
from toolstack.disks import Disk
from toolstack.settings import Settings
from toolstack.stores import Stores

MACHINE = Settings(
    guests=2,
    guest=[
        {"disks": ["ram:1m,name=a", "null:1m", "ram:8k"]},
        {"disks": ["ram:1m,name=a,access=ro"]},
    ],
)


class Dom0:
    """What it was told, with the size of what came with it."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.asked = 0

    def send(self, name: str, *message: Any, descriptors: Any = ()) -> None:
        assert name == "dom0" and self.asked == len(self.told)
        self.told.append((*message, *(os.fstat(fd).st_size for fd in descriptors)))

    def expect(self, name: str, timeout_s: float) -> None:
        self.asked += 1


@pytest.fixture
def dom0() -> Dom0:
    return Dom0()


@pytest.fixture
def stores(dom0: Dom0) -> Iterator[Stores]:
    stores = Stores(dom0)  # type: ignore[arg-type]
    yield stores
    stores.close()


def disks(domid: int) -> list[Disk]:
    return MACHINE.disks_of(domid)


def test_each_ram_store_is_given_once(dom0: Dom0, stores: Stores) -> None:
    stores.give(disks(1))
    assert dom0.told == [("store", "a", 1 << 20), ("store", "1/51744", 8192)]
    stores.give(disks(2))
    assert len(dom0.told) == 2


def test_a_store_that_is_forgotten_is_a_new_one_when_it_comes_again(
    dom0: Dom0, stores: Stores
) -> None:
    stores.give(disks(1)[2:])
    stores.forget(disks(1)[1:])
    stores.give(disks(1)[2:])
    key = "1/51744"
    assert dom0.told == [("store", key, 8192), ("forget-store", key), ("store", key, 8192)]


def test_nothing_stays_open(stores: Stores) -> None:
    before = len(os.listdir("/proc/self/fd"))
    stores.give([*disks(1), *disks(2)])
    assert len(os.listdir("/proc/self/fd")) == before + 2
    stores.forget(disks(1)[:1])
    assert len(os.listdir("/proc/self/fd")) == before + 1
    stores.close()
    stores.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_sealed_can_be_written_but_has_its_size_for_good() -> None:
    fd = sealed_memory("test", 8192)
    try:
        for nbytes in (0, 4096, 16384):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, nbytes)
        with mmap.mmap(fd, 8192) as memory:
            assert memory[:] == bytes(8192)
            memory[:4] = b"kept"
        assert os.pread(fd, 4, 0) == b"kept"
    finally:
        os.close(fd)


def test_a_region_is_touched_once_and_only_of_ram_disks(dom0: Dom0, stores: Stores) -> None:
    named, null, alone = disks(1)
    stores.give(disks(1))
    dom0.told.clear()
    dom0.asked = 0
    stores.touch({named: (0, 1 << 20), null: (0, 1 << 20), alone: (4096, 4096)})
    stores.touch({named: (0, 1 << 20)})
    assert dom0.told == [("touch-store", "a", 0, 1 << 20), ("touch-store", "1/51744", 4096, 4096)]


def test_nothing_is_touched_where_memory_is_short(
    dom0: Dom0, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.give(disks(1))
    monkeypatch.setattr("toolstack.stores.available_bytes", lambda: (2 << 20) - 1)
    stores.touch({disks(1)[0]: (0, 1 << 20)})
    assert len(dom0.told) == 2
