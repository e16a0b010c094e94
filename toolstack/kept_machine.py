"""A machine as its keeper has it: nothing here waits, for a guest least of all.

Owns: what `toolstack/machine.py` does by waiting, cut into an order and a look. And what is told of
a machine to who comes to it.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

from common.abi import SECTOR_SIZE
from common.control import one_line
from common.xenbus import STATE_NAMES, backend_path, parse_state
from common.xenstore import XenStoreError
from toolstack.conversation import Asking, Conversation
from toolstack.crew import RunningLoad
from toolstack.disks import Disk, device_of
from toolstack.failures import MachineError
from toolstack.hold import PAUSED
from toolstack.jobs import jobs_on
from toolstack.loadspec import VDEVS, ConfigError, LoadSpec
from toolstack.look import asking
from toolstack.pausing import letters
from toolstack.plugged_machine import Other, PluggedMachine
from toolstack.resizing import Resize, checked_size, sharing, with_disks, with_size
from toolstack.ring_fill import RingFills
from toolstack.run_dir import RunDir
from toolstack.settings import Settings
from toolstack.snapshot import Snapshot
from toolstack.trace_windows import TraceWindows


class KeptMachine(PluggedMachine):
    """Called `name`; see Machine."""

    def __init__(
        self, topology: Settings, name: str, log: Callable[[str], None], run_dir: RunDir
    ) -> None:
        super().__init__(topology, log, run_dir)
        self.name = name

    def descriptors(self) -> list[int]:
        """What becomes readable when there is something to `watch`."""
        return [*self._supervisor.descriptors(), self._store.fileno()]

    def watch(self) -> None:
        """Take in what has come; a guest that has died is mourned. Raises MachineError if the
        machine has."""
        with self._blamed():
            self._supervisor.check()
            self._crew.living()
            self.look_at_plugs()

    def listen(self) -> None:
        """Take in what comes of one that has died: what is left may be looked at."""
        self._supervisor.listen()

    def clock_s(self, guest: str) -> float:
        """A guest's own time: see Hold."""
        return self._supervisor.children[guest].hold.clock_s()

    def tell(self, guest: str, *message: Any) -> None:
        """Send a guest a command. Raises GuestFailed, MachineError."""
        self._supervisor.send(guest, *message)

    def is_paused(self, guest: str) -> bool:
        """Does its process not run?"""
        return PAUSED in self._supervisor.children[guest].hold.why

    def held(self, guest: str) -> str:
        """Why it does not go on, in words; "" if it does."""
        hold = self._supervisor.children[guest].hold
        return hold.told() if hold.why else ""

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
            self._crew.require_free(jobs, "load")
            self._crew.require_unused(jobs)
            for job in jobs:  # some guests are asked before it begins
                if job.after is not None or job.spec.trace is not None:
                    for disk in filter(None, (job.disk, job.after)):
                        if is_asked(self._names[disk.domid]):
                            raise MachineError(f"{disk} is in use: try again")
            self._prepare(jobs)
            return self._begin(jobs)

    def begin_look(self, domid: int, vdev: str) -> Conversation:
        """Begin to look at a disk. Raises ConfigError, and what its clients raise."""
        there = [disk.vdev for disk in self.topology.every_disk() if disk.domid == domid]
        if vdev not in there:
            raise ConfigError(f"look: {domid}:{one_line(vdev)} is no disk there is")
        asked = asking(self._memory, self._store, domid, device_of(vdev))
        return Conversation(self._supervisor.children, asked)

    def begin_resize(self, domid: int, vdev: str, size: object) -> Conversation:
        """Begin to give a disk so many bytes. Raises ConfigError, MachineError."""
        every = self.topology.every_disk()
        found = [disk for disk in every if (disk.domid, disk.vdev) == (domid, vdev)]
        if not found or self.topology.verify_state:
            why = "has a state file" if found else "is no disk there is"
            raise ConfigError(f"resize: {domid}:{one_line(vdev)} {why}")
        (disk,) = found
        nbytes = checked_size(disk, size)
        if disk.spec.kind == "ram" and not self._stores.keeps(disk):
            raise ConfigError(f"resize: {disk} was plugged in by hand: its memory is dom0's own")
        self._stores.check_room(disk, nbytes)
        disks = sharing(disk, every)
        self._require_still(disks)
        for each in disks:
            self._crew.require_told(each.domid, "resize")
            if (state := self._state(each)) != "Connected":
                raise MachineError(f"{each} is not Connected but {state}")
        before = self._guests[domid].numbered(disk.number).size
        note = partial(self._note_size, disks, nbytes)
        given = self._supervisor.children, self._store, self._stores
        resize = Resize(*given, disks, before, nbytes, note)
        places = {(each.domid, each.number) for each in disks}
        return Conversation(self._supervisor.children, self._resized(places, resize.asking()))

    def _require_still(self, disks: Sequence[Disk]) -> None:
        """Raises MachineError if any of their store is on its way, or being resized."""
        places = {(disk.domid, disk.vdev) for disk in disks}
        for plugging, disk in self._plugs:
            if plugging.place in places or (disk is not None and disk.key == disks[0].key):
                raise MachineError(f"{plugging} is on its way: try again")
        if self._resizing & {(disk.domid, disk.number) for disk in disks}:
            raise MachineError(f"{disks[0]} is being resized already")

    def _resized(self, places: set[tuple[int, int]], asking: Asking) -> Asking:
        self._resizing |= places
        try:
            return (yield from asking)
        finally:
            self._resizing -= places

    def _note_size(self, disks: Sequence[Disk], nbytes: int) -> None:
        changed = {(disk.domid, disk.number): with_size(disk, nbytes) for disk in disks}
        self.topology = with_disks(self.topology, changed)
        for domid, number in changed:
            self._disks[domid] = self.topology.disks_of(domid)
            if number in [disk.number for disk in self._disks[domid]]:
                self._guests[domid].numbered(number).size = nbytes

    def abandon(self) -> None:
        """Kill all of it: who closes it then has nobody to ask."""
        for child in self._supervisor.children.values():
            child.kill(f"{child.name} was killed: the machine is put down by force")

    def sizes(self) -> dict[int, list[int]]:
        """The bytes of each guest's disks."""
        return {domid: [disk.size for disk in guest.disks] for domid, guest in self._guests.items()}

    def disks(self, now: Snapshot, others: Iterable[Other]) -> list[dict[str, Any]]:
        """What is to be said of each disk, for people and for programs. others: see `follow`."""
        found = []
        for disk in self.topology.every_disk():
            front, back = now.frontend[disk.domid], now.backend[disk.domid]
            found.append(
                {
                    "domid": disk.domid,
                    "number": disk.number,
                    "vdev": disk.vdev,
                    "device": disk.device,
                    "target": disk.spec.params,
                    "access": disk.spec.access,
                    "size": self._guests[disk.domid].numbered(disk.number).size,
                    "state": self._state(disk),
                    "ring": self._fills.of(disk.domid, disk.device),
                    "grants_kept": int(back["persistent_now"][disk.number]),
                    "ios": int(front["ios"][disk.number]),
                    "at_s": now.at_s,
                }
            )
        return [*found, *(self._of_another(other, now) for other in others)]

    @staticmethod
    def _of_another(other: Other, now: Snapshot) -> dict[str, Any]:
        """What the store says of a disk that is not the machine's, or not yet."""
        sectors = other.values["sectors"]
        return {
            "domid": other.domid,
            "number": VDEVS.index(other.vdev),
            "vdev": other.vdev,
            "device": other.device,
            "target": other.values["params"],
            "access": "ro" if other.values["mode"] == "r" else "rw",
            "size": int(sectors) * SECTOR_SIZE if sectors.isdecimal() else 0,
            "state": STATE_NAMES[parse_state(other.values["state"].encode("latin-1"))],
            "ring": None,
            "grants_kept": 0,
            "ios": 0,
            "at_s": now.at_s,
        }

    @cached_property
    def _fills(self) -> RingFills:
        return RingFills(self._memory, self._store, self.ask)

    @cached_property
    def trace(self) -> TraceWindows:
        """Its logs while it is traced."""
        return TraceWindows(self._memory, list(self._domids), self.topology.dom0_vcpus)

    def domains(self, now: Snapshot) -> list[dict[str, Any]]:
        """What is to be said of each domain."""
        pids, failures = self.pids, self.failures
        return [
            {
                "domid": domid,
                "name": name,
                "pid": pids.get(name),
                "state": self._state_of(name),
                "letters": letters(self._supervisor.children[name]),
                "failure": failures.get(name, ""),
                "grants_mapped": int(now.hypervisor[domid]["grants_mapped"][0]),
            }
            for domid, name in self._names.items()
        ]

    def _state_of(self, guest: str) -> str:
        child = self._supervisor.children[guest]
        return "dead" if child.death else (child.hold.why or ["running"])[-1]

    def _state(self, disk: Disk) -> str:
        """Its backend's, as the store has it."""
        path = f"{backend_path(disk.domid, disk.device)}/state"
        try:
            return STATE_NAMES[parse_state(self._store.read(path))]
        except XenStoreError:
            return "gone"
