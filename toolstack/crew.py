"""The guests of a machine, as the toolstack talks to them: asked, waited for, mourned.

Owns: what a guest's failure means: it is remembered, what the store still has of a dead one is
removed, and the others go on. And loads, each of which runs on some of those that live.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from common.control import DATA_MAX
from common.trace import TRACE
from common.xenstore import XenStoreClient
from toolstack.birth import ANSWER_TIMEOUT_S
from toolstack.disks import Disk
from toolstack.failures import GuestFailed, MachineError
from toolstack.jobs import Job, plan_of
from toolstack.supervisor import Supervisor
from toolstack.vbd_config import forget_domain

LOAD_GRACE_S: Final = 60.0
PIECE_BYTES: Final = DATA_MAX // TRACE.itemsize * TRACE.itemsize  # of a trace


class Crew:
    """`names`: the guests' by domid; failures: of those that failed or died, and how."""

    def __init__(self, supervisor: Supervisor, names: dict[int, str]) -> None:
        self._supervisor, self._names = supervisor, names
        self.store: XenStoreClient | None = None  # the toolstack's, once there is one
        self.failures: dict[str, str] = {}
        self._loads = itertools.count(1)
        self._running: list[RunningLoad] = []
        self._exported: set[Disk] = set()

    def living(self) -> list[str]:
        """The names of those that live."""
        return [name for name in self._names.values() if not self._is_dead(name)]

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Give guests the traces that they are to replay, in pieces. Raises MachineError."""
        living = self.living()
        for job in jobs:
            name, trace = self._names[job.disk.domid], job.spec.trace
            entries = b"" if trace is None or name not in living else trace.entries.tobytes()
            for at in range(0, len(entries), PIECE_BYTES):
                piece = entries[at : at + PIECE_BYTES]
                if not self.tell(name, "trace", job.disk.number, piece):
                    self.hear(name)

    def begin(self, jobs: Sequence[Job]) -> "RunningLoad":
        """Begin a load on all who live and have a job. Raises MachineError where a disk has one
        already, and then none has begun."""
        for load in self._running:
            if both := load.disks & {job.disk for job in jobs}:
                raise MachineError(f"{min(both, key=str)} has a load, and has one at a time")
        if both := self._exported & {job.disk for job in jobs}:
            raise MachineError(f"{min(both, key=str)} is exported, and has one user at a time")
        plans: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for job in jobs:
            of_guest = plans.setdefault(self._names[job.disk.domid], [])
            of_guest.append((job.disk.number, asdict(plan_of(job))))
        disks = {job.disk for job in jobs}
        ramp_s = max((job.spec.lead_s for job in jobs), default=0.0)
        number = next(self._loads)
        load = RunningLoad(self, self._supervisor, number, disks, ramp_s, _limit_s(jobs))
        self._running.append(load)
        load.begin({name: plans[name] for name in self.living() if name in plans})
        return load

    def reserve(self, disk: Disk) -> int:
        """A disk is to be exported; the number of that among loads. Raises MachineError if it is
        used."""
        if disk in self._exported:
            raise MachineError(f"{disk} is exported already, and has one user at a time")
        if any(disk in load.disks for load in self._running):
            raise MachineError(f"{disk} has a load, and has one user at a time")
        self._exported.add(disk)
        return next(self._loads)

    def release(self, disk: Disk) -> None:
        """It is exported no more."""
        self._exported.discard(disk)

    def forget(self, load: "RunningLoad") -> None:
        """It has ended."""
        if load in self._running:
            self._running.remove(load)

    def tell(self, name: str, *message: Any) -> str:
        """Send a guest a command; why that could not be done, if so."""
        try:
            self._supervisor.send(name, *message)
        except GuestFailed as error:
            self.mourn(name, str(error))
            return str(error)
        return ""

    def hear(self, name: str) -> str:
        """Wait for a guest's answer; why it has failed, if so."""
        try:
            self._supervisor.expect(name, ANSWER_TIMEOUT_S)
        except GuestFailed as error:
            self.mourn(name, str(error))
            return str(error)
        return ""

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


class RunningLoad:
    """A load from its begin to its end. running: those where it runs; failures: where it failed, or
    could not begin, and why; disks: that have it.
    """

    def __init__(
        self,
        crew: Crew,
        supervisor: Supervisor,
        number: int,
        disks: set[Disk],
        ramp_s: float,
        limit_s: float,
    ) -> None:
        self._crew, self._supervisor, self._number = crew, supervisor, number
        self.disks = disks
        began = time.monotonic()
        self._ramp_over_at, self._late_at = began + ramp_s, began + limit_s
        self.running: list[str] = []
        self.failures: list[str] = []

    def begin(self, plans: Mapping[str, list[tuple[int, dict[str, Any]]]]) -> None:
        """Begin on these guests, all at once."""
        for name, of_guest in plans.items():
            if why := self._crew.tell(name, "load", self._number, of_guest):
                self.failures.append(why)
            else:
                self.running.append(name)

    def look(self) -> bool:
        """See who has come to an end; have all?"""
        for name in list(self.running):
            why = self._supervisor.end_of_load(name, self._number)
            if why is not None:
                self.running.remove(name)
            if why:
                self.failures.append(why)
                self._crew.mourn(name, why)
        if not self.running:
            self._crew.forget(self)
        return not self.running

    @property
    def late(self) -> str:
        """Who has not come to an end in time, in words; "" if nobody."""
        late = self.running and time.monotonic() > self._late_at
        return f"the load of {', '.join(self.running)} does not end" if late else ""

    def pause_s(self, every_s: float) -> float:
        """How long until it is to be looked at next: after `every_s`, and when its ramp is over."""
        left_s = self._ramp_over_at - time.monotonic()
        return min(every_s, left_s) if left_s > 0 else every_s

    def wait(self, timeout_s: float) -> bool:
        """Let it run for so long, or to its end; has it ended? Raises MachineError for a death."""
        self._supervisor.wait(self.look, timeout_s, list(self.running))
        return self.look()

    def ask_to_stop(self) -> None:
        """Have it end now, where it runs; what is in flight is awaited. Raises MachineError."""
        for name in list(self.running):
            self._crew.tell(name, "stop", self._number)

    def stop(self) -> None:
        """Do so, and wait for it."""
        try:
            self.ask_to_stop()
            self.wait(ANSWER_TIMEOUT_S)
        except MachineError:
            self._crew.forget(self)  # something died: whoever closes the machine ends the others


def _limit_s(jobs: Sequence[Job]) -> float:
    """Seconds after which all must have ended."""
    lasting = (job.spec.lead_s + (job.spec.runtime_s or math.inf) for job in jobs)
    return max(lasting, default=0.0) + LOAD_GRACE_S
