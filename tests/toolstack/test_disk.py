"""A guest's disk from afar: cut to messages, and no answer of a guest's believed."""

from typing import Any

import msgpack
import numpy as np
import pytest

from common.abi import SECTOR_SIZE
from common.control import DATA_MAX, MESSAGE_MAX
from toolstack.disk import GuestDisk

SIZE = 4 << 20
NUMBER = 5  # the disk's in its guest


class FarDisk:
    """A guest with `SIZE` bytes; each command as it came, within one message each way."""

    def __init__(self) -> None:
        self.commands: list[tuple[Any, ...]] = []
        self.bytes = bytearray(SIZE)
        self.expected = np.zeros(SIZE // SECTOR_SIZE, np.uint32)
        self.lies: Any = None

    def ask(self, guest: str, *command: Any) -> Any:
        assert guest == "guest-3"
        assert len(msgpack.packb(command)) <= MESSAGE_MAX
        word, number, *arguments = msgpack.unpackb(msgpack.packb(command))
        assert number == NUMBER
        command = (word, *arguments)
        self.commands.append(command)
        if self.lies is not None:
            return self.lies
        answered = getattr(self, f"_{command[0]}")(*command[1:])
        assert len(msgpack.packb(("ok", answered))) <= MESSAGE_MAX
        return answered

    def _read(self, offset: int, nbytes: int) -> bytes:
        return bytes(self.bytes[offset : offset + nbytes])

    def _write(self, offset: int, data: bytes) -> int:
        self.bytes[offset : offset + len(data)] = data
        return len(data)

    def _read_many(self, offsets: list[int], nbytes: int) -> bytes:
        return b"".join(self._read(offset, nbytes) for offset in offsets)

    def _write_many(self, offsets: list[int], data: bytes) -> None:
        rows = np.frombuffer(data, np.uint8).reshape(len(offsets), -1)
        for offset, row in zip(offsets, rows, strict=True):
            self._write(offset, row.tobytes())

    def _flush(self) -> None:
        pass

    def _discard(self, offset: int, nbytes: int, secure: bool) -> None:
        pass

    def _versions(self, sector: int, nr: int, told: bytes = b"", *name: int) -> bytes:
        if told:
            assert name == (7, NUMBER)
            self.expected[sector : sector + nr] = np.frombuffer(told, np.uint32)
        return np.arange(sector, sector + nr, dtype=np.uint32).tobytes()


@pytest.fixture
def far() -> FarDisk:
    return FarDisk()


@pytest.fixture
def disk(far: FarDisk) -> GuestDisk:
    return GuestDisk(far.ask, "guest-3", NUMBER, SIZE)


def noise(nbytes: int) -> bytes:
    return np.random.default_rng(1).integers(0, 256, nbytes, np.uint8).tobytes()


@pytest.mark.parametrize("nbytes", [0, 512, DATA_MAX, DATA_MAX + 512, 3 * DATA_MAX, SIZE - 512])
def test_what_is_written_is_read_piece_by_piece(far: FarDisk, disk: GuestDisk, nbytes: int) -> None:
    data = noise(nbytes)
    assert disk.write(512, data) == nbytes
    assert disk.read(512, nbytes) == data
    assert bytes(far.bytes[512 : 512 + nbytes]) == data and not far.bytes[0]
    pieces = max(1, -(-nbytes // DATA_MAX))
    assert [word for word, *_ in far.commands] == ["write"] * pieces + ["read"] * pieces


@pytest.mark.parametrize("nbytes", [512, 4096, 44 * 1024, DATA_MAX, DATA_MAX + 512])
@pytest.mark.parametrize("count", [0, 1, 31, 300])
def test_many_rows_go_together_as_far_as_they_fit(
    far: FarDisk, disk: GuestDisk, nbytes: int, count: int
) -> None:
    count = min(count, SIZE // nbytes)
    offsets = np.random.default_rng(2).permutation(SIZE // nbytes)[:count] * nbytes
    rows = np.frombuffer(noise(count * nbytes), np.uint8).reshape(count, nbytes)
    disk.write_many(offsets, rows)
    assert (disk.read_many(offsets, nbytes) == rows).all()
    for offset, row in zip(offsets, rows, strict=True):
        assert bytes(far.bytes[offset : offset + nbytes]) == row.tobytes()
    if nbytes <= DATA_MAX:
        together = DATA_MAX // nbytes
        assert len(far.commands) == 2 * -(-count // together)


@pytest.mark.parametrize("nbytes", [1, 32, 100, SECTOR_SIZE])
def test_rows_of_no_size_a_disk_takes_are_for_the_guest_to_refuse(
    far: FarDisk, disk: GuestDisk, nbytes: int
) -> None:
    """Many of them, at offsets that are long in a message."""
    offsets = [(1 << 62) + at for at in range(5000)]
    far.lies = None
    far._write_many = lambda offsets, data: None  # type: ignore[method-assign]
    far._read_many = lambda offsets, nbytes: bytes(len(offsets) * nbytes)  # type: ignore[method-assign]
    disk.write_many(offsets, np.zeros((5000, nbytes), np.uint8))
    disk.read_many(offsets, nbytes)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_can_be_written(far: FarDisk, disk: GuestDisk, kind: type) -> None:
    data = noise(DATA_MAX + 512)
    assert disk.write(0, kind(data)) == len(data)
    assert disk.read(0, len(data)) == data


@pytest.mark.parametrize("number", [np.int64(512), np.uint32(512), 512])
def test_numpys_numbers_are_numbers(far: FarDisk, disk: GuestDisk, number: Any) -> None:
    disk.write(number, bytes(512))
    assert disk.read(number, number) == bytes(512)
    assert disk.read_many([number], 512).shape == (1, 512)
    assert far.commands[1] == ("read", 512, 512)


@pytest.mark.parametrize("offset", [1 << 63, 1 << 64, 1 << 70, -(1 << 63)])
def test_an_offset_that_no_message_holds_is_refused_here(
    far: FarDisk, disk: GuestDisk, offset: int
) -> None:
    for refused in (
        lambda: disk.read(offset, 512),
        lambda: disk.write(offset, bytes(512)),
        lambda: disk.read_many([offset], 512),
        lambda: disk.write_many([offset], np.zeros((1, 512), np.uint8)),
    ):
        with pytest.raises(ValueError, match=f"offset: {offset} is past the disk's end at {SIZE}"):
            refused()
    assert far.commands == []


def test_other_bad_offsets_and_lengths_are_the_guests_to_refuse(
    far: FarDisk, disk: GuestDisk
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("refused")

    far._read = far._write = refuse  # type: ignore[method-assign, assignment]
    for offset, nbytes in ((-512, 512), (1, 512), (0, -512), (0, 100), (SIZE, 512)):
        with pytest.raises(ValueError, match=r"^refused$"):
            disk.read(offset, nbytes)
    with pytest.raises(ValueError, match=r"^refused$"):
        disk.write(1, bytes(512))
    assert far.commands[0] == ("read", -512, 512) and len(far.commands) == 6


@pytest.mark.parametrize("data", [np.zeros(512, np.uint8), np.zeros((1, 512)), np.zeros((2, 512))])
def test_rows_must_be_bytes_and_as_many_as_offsets(
    far: FarDisk, disk: GuestDisk, data: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=r"data: u8 of shape \(1, nbytes\) is needed, not"):
        disk.write_many([0], data)
    assert far.commands == []


@pytest.mark.parametrize(
    "lie", [b"", bytes(511), bytes(513), "x" * 512, 512, [0] * 512, {"data": bytes(512)}]
)
def test_an_answer_of_another_length_or_kind_is_an_error_that_names_the_guest(
    far: FarDisk, disk: GuestDisk, lie: Any
) -> None:
    far.lies = lie
    for ask in (lambda: disk.read(0, 512), lambda: disk.read_many([0], 512)):
        with pytest.raises(OSError, match="guest-3 answered with something else than 512 bytes"):
            ask()


def test_flush_is_asked_for(far: FarDisk, disk: GuestDisk) -> None:
    disk.flush()
    assert far.commands == [("flush",)]


def test_what_another_wrote_is_asked_of_it_and_told_whole(far: FarDisk, disk: GuestDisk) -> None:
    disk.size = SIZE - 5 * SECTOR_SIZE
    disk.expect(GuestDisk(far.ask, "guest-3", NUMBER, SIZE), 7)
    known = disk.size // SECTOR_SIZE
    assert (far.expected[:known] == np.arange(known)).all() and not far.expected[known:].any()


@pytest.mark.parametrize(("secure", "told"), [(False, False), (1, True)])
def test_a_discard_is_asked_for(far: FarDisk, disk: GuestDisk, secure: Any, told: bool) -> None:
    disk.discard(np.int64(4096), np.uint16(512), secure)
    assert far.commands == [("discard", 4096, 512, told)]


@pytest.mark.parametrize("where", [(1 << 63, 512), (0, 1 << 70), (-(1 << 63), 512)])
def test_a_discard_that_no_message_holds_is_refused_here(
    far: FarDisk, disk: GuestDisk, where: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match=f"is past the disk's end at {SIZE}"):
        disk.discard(*where)
    assert far.commands == []


@pytest.mark.parametrize("where", [(0.0, 512), ("0", 512), (0, None)])
def test_a_discard_of_what_is_no_number_is_refused_here(
    far: FarDisk, disk: GuestDisk, where: tuple[Any, Any]
) -> None:
    with pytest.raises(TypeError):
        disk.discard(*where)
    assert far.commands == []
