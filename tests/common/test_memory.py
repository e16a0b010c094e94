"""Shared segments: whole from the start, and without a name that could stay behind."""

import gc
import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.memory import SharedMemoryError, create_segment, map_segment
from common.process import open_descriptors
from tests.common.processes import run_together

SHM = Path("/dev/shm")


@pytest.fixture
def name() -> Iterator[str]:
    """A name nobody else has, of which nothing is left when the test is over."""
    name = f"grantlab-test-{secrets.token_hex(8)}"
    yield name
    assert not (SHM / name).exists()


def held(name: str) -> bool:
    """Has this process a descriptor of the segment?"""
    with os.scandir("/proc/self/fd") as descriptors:
        return any(f"/{name} " in os.readlink(d.path) for d in descriptors if d.is_symlink())


def test_a_segment_has_no_name_but_in_its_descriptor(name: str) -> None:
    fd = create_segment(name, 4096)
    assert name not in os.listdir(SHM)
    assert os.readlink(f"/proc/self/fd/{fd}") == f"/dev/shm/{name} (deleted)"
    assert held(name)
    os.close(fd)
    assert not held(name)


def test_a_segment_is_zero_all_through_and_reserved_to_the_last_byte(name: str) -> None:
    fd = create_segment(name, 5 * 4096)
    status = os.fstat(fd)
    assert status.st_size == 5 * 4096
    assert status.st_blocks * 512 >= 5 * 4096
    assert os.pread(fd, 5 * 4096, 0) == bytes(5 * 4096)
    os.close(fd)


def test_a_segment_is_its_makers_alone(name: str) -> None:
    fd = create_segment(name, 4096)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_a_segment_that_does_not_fit_is_an_error_that_names_it_and_what_is_free(name: str) -> None:
    room = os.statvfs(SHM)
    if room.f_blocks == 0:
        pytest.skip("this /dev/shm has no limit")
    nbytes = room.f_blocks * room.f_frsize + 4096
    with pytest.raises(SharedMemoryError) as refused:
        create_segment(name, nbytes)
    start = f"shared memory is full: /dev/shm/{name} needs {nbytes} bytes, /dev/shm has "
    assert str(refused.value).startswith(start)
    assert str(refused.value).removeprefix(start).removesuffix(" free").isdigit()
    assert name not in os.listdir(SHM)
    assert not held(name)


@pytest.mark.parametrize("nbytes", [0, -4096])
def test_a_segment_of_no_bytes_is_an_error_that_names_it_and_leaves_nothing(
    name: str, nbytes: int
) -> None:
    with pytest.raises(
        SharedMemoryError, match=f"cannot reserve {nbytes} bytes for /dev/shm/{name}:"
    ):
        create_segment(name, nbytes)
    assert not held(name)


def test_a_name_that_is_taken_is_an_error_and_its_owner_keeps_it(name: str) -> None:
    (SHM / name).write_bytes(b"theirs")
    try:
        with pytest.raises(SharedMemoryError, match=f"cannot create shared memory /dev/shm/{name}"):
            create_segment(name, 4096)
        assert (SHM / name).read_bytes() == b"theirs"
    finally:
        (SHM / name).unlink()


def test_a_name_is_free_again_as_soon_as_its_segment_is_made(name: str) -> None:
    first, second = create_segment(name, 4096), create_segment(name, 4096)
    os.pwrite(first, b"first", 0)
    assert os.pread(second, 5, 0) == bytes(5)
    os.close(first)
    os.close(second)


# --- mappings -----------------------------------------------------------------------------------


def mapped(name: str) -> int:
    """How many mappings of the segment this process has."""
    return sum(f"/dev/shm/{name} " in line for line in Path("/proc/self/maps").open())


def test_a_mapping_is_all_of_a_segments_bytes_and_keeps_no_descriptor(name: str) -> None:
    fd = create_segment(name, 3 * 4096)
    os.pwrite(fd, b"abc", 2 * 4096)
    view = map_segment(os.dup(fd))
    assert (view.dtype, view.shape) == (np.uint8, (3 * 4096,))
    assert view[2 * 4096 :][:4].tobytes() == b"abc\0"
    view[4095] = 7
    assert os.pread(fd, 2, 4095) == b"\x07\0"
    os.close(fd)
    assert not held(name) and mapped(name) == 1
    assert view[4095] == 7


def test_a_mapping_lives_as_long_as_any_view_of_it(name: str) -> None:
    view = map_segment(create_segment(name, 2 * 4096))
    words = view[4096:].view(np.uint64)
    del view
    gc.collect()
    words[:] = 5
    assert mapped(name) == 1 and words.sum() == 5 * 512
    del words
    gc.collect()
    assert mapped(name) == 0


def test_one_segment_may_be_mapped_twice(name: str) -> None:
    fd = create_segment(name, 4096)
    first, second = map_segment(os.dup(fd)), map_segment(fd)
    first[9] = 9
    assert second[9] == 9


def test_what_cannot_be_mapped_is_an_error_and_its_descriptor_is_closed() -> None:
    reads, writes = os.pipe()
    with pytest.raises(OSError, match="cannot map 0 bytes of shared memory"):
        map_segment(reads)
    assert reads not in open_descriptors()
    os.close(writes)
    with pytest.raises(OSError, match="Bad file descriptor"):
        map_segment(reads)


def write_and_leave(fd: int) -> None:
    map_segment(fd)[4096:4100] = (1, 2, 3, 4)


def test_another_process_with_the_descriptor_sees_the_same_bytes(name: str) -> None:
    fd = create_segment(name, 3 * 4096)
    view = map_segment(os.dup(fd))
    run_together((write_and_leave, (fd,)))
    assert view[4095:4101].tolist() == [0, 1, 2, 3, 4, 0]
    os.close(fd)


def test_one_frame_can_be_mapped_through_the_descriptor(name: str) -> None:
    fd = create_segment(name, 3 * 4096)
    view = map_segment(os.dup(fd))
    with mmap.mmap(fd, 4096, offset=2 * 4096) as frame:
        frame[:3] = b"abc"
    assert view[2 * 4096 :][:3].tobytes() == b"abc"
    os.close(fd)
