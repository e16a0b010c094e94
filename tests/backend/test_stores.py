"""A ramdisk, as its callbacks and as memory, whoever keeps that; a disk that keeps nothing."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

from backend.stores import NullStore, RamStore, RamStores
from common.faults import LocalFault
from common.memory import sealed_memory
from common.process import open_descriptors
from tests.pair import CallbackStore, Pair


def test_a_new_disk_is_zero() -> None:
    store = RamStore(3)
    got = np.ones(3 * 512, np.uint8)
    store.read(0, got)
    assert not got.any()


@pytest.mark.parametrize("nr_sectors", [0, -1])
def test_a_disk_without_sectors_is_refused(nr_sectors: int) -> None:
    with pytest.raises(ValueError, match=f"nr_sectors: {nr_sectors} is not at least 1"):
        RamStore(nr_sectors)


def test_what_is_written_is_read_and_the_rest_stays() -> None:
    store = RamStore(4)
    store.write(512, np.full(1024, 7, np.uint8))
    store.flush()
    got = np.ones(2048, np.uint8)
    store.read(0, got)
    assert got.reshape(4, 512)[:, 0].tolist() == [0, 7, 7, 0]
    assert (got.reshape(4, 512) == got.reshape(4, 512)[:, :1]).all()


def test_the_memory_is_the_disk() -> None:
    store = RamStore(2)
    assert store.memory is not None and len(store.memory) == 1024
    store.memory[600] = 5
    got = np.zeros(512, np.uint8)
    store.read(512, got)
    assert got[88] == 5


def test_two_disks_share_nothing() -> None:
    one, other = RamStore(1), RamStore(1)
    one.write(0, np.ones(512, np.uint8))
    assert other.memory is not None and not other.memory.any()


def test_a_closed_disk_lets_its_memory_go() -> None:
    store = RamStore(1)
    store.close()
    assert store.memory is None


def test_a_disk_over_memory_that_is_kept_elsewhere_is_that_memory() -> None:
    fd = sealed_memory("some", 1024)
    os.pwrite(fd, b"\7" * 512, 512)
    one, other = RamStore(2, fd), RamStore(2, fd)
    got = np.zeros(1024, np.uint8)
    one.read(0, got)
    assert got.reshape(2, 512).tolist() == [[0] * 512, [7] * 512]
    one.write(0, np.full(512, 9, np.uint8))
    other.read(0, got)
    assert got[0] == 9
    one.close(), other.close()
    assert os.pread(fd, 1, 0) == b"\x09"  # it outlives who has had it mapped
    os.close(fd)


KILLED = """
import os, signal, sys, time
import numpy as np
from backend.stores import RamStore
from common.memory import sealed_memory
fd, torn = sealed_memory("disk", 1 << 16), 0
mine, theirs = RamStore(128, fd), RamStore(128, fd, whole_sectors=sys.argv[1] == "whole")
data = [np.full(1 << 16, value, np.uint8) for value in range(256)]
for seed in range(50):
    if not (writer := os.fork()):
        for value in range(1 << 30):
            theirs.write(0, data[value % 256])
    time.sleep(0.002 + seed % 7 / 3000)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    sectors = mine.memory.reshape(128, 512)
    torn += int((sectors != sectors[:, :1]).any(axis=1).sum())
