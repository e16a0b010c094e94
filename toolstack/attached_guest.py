"""A guest of a machine that another process holds, and what is done with it as a whole."""

from collections.abc import Callable, Sequence
from typing import Any

from toolstack.disk import Guest
from toolstack.disks import Disk


class AttachedGuest(Guest):
    """See `toolstack/life.py`'s LivingGuest. order: asks for one of its words, by domid."""

    def __init__(
        self,
        ask: Callable[..., Any],
        disks: Sequence[Disk],
        sizes: Sequence[int],
        order: Callable[[str, int], None],
    ) -> None:
        super().__init__(ask, disks, sizes)
        self._order = order

    def pause(self) -> None:
        """Its process does not run on return."""
        self._order("pause", self.domid)

    def unpause(self) -> None:
        """It goes on."""
        self._order("unpause", self.domid)

    def suspend(self) -> None:
        """Its disks are closed, and what is on their rings is kept. Raises MachineError."""
        self._order("suspend", self.domid)

    def resume(self) -> None:
        """All is granted and bound anew, and what was kept goes on. Raises MachineError."""
        self._order("resume", self.domid)
