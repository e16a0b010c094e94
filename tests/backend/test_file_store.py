"""A disk on a file: which files can be one, what the callbacks do, who else may have it open."""

import errno
import logging
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backend import file_store
from backend.file_pool import FilePool
from backend.file_store import check_file, open_file
from backend.io_uring import IoUring
from backend.slots import READ
from backend.store_jobs import IOVEC, JOB
from backend.store_queue import enter, put, reap
from common.faults import LocalFault
from common.process import open_descriptors
from tests.backend.filer import file_on, sleep_on

PAGE = 4096
FILE_BYTES = 64 * PAGE


@pytest.fixture(params=["tmpfs", "disk"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file with random bytes, on a tmpfs and on a real file system."""
    with file_on(request.param, tmp_path, FILE_BYTES) as file:
        yield file


@pytest.fixture(params=["none", "writeback"])
def cache(request: pytest.FixtureRequest) -> str:
    """O_DIRECT or not."""
    return str(request.param)


def refused(path: Path | str, text: str, **options: object) -> None:
    """Both say the same one line, and nothing stays open."""
    given = {"read_only": False, "cache": "writeback", "sector_size": 512, **options}
    before = open_descriptors()
    for look in (open_file, check_file):
        with pytest.raises(LocalFault) as told:
            look(str(path), **given)  # type: ignore[operator]
        assert text in str(told.value) and str(path) in str(told.value)
        assert "\n" not in str(told.value)
    assert open_descriptors() == before


def test_what_is_written_is_read_and_lies_in_the_file(path: Path, cache: str) -> None:
    image = bytearray(path.read_bytes())
    store = open_file(str(path), False, cache, 512)
    assert store.nr_sectors == FILE_BYTES // 512 and store.memory is None
    room = np.random.default_rng(2).integers(0, 256, 5 * PAGE, np.uint8)
    skip = -room.ctypes.data % PAGE
    for shift in (0, 3):  # at aligned addresses of memory and at others
        data = room[skip + shift :][: 3 * 512]
        store.write(7 * 512, data)
        image[7 * 512 : 10 * 512] = data.tobytes()
        got = np.zeros(4 * PAGE + 8, np.uint8)[shift : shift + 3 * PAGE]
        store.read(512, got)
        assert got.tobytes() == image[512 : 512 + 3 * PAGE]
    store.flush()
    store.close()
    assert path.read_bytes() == image


def test_a_hole_is_punched_and_the_size_stays(path: Path, cache: str) -> None:
    blocks, end = path.stat().st_blocks, path.read_bytes()[48 * PAGE :]
    store = open_file(str(path), False, cache, 512)
    assert store.features == (True, True, True, PAGE, 0)
    assert path.stat().st_blocks == blocks and path.read_bytes()[48 * PAGE :] == end
    store.discard(16 * PAGE, 32 * PAGE)
    store.close()
    image = path.read_bytes()
    assert len(image) == FILE_BYTES and not any(image[16 * PAGE : 48 * PAGE])
    assert image[48 * PAGE :] == end and path.stat().st_blocks == blocks - 32 * 8


def test_a_read_only_disk_has_no_discard_and_cannot_be_written(path: Path) -> None:
    store = open_file(str(path), True, "writeback", 512)
    assert store.features.flush and not store.features.discard
    with pytest.raises(OSError):
        store.write(0, np.zeros(512, np.uint8))
    store.close()


def test_a_file_that_has_become_shorter_is_an_error(path: Path, cache: str) -> None:
    store = open_file(str(path), False, cache, 512)
    os.truncate(path, 2 * PAGE)
    with pytest.raises(OSError, match="shorter"):
        store.read(PAGE, np.zeros(2 * PAGE, np.uint8))
    store.close()


def test_a_full_file_system_is_an_error(path: Path) -> None:
    store = open_file(str(path), False, "writeback", 512)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, hard))
    try:
        with pytest.raises(OSError) as told:
            store.write(FILE_BYTES - 512, np.zeros(1024, np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.errno == errno.EFBIG  # after the half that had room
    store.close()


def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    refused(tmp_path, "is a directory: a file or a block device is needed")
    refused("/dev/zero", "is a character device")
    refused(tmp_path / "none", "No such file or directory")
    refused(tmp_path / "none" / "there", "No such file or directory")
    refused("/dev/null/x", "Not a directory")
    refused("a\0b", "no path")
    refused(tmp_path / ("x" * 300), "too long")
    os.mkfifo(tmp_path / "pipe")
    for read_only in (False, True):  # and nobody waits for its other end
        refused(tmp_path / "pipe", "is a pipe", read_only=read_only)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        refused(tmp_path / "socket", "is a socket")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", "symbolic links")


def test_sizes_that_are_no_disks(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"")
    refused(file, "has 0 bytes: at least a sector of 512 is needed")
    file.write_bytes(b"x" * 511)
    refused(file, "has 511 bytes: at least a sector of 512")
    file.write_bytes(b"x" * 1000)
    refused(file, "has 1000 bytes: a multiple of its sectors of 512 is needed")
    file.write_bytes(b"x" * 512)
    refused(file, "at least a sector of 4096 is needed", sector_size=4096)
    file.write_bytes(b"x" * 4608)
    refused(file, "a multiple of its sectors of 4096 is needed", sector_size=4096)
    assert check_file(str(file), False, "writeback", 512) == 4608


def test_o_direct_where_there_is_none(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    opened = os.open

    def without(name: str, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(name, flags)

    monkeypatch.setattr(os, "open", without)
    refused(path, "its file system has no O_DIRECT: cache=writeback is allowed", cache="none")
    assert check_file(str(path), False, "writeback", 512) == FILE_BYTES


def test_o_direct_that_wants_larger_sectors(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    read = os.preadv

    def of_pages(fd: int, buffers: list[memoryview], offset: int) -> int:
        if len(buffers[0]) % PAGE or offset % PAGE:
            raise OSError(errno.EINVAL, "Invalid argument")
        return read(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", of_pages)
    refused(path, "needs sectors of 4096 bytes there: sector-size=4096", cache="none")
    assert check_file(str(path), False, "none", 4096) == FILE_BYTES
    assert check_file(str(path), False, "writeback", 512) == FILE_BYTES


@pytest.mark.parametrize(
    ("code", "read_only", "text"),
    [
        (errno.EROFS, False, "a read-only disk is allowed"),
        (errno.EACCES, False, "it is to be readable and writable"),
        (errno.EACCES, True, "it is to be readable"),
        (errno.EPERM, False, "it is to be readable and writable"),
        (errno.EBUSY, False, "a device that the host uses may only be read"),
    ],
)
def test_what_may_not_be_opened(
    monkeypatch: pytest.MonkeyPatch, path: Path, code: int, read_only: bool, text: str
) -> None:
    def no(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", no)
    refused(path, text, read_only=read_only)


def test_one_writer_or_many_readers(path: Path) -> None:
    where = str(path)
    writer = open_file(where, False, "writeback", 512)
    refused(path, "is locked by another who has it open: one writer alone may")
    refused(path, "is locked by another who writes it: many readers may", read_only=True)
    writer.close()
    readers = [open_file(where, True, "writeback", 512) for _ in range(3)]
    refused(path, "is locked by another who has it open")
    for reader in readers:
        reader.close()
    open_file(where, False, "writeback", 512).close()


def test_another_process_has_it(path: Path) -> None:
    program = (
        "import sys; from backend.file_store import open_file;"
        f"store = open_file({str(path)!r}, False, 'writeback', 512);"
        "print('there', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == b"there\n"
        refused(path, "is locked by another")
        other.stdin.close()
        other.wait(30)
    assert check_file(str(path), False, "writeback", 512) == FILE_BYTES


def test_what_is_in_memory_is_read_where_the_call_is_made(path: Path) -> None:
    """And by no thread of the kernel, of which a caller who needs one has one of his own."""
    store = open_file(str(path), False, "writeback", 512)
    queue = store.open_queue(4)
    workers = []

    def load() -> None:
        jobs, iovecs = np.zeros(4, JOB), np.zeros((4, 11), IOVEC)
        room = np.zeros(PAGE, np.uint8)
        iovecs[0, 0] = (room.ctypes.data, PAGE)
        for page in range(50):
            jobs[0] = (page * PAGE, PAGE, READ, 1)
            put(queue.queue, jobs, iovecs, 0)
            assert enter(queue.queue) == 0
            while reap(queue.queue, jobs) < 0:
                sleep_on(queue.queue, queue.polled_fd)
        own = f"iou-wrk-{threading.get_native_id()}"
        names = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
        workers.append(names.count(own))

    thread = threading.Thread(target=load)
    thread.start()
    thread.join()
    queue.close()
    store.close()
    assert workers == [0]


@pytest.mark.parametrize("uring", [True, False])
def test_the_lock_goes_with_the_store_though_a_ring_has_the_file(path: Path, uring: bool) -> None:
    before = open_descriptors()
    for _ in range(20):
        store = open_file(str(path), False, "writeback", 512)
        queue = store.open_queue(4, uring=uring)
        jobs, iovecs = np.zeros(4, JOB), np.zeros((4, 11), IOVEC)
        room = np.zeros(PAGE, np.uint8)
        jobs[0] = (0, PAGE, READ, 1)
        iovecs[0, 0] = (room.ctypes.data, PAGE)
        put(queue.queue, jobs, iovecs, 0)
        assert enter(queue.queue) == 0
        while (answer := int(reap(queue.queue, jobs))) < 0:
            sleep_on(queue.queue, queue.polled_fd)
        assert answer == 0
        queue.close()
        store.close()
    assert open_descriptors() == before


def test_a_host_that_refuses_io_uring_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: Path
) -> None:
    def no(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(file_store, "_said", set())
    store = open_file(str(path), False, "writeback", 512)
    with caplog.at_level(logging.WARNING):
        queue = store.open_queue(4)
        assert isinstance(queue, IoUring)
        queue.close()
        monkeypatch.setattr(file_store, "IoUring", no)
        for _ in range(2):
            queue = store.open_queue(4)
            assert isinstance(queue, FilePool)
            queue.close()
    store.close()
    assert [record.getMessage() for record in caplog.records] == [
        "no io_uring (Operation not permitted): 4 threads for each such disk"
    ]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A loop device on a file, if the host allows one."""
    image = tmp_path / "image"
    image.write_bytes(bytes(FILE_BYTES))
    made = subprocess.run(
        ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_a_block_device(device: str, cache: str) -> None:
    assert stat.S_ISBLK(os.stat(device).st_mode)
    store = open_file(device, False, cache, 512)
    assert store.nr_sectors == FILE_BYTES // 512
    refused(device, "a device that the host uses may only be read")
    data, got = np.full(PAGE, 7, np.uint8), np.zeros(PAGE, np.uint8)
    store.write(PAGE, data)
    store.flush()
    store.read(PAGE, got)
    assert (got == 7).all()
    if store.features.discard:
        store.discard(PAGE, PAGE)
        store.read(PAGE, got)
        assert not got.any()
    store.close()
