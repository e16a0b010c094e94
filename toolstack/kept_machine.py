"""A machine as its keeper has it: nothing here waits, for a guest least of all.

Owns: what `toolstack/machine.py` does by waiting, cut into an order and a look. And what is told of
a machine to who comes to it.
"""

from collections.abc import Callable
from typing import Any

from common.xenbus import STATE_NAMES, backend_path, parse_state
from common.xenstore import XenStoreError
from toolstack.crew import RunningLoad
from toolstack.disks import Disk
from toolstack.failures import MachineError
from toolstack.jobs import jobs_on
from toolstack.loadspec import LoadSpec
from toolstack.machine import Machine
from toolstack.run_dir import RunDir
from toolstack.settings import Settings
from toolstack.snapshot import Snapshot


class KeptMachine(Machine):
    """Called `name`; see Machine."""

    def __init__(
        self, topology: Settings, name: str, log: Callable[[str], None], run_dir: RunDir
    ) -> None:
        super().__init__(topology, log, run_dir)
        self.name = name

    def descriptors(self) -> list[int]:
        """What becomes readable when there is something to `watch`."""
        return self._supervisor.descriptors()

    def watch(self) -> None:
        """Take in what has come; a guest that has died is mourned. Raises MachineError if the
        machine has."""
        with self._blamed():
            self._supervisor.check()
            self._crew.living()

    def tell(self, guest: str, *message: Any) -> None:
        """Send a guest a command. Raises GuestFailed, MachineError."""
        self._supervisor.send(guest, *message)

    def hand(self, guest: str, descriptors: list[int], *message: Any) -> None:
        """Send a guest a message with descriptors, which stay ours. Raises GuestFailed,
        MachineError."""
        self._supervisor.send(guest, *message, descriptors=descriptors)

    def reserve(self, disk: Disk) -> int:
        """See Crew."""
        return self._crew.reserve(disk)

    def release(self, disk: Disk) -> None:
        """See Crew."""
        self._crew.release(disk)

    def end_of_use(self, guest: str, number: int) -> str | None:
        """See Supervisor.end_of_load, which that of an export is told as."""
        return self._supervisor.end_of_load(guest, number)

    def answer_of(self, guest: str) -> tuple[Any] | None:
        """What a guest has answered, if it has. Raises GuestFailed if that is an error, or none can
        come, and MachineError."""
        if not self._supervisor.has_answered(guest):
            return None
        return (self._supervisor.take(guest),)

    def give_up(self, guest: str, why: str) -> None:
        """End a guest that does not do what it must."""
        self._supervisor.children[guest].kill(why)

    def begin_load(self, load: LoadSpec, is_asked: Callable[[str], bool]) -> RunningLoad:
        """Begin a load. is_asked: has this guest something to answer? Raises ConfigError,
        MachineError."""
        with self._blamed():
            jobs = jobs_on(load, self.topology.every_disk())
            for job in jobs:  # some guests are asked before it begins
                if job.after is not None or job.spec.trace is not None:
                    for disk in filter(None, (job.disk, job.after)):
                        if is_asked(self._names[disk.domid]):
                            raise MachineError(f"{disk} is in use: try again")
            self._prepare(jobs)
            return self._begin(jobs)

    def abandon(self) -> None:
        """Kill all of it: who closes it then has nobody to ask."""
        for child in self._supervisor.children.values():
            child.kill(f"{child.name} was killed: the machine is put down by force")

    def sizes(self) -> dict[int, list[int]]:
        """The bytes of each guest's disks."""
        return {domid: [disk.size for disk in guest.disks] for domid, guest in self._guests.items()}

    def disks(self, now: Snapshot) -> list[dict[str, Any]]:
        """What is to be said of each disk, for people and for programs."""
        found = []
        for disk in self.topology.every_disk():
            front, back = now.frontend[disk.domid], now.backend[disk.domid]
            found.append(
                {
                    "domid": disk.domid,
                    "vdev": disk.vdev,
                    "device": disk.device,
                    "target": disk.spec.params,
                    "access": disk.spec.access,
                    "size": self._guests[disk.domid].disks[disk.number].size,
                    "state": self._state(disk),
                    "grants_kept": int(back["persistent_now"][disk.number]),
                    "ios": int(front["ios"][disk.number]),
                    "at_s": now.at_s,
                }
            )
        return found

    def domains(self, now: Snapshot) -> list[dict[str, Any]]:
        """What is to be said of each domain."""
        pids, failures = self.pids, self.failures
        return [
            {
                "domid": domid,
                "name": name,
                "pid": pids.get(name),
                "state": "running" if name in pids else "dead",
                "failure": failures.get(name, ""),
                "grants_mapped": int(now.hypervisor[domid]["grants_mapped"][0]),
            }
            for domid, name in self._names.items()
        ]

    def _state(self, disk: Disk) -> str:
        """Its backend's, as the store has it."""
        path = f"{backend_path(disk.domid, disk.device)}/state"
        try:
            return STATE_NAMES[parse_state(self._store.read(path))]
        except XenStoreError:
            return "gone"
