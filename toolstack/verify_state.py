"""State files: what each disk was told to keep, for who asks after a crash (fio's verify_state).

Owns: which disks have one, its name, how it is made and when it is gone on with. A guest may have
written anything there, but for its length, which is that of the whole from the start: what it says
of itself is checked before it is used, and what it says of sectors hurts nobody but the guest.
"""

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from common.abi import SECTOR_SIZE
from toolstack.disk_checks import size_there
from toolstack.disks import Disk
from toolstack.loadspec import ConfigError, shown

FRESH: Final = ("ram", "null")  # kinds of stores that begin as zeros with their machine
PIECE: Final = 1 << 22  # bytes that are written at a time


def is_fresh(disk: Disk) -> bool:
    """Has nobody written to it before its machine started?"""
    return disk.spec.kind in FRESH


def is_kept(disk: Disk, disks: Sequence[Disk]) -> bool:
    """Can anything be known of it after a crash: does it keep what is written, by one disk alone?

    disks: all there are.
    """
    alone = [other.key for other in disks].count(disk.key) == 1
    return alone and not disk.read_only and disk.spec.kind != "null"


def kept_of(disks: Sequence[Disk]) -> list[Disk]:
    """Those of all disks that have a state file, where there are any."""
    return [disk for disk in disks if is_kept(disk, disks)]


class StateFiles:
    """The descriptors of the state files of a machine's disks, until guests are born with them.

    Opened before any disk is: a file that has its disk's lock is nobody else's to look at. Raises
    ConfigError.
    """

    def __init__(self, directory: str, disks: Sequence[Disk]) -> None:
        self._open: dict[int, dict[int, int]] = {}
        try:
            for disk in kept_of(disks) if directory else []:
                fd = open_state(directory, disk, size_there(disk) // SECTOR_SIZE)
                self._open.setdefault(disk.domid, {})[disk.number] = fd
        except ConfigError:
            self.close()
            raise

    def take(self, domid: int) -> dict[int, int]:
        """A guest's, by the number of its disk: the caller's from now on."""
        return self._open.pop(domid, {})

    def close(self) -> None:
        """Those that nobody has taken."""
        for domid in list(self._open):
            for fd in self.take(domid).values():
                os.close(fd)


def state_path(directory: str, disk: Disk) -> str:
    """Its state file's."""
    return os.path.join(directory, f"guest-{disk.domid}-{disk.vdev}.state")


def open_state(directory: str, disk: Disk, nr_sectors: int) -> int:
    """The descriptor of a disk's state file: made, if there is none or the disk is fresh, or gone
    on with. Raises ConfigError."""
    path = state_path(directory, disk)
    try:
        os.makedirs(directory, exist_ok=True)
        if is_fresh(disk) or not os.path.exists(path):
            _make(path, disk, nr_sectors)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _check(fd, path, disk, nr_sectors)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        why = error.strerror or str(error)
        raise ConfigError(f"verify-state: '{path}' cannot be used: {why}") from None
    return fd


def _header(disk: Disk, nr_sectors: int) -> np.ndarray:
    # Brings Numba, which `--help` needs not.
    from frontend.pattern import disk_name  # noqa: PLC0415
    from frontend.state_file import FORMAT, MAGIC, STATE_HEADER  # noqa: PLC0415

    header = np.zeros(1, STATE_HEADER)
    header["magic"], header["format"], header["nr_sectors"] = MAGIC, FORMAT, nr_sectors
    header["domid"], header["disk"], header["device"] = disk.domid, disk.number, disk.device
    header["name"] = disk_name(disk.domid, disk.number)
    what = disk.spec.what  # the place alone: a cache or a seed may be another one
    header["target"] = f"{what.kind}:{what.path_of(disk.domid) or what.name}".encode()
    return header


def _make(path: str, disk: Disk, nr_sectors: int) -> None:
    """Whole, with all its blocks, or not at all: a full file system would be the guest's SIGBUS."""
    from frontend.pattern import UNKNOWN  # noqa: PLC0415
    from frontend.state_file import HEADER_BYTES, VERSION_BYTES, state_bytes  # noqa: PLC0415

    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, state_bytes(nr_sectors))
        os.pwrite(fd, _header(disk, nr_sectors).tobytes(), 0)
        if not is_fresh(disk):
            end, unknown = HEADER_BYTES + VERSION_BYTES * nr_sectors, np.uint32(UNKNOWN).tobytes()
            for at in range(HEADER_BYTES, end, PIECE):
                os.pwrite(fd, unknown * (min(PIECE, end - at) // VERSION_BYTES), at)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)


def _check(fd: int, path: str, disk: Disk, nr_sectors: int) -> None:
    """Is it this disk's? Raises ConfigError."""
    from frontend.state_file import STATE_HEADER, state_bytes  # noqa: PLC0415

    wanted = _header(disk, nr_sectors)
    found = np.zeros(1, STATE_HEADER)
    data = os.pread(fd, STATE_HEADER.itemsize, 0)
    if len(data) == STATE_HEADER.itemsize:
        found = np.frombuffer(data, STATE_HEADER)
    for name in STATE_HEADER.names or ():
        if found[name][0] != wanted[name][0]:
            said, needed = shown(found[name][0].item()), shown(wanted[name][0].item())
            raise ConfigError(f"verify-state: '{path}' has the {name} {said}, and not {needed}")
    if os.fstat(fd).st_size != state_bytes(nr_sectors):
        raise ConfigError(f"verify-state: '{path}' is not as long as its {nr_sectors} sectors take")


class Verdict:
    """What was found on one disk: of sectors that were ever written and of which something is
    known, how many, of how many more than one version would do, and which are outside."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.checked = self.uncertain = self.outside = 0
        self.named: list[tuple[int, int, int, int]] = []

    def add(self, told: Any) -> None:
        """What a guest says of some more sectors. Raises ValueError if it is nonsense."""
        if not isinstance(told, dict) or not isinstance(told.get("named"), list):
            raise ValueError(f"the guest of {self.disk} answered nonsense")
        rows = [tuple(row) for row in told["named"] if isinstance(row, list) and len(row) == 4]
        counts = [told.get(name) for name in ("checked", "uncertain", "outside")]
        numbers = [
            number
            for number in (*counts, *(number for row in rows for number in row))
            if isinstance(number, int)
        ]
        if len(numbers) != 3 + 4 * len(told["named"]):
            raise ValueError(f"the guest of {self.disk} answered nonsense")
        self.checked += numbers[0]
        self.uncertain += numbers[1]
        self.outside += numbers[2]
        self.named += rows

    def lines(self, most: int = 5) -> list[str]:
        """For people: one line, and one for each of the first sectors that are outside."""
        said = [
            f"{self.disk}: {self.checked} sectors checked, {self.uncertain} of them uncertain,"
            f" {self.outside} outside of their bounds"
        ]
        for sector, found, flushed, issued in self.named[:most]:
            what = "no version of this sector" if found < 0 else f"version {found}"
            said.append(f"{self.disk}: sector {sector} holds {what}, not {flushed}..{issued}")
        return said
