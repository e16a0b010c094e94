"""The guests of a machine, as the toolstack talks to them: asked, waited for, mourned.

Owns: what a guest's failure means: it is remembered, what the store still has of a dead one is
removed, and the others go on. And a load, which runs on all that live.
"""

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from typing import Any, Final

from common.xenstore import XenStoreClient
from toolstack.birth import ANSWER_TIMEOUT_S
from toolstack.failures import GuestFailed, MachineError
from toolstack.jobs import Job, plan_of
from toolstack.snapshot import Snapshot
from toolstack.supervisor import Supervisor
from toolstack.vbd_config import forget_domain

LOAD_GRACE_S: Final = 60.0


class Crew:
    """`names`: the guests' by domid; failures: of those that failed or died, and how."""

    def __init__(self, supervisor: Supervisor, names: dict[int, str]) -> None:
        self._supervisor, self._names = supervisor, names
        self.store: XenStoreClient | None = None  # the toolstack's, once there is one
        self.failures: dict[str, str] = {}

    def living(self) -> list[str]:
        """The names of those that live."""
        return [name for name in self._names.values() if not self._is_dead(name)]

    def load(
        self, jobs: Sequence[Job], every_s: float, snapshot: Callable[[], Snapshot]
    ) -> Generator[Snapshot, None, None]:
        """See Machine.load."""
        failed: list[str] = []
        plans: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for job in jobs:
            of_guest = plans.setdefault(self._names[job.disk.domid], [])
            of_guest.append((job.disk.number, asdict(plan_of(job))))
        running = [name for name in self.living() if name in plans]
        limit = _limit_s(jobs)
        started = time.monotonic()
        for name in list(running):
            if why := self.tell(name, "load", plans[name]):
                running.remove(name)
                failed.append(why)
        try:
            while running:
                self._await_loads(running, failed, every_s)
                yield snapshot()
                if time.monotonic() - started > limit:
                    raise MachineError(f"the load of {', '.join(running)} does not end")
        finally:
            self._stop_loads(running)
        if failed:
            raise GuestFailed("; ".join(failed))

    def _await_loads(self, running: list[str], failed: list[str], every_s: float) -> None:
        """Take the answers that come within `every_s`."""
        next_at = time.monotonic() + every_s
        while running and (left := next_at - time.monotonic()) > 0:
            for name in self._supervisor.answers(running, left):
                running.remove(name)
                try:
                    self._supervisor.take(name)
                except GuestFailed as error:
                    failed.append(str(error))
                    self.mourn(name, str(error))

    def tell(self, name: str, *message: Any) -> str:
        """Send a guest a command; why that could not be done, if so."""
        try:
            self._supervisor.send(name, *message)
        except GuestFailed as error:
            self.mourn(name, str(error))
            return str(error)
        return ""

    def hear(self, name: str) -> bool:
        """Wait for a guest's answer; False if it has failed."""
        try:
            self._supervisor.expect(name, ANSWER_TIMEOUT_S)
        except GuestFailed as error:
            self.mourn(name, str(error))
            return False
        return True

    def _is_dead(self, name: str) -> bool:
        """Has this guest died? The first time that is seen, its disk is taken away."""
        death = self._supervisor.death_of(name)
        if death:
            self.mourn(name, death)
        return bool(death)

    def mourn(self, name: str, failure: str) -> None:
        """A guest has failed. If it is dead, remove what the store still has of it, as `xl destroy`
        does; what was its own xenstored has removed."""
        if name not in self.failures:
            self.failures[name] = failure
        if self._supervisor.death_of(name):
            assert self.store is not None
            forget_domain(self.store, int(name.removeprefix("guest-")))

    def _stop_loads(self, running: list[str]) -> None:
        for name in running:
            try:
                if not self.tell(name, "stop"):
                    self.hear(name)  # the load's own answer, which may be an error
                    self.hear(name)
            except MachineError:
                return  # something died: whoever closes the machine ends the others


def _limit_s(jobs: Sequence[Job]) -> float:
    """Seconds after which all must have ended."""
    return max((job.spec.runtime_s or math.inf for job in jobs), default=0.0) + LOAD_GRACE_S
