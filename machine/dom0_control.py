"""What dom0 is asked by the toolstack, besides what the store says.

Owns: the commands on its control connection: begin, once; exit; store, touch-store and
forget-store, for the memory of ram disks, which comes as a descriptor; tree, for who looks in;
resize, once a store has another size.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from backend.stores import RamStores
from common.control import CommandError, CommandTable, Control, answer, carry_out

Kept = Callable[[int, int, int], list[bytes] | None]


class Dom0Control:
    """begin: follows the store; leave: lets go of every disk; kept: see `Connection.kept`, by domid
    and device; resize: likewise, and sectors."""

    def __init__(
        self,
        control: Control,
        rams: RamStores,
        begin: Callable[[], None],
        leave: Callable[[], None],
        kept: Kept,
        resize: Callable[[int, int, int], None],
    ) -> None:
        self._control, self._rams = control, rams
        self._commands: Final[dict[str, Callable[..., Any]]] = {
            "begin": begin,
            "exit": leave,
            "forget-store": rams.forget,
            "resize": resize,
            "touch-store": rams.touch,
            "tree": kept,
        }

    def obey(self) -> None:
        """Answer what has come."""
        message, descriptors = self._control.receive_with_descriptors()
        try:
            commands: CommandTable = {
                **self._commands,
                "store": partial(self._keep, descriptors),
            }
            if not carry_out(self._control, message, commands):
                answer(self._control, message, commands)
        finally:
            for fd in descriptors:
                os.close(fd)

    def _keep(self, descriptors: list[int], key: str) -> None:
        """A ram disk's memory, which has come with the message."""
        if len(descriptors) != 1:
            raise CommandError(f"store {key}: {len(descriptors)} descriptors are not one")
        try:
            self._rams.give(key, descriptors[0])
        except OSError as error:
            raise CommandError(str(error)) from error
        descriptors.clear()
