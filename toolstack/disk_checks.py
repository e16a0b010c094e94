"""Are the files and servers there that disks are to lie on? Looked at before anything starts.

Owns: one line for what is not, as dom0 would have it in an `error` node later.
"""

from typing import Final

from backend.file_store import check_file
from backend.nbd_store import check_nbd
from common.faults import LocalFault
from toolstack.disks import Disk
from toolstack.loadspec import ConfigError
from toolstack.settings import Settings

LOOK_S: Final = 10.0  # at a server


def check_disks(machine: Settings) -> None:
    """Raises ConfigError."""
    for disk in machine.every_disk():
        try:
            _check(disk)
        except LocalFault as fault:
            raise ConfigError(f"disk: {disk}: {fault}") from fault


def _check(disk: Disk) -> None:
    target = disk.spec.what
    if target.kind == "file":
        check_file(target.path_of(disk.domid), disk.read_only, target.cache, target.sector_size)
    elif target.kind == "nbd":
        limit_s = min(target.timeout_s, LOOK_S)
        check_nbd(target.where, disk.read_only, target.sector_size, limit_s)