print(torn)
"""


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "by a copy of our own"])
def test_who_is_killed_while_he_writes_whole_sectors_leaves_none_in_part(whole: bool) -> None:
    args = [sys.executable, "-c", KILLED, "whole" if whole else "copied"]
    done = subprocess.run(args, capture_output=True, text=True, check=True)
    assert (int(done.stdout) == 0) is whole  # and without it, one is found


def test_a_disk_that_writes_whole_sectors_keeps_a_descriptor_until_it_is_closed() -> None:
    before = open_descriptors()
    store = RamStore(2, whole_sectors=True)
    store.write(512, np.full(512, 7, np.uint8))
    assert store.memory is not None and store.memory[::512].tolist() == [0, 7]
    assert len(open_descriptors()) == len(before) + 1
    store.close()
    assert open_descriptors() == before


def test_the_memory_of_a_ramdisk_cannot_be_made_shorter_or_longer() -> None:
    fd = sealed_memory("some", 4096)
    for nbytes in (0, 8192):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, nbytes)
    os.close(fd)


def test_memory_that_may_grow_does_so_under_its_disk_and_never_shrinks() -> None:
    rams, fd = RamStores(), sealed_memory("some", 4096, grows=True)
    rams.give("a", os.dup(fd))
    disk = rams.open("a", 8)
    assert disk.memory is not None and len(disk.memory) == 4096
    at = disk.memory.ctypes.data
    os.ftruncate(fd, 8192)
    disk.resize(16)
    disk.write(8192 - 512, np.full(512, 7, np.uint8))
    assert disk.memory.ctypes.data == at and os.pread(fd, 1, 8191) == b"\7"
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 4096)
    less = rams.open("a", 4)  # it once had more
    assert less.memory is not None and len(less.memory) == 2048
    with pytest.raises(LocalFault, match="store a has 8192 bytes, and not 16384"):
        rams.open("a", 32)
    disk.close(), less.close()
    rams.close()
    os.close(fd)


def test_memory_that_is_given_is_the_disks_of_its_key_until_it_is_forgotten() -> None:
    rams, before = RamStores(), open_descriptors()
    rams.give("a", sealed_memory("a", 4096))
    disk = rams.open("a", 8)
    disk.write(0, np.full(512, 5, np.uint8))
    again = rams.open("a", 8)
    assert again.memory is not None and again.memory[0] == 5
    with pytest.raises(LocalFault, match="store a has 4096 bytes, and not 512"):
        rams.open("a", 1)
    rams.forget("a")
    rams.forget("a")  # there is none: nothing
    assert again.memory[0] == 5
    other = rams.open("a", 8)
    assert other.memory is not None and other.memory[0] == 0
    for store in (disk, again, other):
        store.close()
    assert open_descriptors() == before
    rams.give("b", sealed_memory("b", 4096))
    rams.close()
    assert open_descriptors() == before


def test_memory_that_could_be_made_shorter_is_not_taken() -> None:
    rams, fd = RamStores(), os.memfd_create("x", os.MFD_ALLOW_SEALING)
    with pytest.raises(OSError, match="the memory of store x is not sealed"):
        rams.give("x", fd)
    os.close(fd)
    with open(os.devnull) as file, pytest.raises(OSError):
        rams.give("x", file.fileno())


def test_a_null_disk_keeps_nothing() -> None:
    store, got = NullStore(8), np.full(512, 3, np.uint8)
    store.write(0, np.ones(512, np.uint8))
    store.read(0, got)
    store.flush(), store.close()
    assert (got == 3).all() and store.memory is None


@pytest.mark.parametrize("mode", ["persistent", "non-persistent", "grant-copy"])
def test_all_but_the_copy_is_done_for_a_null_disk(mode: str) -> None:
    pair = Pair(mode, store=NullStore(512))
    assert pair.write(3, b"x" * 4096) == 0
    assert pair.read(3, 8) is not None
    assert pair.counts()["back_requests"] == 2 and pair.counts()["back_io_errors"] == 0
    pair.check()


@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
@pytest.mark.parametrize("gather_max", [1, 32])
def test_callbacks_serve_as_memory_does(mode: str, gather_max: int) -> None:
    kinds = (RamStore, CallbackStore)
    data = np.random.default_rng(5).integers(0, 256, 11 * 4096, np.uint8).tobytes()
    images = []
    for kind in kinds:
        pair = Pair(mode, gather_max=gather_max, store=kind(512))
        assert pair.write(3, data) == pair.write(200, data[:1536]) == 0
        assert pair.read(2, 80) == bytes(512) + data[: 79 * 512]
        pair.check()
        images.append(pair.read(0, 88) + pair.read(195, 13))
    assert images[0] == images[1]


def test_what_is_touched_is_there_for_all_disks_of_a_key() -> None:
    rams = RamStores()
    one, two, other = (rams.open(key, 2048) for key in ("a", "a", "b"))
    one.write(4096, np.full(10, 7, np.uint8))
    rams.touch("a", 0, 1 << 20)
    assert one.memory is not None and two.memory is not None and other.memory is not None
    assert [resident(disk.memory) for disk in (one, two, other)] == [256, 256, 0]
    assert two.memory[4096:4106].tolist() == [7] * 10 and not one.memory[8192:].any()
    for disk in (one, two, other):
        disk.close()
    rams.touch("a", 0, 1 << 20)
    rams.close()


def resident(memory: np.ndarray) -> int:
    """Pages of it that the host has given."""
    pages = np.zeros(len(memory) // 4096, np.uint8)
    libc = ctypes.CDLL(None)
    at, there = (ctypes.c_void_p(each.ctypes.data) for each in (memory, pages))
    assert libc.mincore(at, ctypes.c_size_t(len(memory)), there) == 0
    return int((pages & 1).sum())
