"""A guest's disk for Python users."""

import errno
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.abi import XEN_PAGE_SIZE
from common.faults import PeerFault
from frontend.block_device import PIECE_BYTES, BlockDevice
from frontend.disk import Disk
from tests.pair import MODES, OKAY, READ, CallbackStore, Pair

SIZE = 64 * 4096


def device(
    pair: Pair, nr_frames: int | None = None, **said: Any
) -> tuple[BlockDevice, list[tuple[int, int]]]:
    """A device on `pair` with `nr_frames` of buffers, and the sectors it was told to forget.

    said: what its backend says of it (`Disk`'s).
    """
    forgotten: list[tuple[int, int]] = []
    first = pair.buffer_frame
    end = None if nr_frames is None else (first + nr_frames) * XEN_PAGE_SIZE
    buffers = pair.ram[first * XEN_PAGE_SIZE : end]
    plain = Disk(pair.store.nr_sectors, 512, True, read_only=False)
    disk = BlockDevice(
        pair.driver,
        0,
        replace(plain, **said),
        buffers,
        first,
        lambda sector, count: forgotten.append((sector, count)),
        lambda: None,
    )
    return disk, forgotten


def noise(nbytes: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8).tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nbytes", [512, 4096, 4608, PIECE_BYTES, PIECE_BYTES + 512, SIZE - 1024])
def test_what_is_written_is_read_and_nothing_else_is_touched(mode: str, nbytes: int) -> None:
    pair = Pair(mode)
    disk, _ = device(pair)
    assert disk.size == SIZE
    assert disk.write(512, noise(nbytes)) == nbytes
    assert disk.read(512, nbytes) == noise(nbytes)
    assert disk.read(0, 512) == bytes(512)
    assert disk.read(512 + nbytes, SIZE - 512 - nbytes) == bytes(SIZE - 512 - nbytes)
    pair.check()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, np.frombuffer])
def test_any_kind_of_bytes_can_be_written(kind: type) -> None:
    disk, _ = device(Pair())
    assert disk.write(0, kind(noise(1024))) == 1024
    assert disk.read(0, 1024) == noise(1024)


def test_nothing_read_or_written_is_nothing() -> None:
    pair = Pair()
    disk, forgotten = device(pair)
    assert disk.read(0, 0) == disk.read(SIZE, 0) == b""
    assert disk.write(512, bytearray()) == 0
    assert (pair.counts()["requests"], forgotten) == (0, [])


@pytest.mark.parametrize(
    ("offset", "nbytes", "complaint"),
    [
        (1, 512, "offset: 1 is not a multiple of 512"),
        (-512, 512, "offset: -512 is not a multiple of 512 from 0 on"),
        (0, 100, "length: 100 is not a multiple of 512"),
        (SIZE, 512, f"offset: {SIZE} \\+ 512 bytes is past the disk's end at {SIZE}"),
        (SIZE - 512, 1024, "past the disk's end"),
        (1 << 70, 512, "past the disk's end"),
    ],
)
def test_what_does_not_lie_on_the_disk_is_refused(offset: int, nbytes: int, complaint: str) -> None:
    pair = Pair()
    disk, forgotten = device(pair)
    with pytest.raises(ValueError, match=complaint):
        disk.read(offset, nbytes)
    with pytest.raises(ValueError, match=complaint):
        disk.write(offset, bytes(nbytes))
    with pytest.raises(ValueError, match=complaint):
        disk.read_many([0, offset], nbytes)
    with pytest.raises(ValueError, match=complaint):
        disk.write_many([0, offset], np.zeros((2, nbytes), np.uint8))
    assert (pair.counts()["requests"], forgotten) == (0, [])


@pytest.mark.parametrize("nbytes", [0, -512, 8 * 4096 + 512])
def test_a_row_must_fit_the_buffers(nbytes: int) -> None:
    disk, _ = device(Pair(), nr_frames=8)
    with pytest.raises(ValueError, match=f"nbytes: {nbytes} is not in 1..32768"):
        disk.read_many([0], nbytes)


@pytest.mark.parametrize("data", [np.zeros(512, np.uint8), np.zeros((1, 512)), np.zeros((2, 512))])
def test_rows_must_be_bytes_and_as_many_as_offsets(data: np.ndarray) -> None:
    disk, _ = device(Pair())
    with pytest.raises(ValueError, match=r"data: u8 of shape \(1, nbytes\) is needed, not"):
        disk.write_many([0], data)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nbytes", [512, 4096, 4608, 12288])
@pytest.mark.parametrize("nr_frames", [None, 12])
def test_many_rows_go_together_and_each_to_its_place(
    mode: str, nbytes: int, nr_frames: int | None
) -> None:
    pair = Pair(mode, nr_ios=40)
    disk, _ = device(pair, nr_frames)
    offsets = np.random.default_rng(3).permutation(SIZE // nbytes)[:50] * nbytes
    rows = np.frombuffer(noise(len(offsets) * nbytes), np.uint8).reshape(-1, nbytes)
    disk.write_many(offsets, rows)
    assert (disk.read_many(offsets, nbytes) == rows).all()
    image = np.zeros(SIZE, np.uint8)
    for offset, row in zip(offsets, rows, strict=True):
        image[offset : offset + nbytes] = row
    assert disk.read(0, SIZE) == image.tobytes()
    pair.check()


def test_many_are_in_flight_together() -> None:
    pair = Pair("non-persistent", gather_max=32)
    disk, _ = device(pair)
    disk.read_many(np.arange(32) * 4096, 4096)
    assert pair.hypercalls == [("map", 32), ("unmap", 32)]


def test_no_rows_are_no_work() -> None:
    disk, _ = device(Pair())
    assert disk.read_many([], 512).shape == (0, 512)
    disk.write_many([], np.zeros((0, 512), np.uint8))


def test_every_write_is_told_before_it_starts() -> None:
    pair = Pair()
    disk, forgotten = device(pair)
    disk.write(512, noise(PIECE_BYTES + 1024))
    assert forgotten == [(1, 88), (89, 2)]
    forgotten.clear()
    disk.write_many([4096, 0], np.zeros((2, 1024), np.uint8))
    disk.read(0, 4096)
    assert forgotten == [(8, 2), (0, 2)]


class Scratched(CallbackStore):
    """Block 3 cannot be used."""

    def read(self, offset: int, into: np.ndarray) -> None:
        if offset == 3 * 4096:
            raise OSError(errno.EIO, "scratched")
        super().read(offset, into)


@pytest.mark.parametrize("mode", MODES)
def test_a_failed_transfer_names_its_sector_and_the_next_is_fine(mode: str) -> None:
    pair = Pair(mode, store=Scratched(512))
    disk, _ = device(pair)
    disk.write(0, noise(SIZE))
    with pytest.raises(OSError, match=r"I/O error at sector 24 \(1 of 5\)") as caught:
        disk.read_many(np.arange(5) * 4096, 4096)
    assert caught.value.errno == errno.EIO
    assert disk.read(4 * 4096, 4096) == noise(SIZE)[4 * 4096 :][:4096]
    pair.check()


def test_a_liar_is_an_error_of_every_call_from_then_on() -> None:
    pair = Pair()
    disk, _ = device(pair)
    pair.answer_raw((0, READ, OKAY))
    for _ in range(3):
        with pytest.raises(PeerFault, match="more responses than there were requests"):
            disk.read(0, 512)
