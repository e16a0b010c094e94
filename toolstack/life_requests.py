"""What a machine that stays can be asked of a guest as a whole, and what lies in its memory.

Owns: the requests pause, unpause, suspend, resume, look and resize (docs/lives.md). Each is an
order, and answered when it is done: nobody waits for a guest here.
"""

from collections.abc import Callable
from typing import Final

from common.control import one_line
from toolstack.client import Client
from toolstack.keeper import Keeper
from toolstack.life import WORDS
from toolstack.loadspec import ConfigError

Request = Callable[..., None]


def _of_guest(word: str) -> Request:
    def order(keeper: Keeper, client: Client, number: int, domid: int) -> None:
        keeper.orders.require_room()
        if domid not in keeper.machine.topology.domids:
            raise ConfigError(f"guest: {one_line(str(domid))} is not one of this machine's")
        keeper.orders.add(client, number, keeper.machine.guest(domid).begin(word))

    return order


def look(keeper: Keeper, client: Client, number: int, domid: int, vdev: str) -> None:
    """What lies in memory for a disk: `toolstack/look.py`'s Raw."""
    keeper.orders.require_room()
    keeper.orders.add(client, number, keeper.machine.begin_look(domid, vdev))


def resize(keeper: Keeper, client: Client, number: int, domid: int, vdev: str, nbytes: int) -> None:
    """A disk is to have so many bytes."""
    keeper.orders.require_room()
    keeper.orders.add(client, number, keeper.machine.begin_resize(domid, vdev, nbytes))


LIFE: Final[dict[str, Request]] = {
    **{word: _of_guest(word) for word in WORDS},
    "look": look,
    "resize": resize,
}
