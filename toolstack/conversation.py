"""What hypervisor and dom0 are asked and not waited for: a question goes out, an answer comes in.

Owns: how they are asked so, in an order of several questions: the answer has a kind of its own
("done") and cannot be taken for another. Rule: who does not answer in time is not asked again until
it has, so what is kept for it is bounded.
"""

import contextlib
import itertools
import time
from collections.abc import Generator, Mapping
from typing import Any, Final

from common.control import ControlLost
from toolstack.child import Child
from toolstack.failures import MachineError

TIMEOUT_S: Final = 20.0  # of an answer

# Who is asked, and what; None: to be looked at again in a while. The answer is sent in; a refusal,
# or a death, is thrown in as a MachineError.
Question = tuple[str, tuple[str | int, ...]] | None
Asking = Generator[Question, Any, Any]

_numbers = itertools.count(1)


class Conversation:
    """An order: what `asking` asks the machine's processes, `children`; value: what it returns."""

    def __init__(self, children: Mapping[str, Child], asking: Asking) -> None:
        self.value: Any = None
        self._children, self._asking = children, asking
        self._child: Child | None = None  # who is asked
        self._number, self._slot = 0, list[Any]()
        self._deadline = 0.0
        self._done = False

    def look(self) -> bool:
        """See Order."""
        again = True
        while again and not self._done:
            if self._child is None:
                self._go_on(None)
                again = self._child is not None
            elif self._slot:
                self._go_on(*self._slot.pop())
                again = self._child is not None
            elif self._child.death:
                self._go_on(None, self._child.death)
            elif time.monotonic() > self._deadline:
                self._child.orders[self._number] = None
                self._go_on(None, f"{self._child.name} did not answer within {TIMEOUT_S:g} s")
            else:
                again = False
        return self._done

    def _go_on(self, answer: Any, why: str = "") -> None:
        self._child = None
        try:
            question = self._asking.throw(MachineError(why)) if why else self._asking.send(answer)
        except StopIteration as end:
            self.value, self._done = end.value, True
            return
        if question is None:
            return
        child = self._child = self._children[question[0]]
        if None in child.orders.values():
            raise MachineError(f"{child.name} has not answered yet what it was asked before")
        self._number, self._slot = next(_numbers), []
        self._deadline = time.monotonic() + TIMEOUT_S
        child.orders[self._number] = self._slot
        with contextlib.suppress(ControlLost):  # its death is about to be seen
            if not child.death:
                child.control.send("order", self._number, *question[1])
