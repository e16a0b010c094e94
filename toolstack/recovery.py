"""What dom0's death means, by policy (`on_crash`, as `xl` has it): the machine's end, a dom0 that
is started again, or a machine that is left as it is.

Owns: the order in which another dom0 comes. Domain 0 itself lives, with the toolstack in it; what
must outlive its backend - the memory of ram disks - is the toolstack's (`toolstack/stores.py`).
1. The hypervisor lets go of what the dead one had: only then can a guest end access to its pages.
2. Another is forked, and is given the memory of ram disks before it may look at any disk.
3. Each disk is plugged in again, at once for both ends: the frontends let go of the old rings, take
   what was answered, and connect again; the rest is theirs (`frontend/recovery.py`).
"""

from collections.abc import Sequence
from typing import Final

from toolstack.birth import ANSWER_TIMEOUT_S, Builder
from toolstack.failures import MachineError
from toolstack.stores import Stores
from toolstack.supervisor import Supervisor
from toolstack.vbd_config import plug_all_again

TRIES_MAX: Final = 5  # whoever kills it may kill it again meanwhile


class Recovery:
    """on_crash: see Settings."""

    def __init__(
        self, builder: Builder, supervisor: Supervisor, stores: Stores, on_crash: str
    ) -> None:
        self._builder, self._supervisor, self._stores = builder, supervisor, stores
        self._on_crash = on_crash
        self._restarting = False

    def survives(self, names: Sequence[str]) -> bool:
        """dom0 is dead, and nothing else that the machine needs: does the machine survive that?
        names: who is waited for; guests live on what dom0 gives. Raises MachineError, and what its
        clients raise.
        """
        if self._on_crash == "preserve":
            return bool(names) and not any(n == "dom0" or n.startswith("guest-") for n in names)
        if self._on_crash != "restart" or self._restarting:
            return False
        self._restarting = True
        self._supervisor.log(f"{self._supervisor.death_of('dom0')}, and is started again")
        try:
            self._restart()
        except BaseException:
            self._on_crash = "destroy"  # what could not be done once is not tried again
            raise
        finally:
            self._restarting = False
        return True

    def start(self) -> None:
        """Start dom0, which has no disk yet. Raises MachineError."""
        self._builder.start_dom0()
        self._supervisor.expect("dom0", ANSWER_TIMEOUT_S)
        self._stores.give_again()
        self._supervisor.send("dom0", "begin")
        self._supervisor.expect("dom0", ANSWER_TIMEOUT_S)

    def _restart(self) -> None:
        for tries_left in reversed(range(TRIES_MAX)):
            self._builder.reset_dom0()
            try:
                self.start()
                break
            except MachineError:
                if not (tries_left and self._supervisor.death_of("dom0")):
                    raise
        plug_all_again(self._builder.store)
