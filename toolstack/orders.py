"""What takes a while and is not waited for: an order, and a look whether it is done.

Owns: the orders that a keeper has under way, and whose each is. An order whose client has gone is
seen to its end: it changes the machine, and not only what somebody is told.
"""

import logging
import time
from typing import Any, Final, Protocol

from common.hypercall import HypercallError
from common.xenstore import XenStoreError
from toolstack.client import Client
from toolstack.failures import MachineError
from toolstack.loadspec import ConfigError

EVERY_S: Final = 0.002  # between two looks
ORDERS_MAX: Final = 64  # at once
TOLD: Final = (ConfigError, MachineError, HypercallError, XenStoreError, OSError)


def unexpected(error: Exception) -> MachineError:
    """What is told of a fault of ours; the log has where it was."""
    logging.error("a request failed", exc_info=error)
    return MachineError(f"the keeper could not do it: {type(error).__name__}: {error}")


class Order(Protocol):
    """What it came to, once it is done, is its value."""

    @property
    def value(self) -> Any:
        """What is answered."""

    def look(self) -> bool:
        """Is it done? Raises MachineError, and what its clients raise, if it cannot be."""


class Orders:
    """Of one keeper."""

    def __init__(self) -> None:
        self._under_way: list[tuple[Client, int, Order]] = []
        self._next_s = 0.0

    def __len__(self) -> int:
        return len(self._under_way)

    def require_room(self) -> None:
        """Raises MachineError if there are as many as may be."""
        if len(self) >= ORDERS_MAX:
            raise MachineError(f"{ORDERS_MAX} orders are under way already: try again")

    def add(self, client: Client, number: int, order: Order) -> None:
        """It has begun: the client's request `number` is answered once it is done."""
        self._under_way.append((client, number, order))
        self._next_s = time.monotonic()

    def due_s(self) -> list[float]:
        """When there is something to look at."""
        return [self._next_s] if self._under_way else []

    def look(self) -> None:
        """Answer those that are done, or cannot be."""
        self._next_s = time.monotonic() + EVERY_S
        for each in list(self._under_way):
            client, number, order = each
            try:
                if not order.look():
                    continue
                client.answer(number, order.value)
            except TOLD as error:
                client.refuse(number, error)
            except Exception as error:  # a fault of ours is that order's, and not the machine's end
                client.refuse(number, unexpected(error))
            self._under_way.remove(each)

    def end(self, why: str) -> None:
        """None can be done any more."""
        for client, number, _ in self._under_way:
            client.refuse(number, MachineError(why))
        self._under_way.clear()
