"""A look into a machine's memory, not waited for: what is asked goes out, what comes is taken in.

Owns: how hypervisor and dom0 are asked, whose answer to a look has a kind of its own ("seen") and
cannot be taken for another. Rule: a look ends. Each table is asked for in ascending pieces; who
does not answer in time is not asked again until it has.
"""

import contextlib
import itertools
import time
from collections.abc import Mapping
from typing import Any, Final

from common.control import ControlLost
from common.machine_memory import MachineMemory
from common.xenstore import XenStoreClient
from toolstack.child import Child
from toolstack.failures import MachineError
from toolstack.look import asking

TIMEOUT_S: Final = 20.0  # of all of it

_numbers = itertools.count(1)


class Looking:
    """An order: to look at disk `device` of `domid`. value: a Raw, at its end.

    children: the machine's processes; store: the toolstack's. Raises MachineError where one cannot
    say what it has, and what clients raise.
    """

    def __init__(
        self,
        children: Mapping[str, Child],
        memory: MachineMemory,
        store: XenStoreClient,
        domid: int,
        device: int,
    ) -> None:
        self.value: Any = None
        self._children = children
        self._asking = asking(memory, store, domid, device)
        self._deadline = time.monotonic() + TIMEOUT_S
        self._asked: Child | None = None
        self._number, self._slot = 0, list[Any]()
        self._go_on(None)

    def look(self) -> bool:
        """See Order."""
        while self.value is None and (asked := self._asked) is not None:
            if self._slot:
                self._go_on(self._slot.pop())
            elif asked.death:
                self._require_dom0(asked)
                self._go_on(None)  # dom0 has no tree then
            elif time.monotonic() > self._deadline:
                asked.looks[self._number] = None
                raise MachineError(f"{asked.name} did not answer within {TIMEOUT_S:g} s")
            else:
                return False
        return True

    def _go_on(self, answer: Any) -> None:
        try:
            name, question = self._asking.send(answer)
        except StopIteration as end:
            self.value = end.value
            return
        child = self._asked = self._children[name]
        if None in child.looks.values():
            raise MachineError(f"{name} has not answered yet what it was asked before")
        self._number = next(_numbers)
        child.looks[self._number] = self._slot
        with contextlib.suppress(ControlLost):  # its death is about to be seen
            if not child.death:
                child.control.send("look", self._number, *question)

    @staticmethod
    def _require_dom0(dead: Child) -> None:
        """Raises MachineError for others: what only the hypervisor knows is not known any more."""
        if dead.name != "dom0":
            raise MachineError(dead.death)
