"""What a machine that stays can be asked about disks that come and go (docs/plug.md).

Owns: the requests attach_disk and detach_disk. Each is an order, and answered when it is done.
"""

from collections.abc import Callable
from typing import Final

from toolstack.client import Client
from toolstack.disks import DiskSpec
from toolstack.keeper import Keeper

Request = Callable[..., None]


def attach_disk(keeper: Keeper, client: Client, number: int, domid: int, disk: str) -> None:
    """Give a guest one more disk; answered when it is Connected: its vdev and size."""
    keeper.orders.require_room()
    keeper.orders.add(client, number, keeper.machine.begin_attach(domid, DiskSpec.of(disk)))


def detach_disk(
    keeper: Keeper, client: Client, number: int, domid: int, vdev: str, force: bool = False
) -> None:
    """Take a disk from a guest; answered when nothing of it is left."""
    keeper.orders.require_room()
    keeper.orders.add(client, number, keeper.machine.begin_detach(domid, vdev, bool(force)))


PLUG: Final[dict[str, Request]] = {"attach_disk": attach_disk, "detach_disk": detach_disk}
