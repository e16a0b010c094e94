"""Are the files and servers there that disks are to lie on? Looked at before anything starts.

Owns: one line for what is not, as dom0 would have it in an `error` node later.
"""

from typing import Final

from common.faults import LocalFault
from toolstack.disks import Disk
from toolstack.loadspec import ConfigError
from toolstack.settings import Settings

LOOK_S: Final = 10.0  # at a server


def check_disks(machine: Settings) -> None:
    """Raises ConfigError."""
    for disk in machine.every_disk():
        size_there(disk)


def size_there(disk: Disk) -> int:
    """Bytes that a disk has. Raises ConfigError if it cannot be had."""
    target = disk.spec.what
    if target.nr_bytes:
        return target.nr_bytes
    # They bring Numba, which `--help` needs not.
    from backend.file_store import check_file  # noqa: PLC0415
    from backend.nbd_store import check_nbd  # noqa: PLC0415

    try:
        if target.kind == "file":
            path, direct = target.path_of(disk.domid), target.cache
            return check_file(path, disk.read_only, direct, target.sector_size)
        limit_s = min(target.timeout_s, LOOK_S)
        return check_nbd(target.where, disk.read_only, target.sector_size, limit_s)
    except LocalFault as fault:
        raise ConfigError(f"disk: {disk}: {fault}") from fault
