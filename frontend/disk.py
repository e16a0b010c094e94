"""A virtual disk as its backend describes it in the store.

Owns: which keys say what of it, and what they may say. Sans-I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from common import abi, xenbus
from common.faults import PeerFault
from frontend.blkfront_info import NOT_SENT

INFO_MAX: Final = (1 << 32) - 1
SECTORS_MAX: Final = 1 << 54  # whose bytes a signed 64-bit offset reaches
SECTOR_SIZES: Final = (512, 1024, 2048, 4096)
_SIZES: Final = ", ".join(map(str, SECTOR_SIZES))
BYTES_MAX: Final = (1 << 32) - 1
FEATURES: Final = (
    "feature-flush-cache", "feature-barrier", "feature-discard", "discard-granularity",
    "discard-alignment", "discard-secure",
)  # fmt: skip
DISK_KEYS: Final = ("sectors", "sector-size", "info", "feature-persistent", *FEATURES)


@dataclass(frozen=True)
class Disk:
    """What the backend says of its disk when it is Connected.

    nr_sectors: of 512 bytes, whatever sector_size, the bytes that are moved at least, is;
    discard_granularity, discard_alignment: bytes, 0 where nothing is said.
    """

    nr_sectors: int
    sector_size: int
    backend_persistent: bool
    read_only: bool
    flush_cache: bool = False
    barrier: bool = False
    discard: bool = False
    discard_granularity: int = 0
    discard_alignment: int = 0
    discard_secure: bool = False

    def lacks(self, before: "Disk") -> str:
        """What it has not and must have, having been `before`; or ""."""
        if self.nr_sectors < before.nr_sectors:
            return f"the disk has {self.nr_sectors} sectors now, and had {before.nr_sectors}"
        if self.read_only and not before.read_only:
            return "the disk is read-only now, and was not"
        if self.sector_size > before.sector_size:
            return f"the disk has sectors of {self.sector_size} now, and had {before.sector_size}"
        return ""

    @property
    def flushes_as(self) -> int:
        """The operation that a flush is sent as."""
        if self.flush_cache:
            return abi.BLKIF_OP_FLUSH_DISKCACHE
        return abi.BLKIF_OP_WRITE_BARRIER if self.barrier else NOT_SENT


def disk_of(values: Mapping[str, bytes], path: str) -> Disk:
    """The disk of the backend whose directory is `path`. Raises PeerFault."""
    sectors = number_of(values, f"{path}/sectors", SECTORS_MAX)
    sector_size = number_of(values, f"{path}/sector-size", abi.XEN_PAGE_SIZE)
    if sector_size not in SECTOR_SIZES:
        raise PeerFault(f"{path}/sector-size is {sector_size}, and not one of {_SIZES}")
    if sectors % (sector_size // abi.SECTOR_SIZE):
        raise PeerFault(f"{path}/sectors is {sectors}, no whole sectors of {sector_size}")
    flush, barrier, discard, granularity, alignment, secure = (
        number_of(values, f"{path}/{name}", BYTES_MAX, 0) for name in FEATURES
    )
    kept = values.get(f"{path}/feature-persistent", b"").strip() == b"1"
    info = number_of(values, f"{path}/info", INFO_MAX)
    read_only = bool(info & abi.VDISK_READONLY)
    special = (bool(flush), bool(barrier), bool(discard), granularity, alignment, bool(secure))
    return Disk(sectors, sector_size, kept, read_only, *special)


def resized(disk: Disk, values: Mapping[str, bytes], path: str) -> Disk:
    """`disk` with the size that its backend announces now. What is no size is passed over, as
    Linux's blkfront does."""
    sectors = xenbus.parse_number(values.get(f"{path}/sectors"), SECTORS_MAX)
    if sectors is None or sectors % (disk.sector_size // abi.SECTOR_SIZE):
        return disk
    return replace(disk, nr_sectors=sectors)


def number_of(
    values: Mapping[str, bytes], path: str, maximum: int, missing: int | None = None
) -> int:
    """The number at `path`; `missing`, if that may be none. Raises PeerFault."""
    value = values.get(path)
    if value is None and missing is not None:
        return missing
    number = xenbus.parse_number(value, maximum)
    if number is None:
        raise PeerFault(f"{path} is {xenbus.shown(value)}, and no number up to {maximum}")
    return number
