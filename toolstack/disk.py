"""A guest and its disks for the user's Python: `frontend.block_device.BlockDevice` from afar.

The bytes go over the guest's control connection, cut to what one message holds; the I/O itself is
the guest's, through its ring. What it answers is a guest's: its length is checked.
"""

from collections.abc import Callable, Iterator, Sequence
from operator import index
from typing import Any, Final

import numpy as np

from common.abi import SECTOR_SIZE
from common.control import DATA_MAX
from toolstack.disks import Disk
from toolstack.verify_state import Verdict

VERSION_BYTES: Final = 4  # of what a guest knows of a sector
JUDGED_AT_ONCE: Final = 1 << 17  # sectors, 64 MiB: an answer does not take long


class GuestDisk:
    """`size` bytes; number: the disk's in its guest. Offsets and lengths are bytes, multiples of
    its sector size.

    Errors of the guest (a bad offset, an I/O error) arrive as MachineError, with its text.
    """

    def __init__(
        self, ask: Callable[..., Any], guest: str, number: int, size: int, vdev: str = "xvda"
    ) -> None:
        self._ask, self._guest = ask, guest
        self.number, self.size, self.vdev = number, size, vdev

    def read(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes at `offset`."""
        offset, nbytes = self._checked(offset), index(nbytes)
        pieces = _pieces(nbytes) or [(0, nbytes)]
        return b"".join(self._bytes(n, "read", offset + at, n) for at, n in pieces)

    def write(self, offset: int, data: bytes) -> int:
        """Write `data` at `offset`; returns how many bytes that was."""
        offset = self._checked(offset)
        for at, nbytes in _pieces(len(data)) or [(0, 0)]:
            self._asked("write", offset + at, bytes(data[at : at + nbytes]))
        return len(data)

    def read_many(self, offsets: Sequence[int] | np.ndarray, nbytes: int) -> np.ndarray:
        """`nbytes` bytes at each of `offsets`, in flight together: u8, shape (n, nbytes)."""
        result = np.empty((len(offsets), max(nbytes, 0)), np.uint8)
        for rows in self._rows(len(offsets), nbytes):
            chosen = [self._checked(offset) for offset in offsets[rows]]
            if nbytes > DATA_MAX:
                result[rows] = np.frombuffer(self.read(chosen[0], nbytes), np.uint8)
            else:
                read = self._bytes(len(chosen) * nbytes, "read_many", chosen, nbytes)
                result[rows] = np.frombuffer(read, np.uint8).reshape(len(chosen), nbytes)
        return result

    def write_many(self, offsets: Sequence[int] | np.ndarray, data: np.ndarray) -> None:
        """Write row i of `data` (u8, shape (n, nbytes)) at offset i, in flight together."""
        if data.ndim != 2 or len(data) != len(offsets) or data.dtype != np.uint8:
            raise ValueError(
                f"data: u8 of shape ({len(offsets)}, nbytes) is needed,"
                f" not {data.dtype} of shape {data.shape}"
            )
        for rows in self._rows(*data.shape):
            chosen = [self._checked(offset) for offset in offsets[rows]]
            if data.shape[1] > DATA_MAX:
                self.write(chosen[0], data[rows].tobytes())
            else:
                self._asked("write_many", chosen, data[rows].tobytes())

    def flush(self) -> None:
        """Return when everything written would survive."""
        self._asked("flush")

    def discard(self, offset: int, nbytes: int, secure: bool = False) -> None:
        """Tell the backend that nobody wants these `nbytes` again: what is read there is anything.

        secure: and nobody is to be able to. A backend that knows no such is a MachineError.
        """
        self._asked("discard", self._checked(offset), self._checked(nbytes), bool(secure))

    def expect(self, other: "GuestDisk", domid: int) -> None:
        """Loads are to find here what they have written on `other` of guest `domid`, whose store
        this is, too: fio's verify_state."""
        size, step = self.size // SECTOR_SIZE, DATA_MAX // VERSION_BYTES
        for sector in range(0, size, step):
            nr = min(step, size - sector)
            versions = other._bytes(nr * VERSION_BYTES, "versions", sector, nr)
            self._asked("versions", sector, nr, versions, domid, other.number)

    def judge(self, disk: Disk) -> Verdict:
        """Compare all of it with what its state file says; disk: which it is."""
        verdict = Verdict(disk)
        for sector in range(0, self.size // SECTOR_SIZE, JUDGED_AT_ONCE):
            try:
                verdict.add(self._asked("judge", sector, JUDGED_AT_ONCE))
            except ValueError as error:
                raise OSError(str(error)) from None
        return verdict

    def _checked(self, offset: int | np.integer) -> int:
        """A plain number; what is wrong with a smaller one the guest says, as for its own users."""
        plain = index(offset)
        if abs(plain) >= 1 << 63:
            raise ValueError(f"offset: {plain} is past the disk's end at {self.size}")
        return plain

    def _asked(self, word: str, *arguments: Any) -> Any:
        return self._ask(self._guest, word, self.number, *arguments)

    def _bytes(self, nbytes: int, word: str, *arguments: Any) -> bytes:
        answered = self._asked(word, *arguments)
        if not isinstance(answered, bytes) or len(answered) != nbytes:
            raise OSError(f"{self._guest} answered with something else than {nbytes} bytes")
        return answered

    @staticmethod
    def _rows(count: int, nbytes: int) -> Iterator[slice]:
        """As many rows at a time as go into one message, offsets included; at least one."""
        together = max(1, DATA_MAX // max(nbytes, SECTOR_SIZE))
        return (slice(at, min(at + together, count)) for at in range(0, count, together))


class Guest:
    """A guest of a machine: its `disks` in bytes of `sizes`, in their order, and the first of them.

    ask: sends a process, by name, a command, and returns its answer.
    """

    def __init__(
        self, ask: Callable[..., Any], domid: int, disks: Sequence[Disk], sizes: Sequence[int]
    ) -> None:
        self.domid = domid
        self.disks = [
            GuestDisk(ask, f"guest-{self.domid}", disk.number, size, disk.vdev)
            for disk, size in zip(disks, sizes, strict=True)
        ]

    @property
    def disk(self) -> GuestDisk:
        """The first. Raises KeyError if there is none."""
        if not self.disks:
            raise KeyError(f"guest {self.domid} has no disk")
        return self.disks[0]

    def numbered(self, number: int) -> GuestDisk:
        """The disk of that number. Raises KeyError naming those that there are."""
        for disk in self.disks:
            if disk.number == number:
                return disk
        numbers = ", ".join(str(disk.number) for disk in self.disks)
        raise KeyError(f"guest {self.domid} has no disk {number}: {numbers or 'none'} there are")


def _pieces(nbytes: int) -> list[tuple[int, int]]:
    return [(at, min(DATA_MAX, nbytes - at)) for at in range(0, nbytes, DATA_MAX)]
