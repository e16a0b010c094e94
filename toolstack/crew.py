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
from toolstack.hold import Hold
from toolstack.jobs import Job, plan_of
from toolstack.pausing import unpause
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
        self._exported: set[tuple[int, int]] = set()  # by domid and number

    def living(self) -> list[str]:
        """The names of those that live."""
        return [name for name in self._names.values() if not self._is_dead(name)]

    def unpause_all(self) -> None:
        """Let those go on that are paused: they are to leave."""
        for name in self.living():
            unpause(self._supervisor.children[name])

    def require_free(self, jobs: Sequence[Job], word: str) -> None:
        """Raises MachineError if a guest that has a job is paused or suspended."""
        for domid in {job.disk.domid for job in jobs}:
            self.require_told(domid, word)

    def require_told(self, domid: int, word: str) -> None:
        """Raises MachineError if a guest is paused or suspended, and may not be told this."""
        self._supervisor.children[self._names[domid]].hold.allow(word)

    def require_unused(self, jobs: Sequence[Job]) -> None:
        """Raises MachineError if a disk that has a job is exported."""
        if both := [job.disk for job in jobs if self.use_of(job.disk) == "is exported"]:
            raise MachineError(f"{min(both, key=str)} is exported, and has one user at a time")

    def prepare(self, jobs: Sequence[Job]) -> None:
        """Give guests the traces that they are to replay, in pieces. Raises MachineError."""
        self.require_free(jobs, "trace")
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
        self.require_free(jobs, "load")
        for load in list(self._running):
            both = [job.disk for job in jobs if (job.disk.domid, job.disk.number) in load.places]
            if both and not load.look():
                raise MachineError(f"{min(both, key=str)} has a load, and has one at a time")
        self.require_unused(jobs)
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

    def use_of(self, disk: Disk) -> str:
        """What somebody does with it now, in words; or ""."""
        place = disk.domid, disk.number
        if place in self._exported:
            return "is exported"
        return "has a load" if any(place in load.places for load in self._running) else ""

    def reserve(self, disk: Disk) -> int:
        """A disk is to be exported; the number of that among loads. Raises MachineError if it is
        used."""
        if use := self.use_of(disk):
            raise MachineError(f"{disk} {use}, and has one user at a time")
        self._exported.add((disk.domid, disk.number))
        return next(self._loads)

    def release(self, disk: Disk) -> None:
        """It is exported no more."""
        self._exported.discard((disk.domid, disk.number))

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
        self.places = {(disk.domid, disk.number) for disk in disks}
        self._ramp_over_at, self._limit_s = time.monotonic() + ramp_s, limit_s
        self._late_at: dict[str, float] = {}  # by each one's own clock
        self._stopping = False
        self.running: list[str] = []
        self.failures: list[str] = []

    def begin(self, plans: Mapping[str, list[tuple[int, dict[str, Any]]]]) -> None:
        """Begin on these guests, all at once."""
        for name, of_guest in plans.items():
            if why := self._crew.tell(name, "load", self._number, of_guest):
                self.failures.append(why)
            else:
                self.running.append(name)
                self._late_at[name] = self._hold(name).clock_s() + self._limit_s

    def _hold(self, name: str) -> Hold:
        return self._supervisor.children[name].hold

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
    def late(self) -> list[str]:
        """Who has not come to an end in time, by its own clock."""
        return [name for name in self.running if self._hold(name).clock_s() > self._late_at[name]]

    @property
    def held(self) -> str:
        """Why it cannot end now, in words; "" if it can."""
        holds = [hold for name in self.running if (hold := self._hold(name)).why]
        return ", ".join(hold.told() for hold in holds)

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
        if self._stopping:
            return
        self._stopping = True
        for name in list(self.running):
            self._crew.tell(name, "stop", self._number)

    def stop(self) -> None:
        """Do so, and wait for it; not for who is paused or suspended."""
        try:
            self.ask_to_stop()
            over = lambda: self.look() or all(self._hold(name).why for name in self.running)  # noqa: E731
            self._supervisor.wait(over, ANSWER_TIMEOUT_S, list(self.running))
        except MachineError:
            self._crew.forget(self)  # something died: whoever closes the machine ends the others


def _limit_s(jobs: Sequence[Job]) -> float:
    """Seconds after which all must have ended."""
    lasting = (job.spec.lead_s + (job.spec.runtime_s or math.inf) for job in jobs)
    return max(lasting, default=0.0) + LOAD_GRACE_S
