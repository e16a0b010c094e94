"""A running machine: one hypervisor, xenstored, one dom0, N guests, and what a user does with them.

Owns: the order in which a machine comes up and goes down, what a guest's death means to the others,
and the snapshots that set-up, run and tear-down are measured between. The processes themselves are
`toolstack/supervisor.py`'s, a domain's birth is `toolstack/birth.py`'s.
"""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

from common.hypercall import HypercallError
from common.xenstore import XenStoreError
from toolstack.birth import ANSWER_TIMEOUT_S, Builder
from toolstack.child import say_to_user
from toolstack.conversation import TIMEOUT_S, Conversation
from toolstack.crew import Crew, RunningLoad
from toolstack.disk import Guest
from toolstack.disks import device_of
from toolstack.failures import GuestFailed, MachineError
from toolstack.guest_stats import GuestStats
from toolstack.jobs import Job, jobs_on, load_of, region_of
from toolstack.latecomers import Latecomers
from toolstack.life import Life, LivingGuest
from toolstack.loadspec import LoadSpec
from toolstack.look import View, asking, view_of
from toolstack.recovery import Recovery
from toolstack.results import counters
from toolstack.run_dir import RunDir
from toolstack.settings import Settings
from toolstack.sight import Sight
from toolstack.snapshot import Snapshot
from toolstack.stores import Stores
from toolstack.supervisor import Supervisor
from toolstack.vbd_config import plug_in, take_offline
from toolstack.verify_state import StateFiles, Verdict, kept_of

__all__ = ["Guest", "GuestFailed", "Machine", "MachineError"]

DISK_BYTES_MAX: Final = 1 << 60


class Machine:
    """Boot with `start`; a context manager that closes. See `Topology.start`.

    log: takes what is to be told; run_dir: of one that has a name (`toolstack/keeper.py`).
    """

    def __init__(
        self,
        topology: Settings,
        log: Callable[[str], None] = say_to_user,
        run_dir: RunDir | None = None,
    ) -> None:
        self.topology = topology
        self.booted: Snapshot | None = None
        self.connected: Snapshot | None = None
        self.closed: Snapshot | None = None
        self.close_failure = ""
        self._supervisor = Supervisor(log, run_dir)
        self.run_dir = self._supervisor.run_dir
        self.xenstore_path = os.path.join(self.run_dir, "xenstored")
        self._domids = topology.domids
        self._disks = {domid: topology.disks_of(domid) for domid in self._domids}
        self._places = {domid: topology.places_of(domid) for domid in self._domids}
        self._names = {domid: f"guest-{domid}" for domid in self._domids}
        self._stores = Stores(self._supervisor)
        self._crew = Crew(self._supervisor, self._names)
        self.failures = self._crew.failures
        self._guests: dict[int, LivingGuest] = {}
        self._stats: dict[int, GuestStats] = {}
        self._states: StateFiles | None = None
        self._open = True

    def start(self) -> Self:
        """Bring every process up and every disk to Connected. Raises MachineError, all cleaned."""
        try:
            with self._blamed():
                self._boot()
                for name in self._names.values():
                    self._supervisor.send(name, "connect")
                for domid, name in self._names.items():
                    sizes = self._connected(domid, name)
                    self._guests[domid] = self._guest(domid, sizes)
                self.connected = self.snapshot()
        except BaseException:
            self._end()
            raise
        return self

    def _guest(self, domid: int, sizes: Sequence[int]) -> LivingGuest:
        disks, given = self._disks[domid], (self._supervisor, self._store, self._blamed)
        return LivingGuest(self.ask, domid, disks, sizes, Life(*given, domid, disks))

    def _boot(self) -> None:
        topology, supervisor = self.topology, self._supervisor
        self._states = StateFiles(topology.verify_state, topology.every_disk())
        supervisor.await_fork_server()
        self._builder = Builder(topology, supervisor, self.xenstore_path)
        self._store, self._memory = self._builder.store, self._builder.memory
        self._crew.store = self._store
        self._latecomers = Latecomers(self._builder, supervisor, self._store, self._stores)
        descriptors = {d: self._builder.create_domain(d, n) for d, n in self._places.items()}
        self._stats = {d: self._builder.stats(d, topology.rows_of(d)) for d in descriptors}
        recovery = Recovery(self._builder, supervisor, self._stores, topology.on_crash)
        recovery.start()
        supervisor.survives = recovery.survives
        self._sight = Sight(self._memory, topology, self._stats)
        # Before there is any end of a disk: a guest that sees its backend's connects at once.
        self.booted = self.snapshot()
        for domid, disks in self._disks.items():
            self._stores.give(disks)
            plug_in(self._store, disks)
            states = self._states.take(domid)
            given = domid, self._names[domid], disks, descriptors[domid], states
            self._builder.start_guest(*given, places=self._places[domid])
        for name in self._names.values():
            supervisor.expect(name, ANSWER_TIMEOUT_S)

    def _connected(self, domid: int, name: str) -> list[int]:
        """The sizes that a guest says its disks have."""
        answered = self._supervisor.expect(name, ANSWER_TIMEOUT_S)
        told = answered if isinstance(answered, list) else []
        sizes = [disk.get("size") for disk in told if isinstance(disk, dict)]
        sound = [size for size in sizes if isinstance(size, int) and 0 <= size <= DISK_BYTES_MAX]
        if len(sound) != len(self._disks[domid]) or sizes != sound:
            raise GuestFailed(f"{name} answered nonsense for the sizes of its disks")
        return sound

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """What fails because something of the machine has died is told as that death."""
        try:
            yield
        except (HypercallError, XenStoreError, OSError) as error:
            self._supervisor.blame()
            raise MachineError(str(error)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name: "fork server", "hypervisor", "xenstored", "dom0", "guest-1", ..."""
        return self._supervisor.pids()

    def guest(self, domid: int) -> LivingGuest:
        """The guest `domid`. Raises KeyError naming those that exist."""
        if domid not in self._guests:
            raise KeyError(f"guest {domid} is not one of 1..{self.topology.guests}")
        return self._guests[domid]

    def ask(self, name: str, *message: Any) -> Any:
        """Send a command to the process `name` and return its answer. Raises MachineError."""
        self._supervisor.send(name, *message)
        return self._supervisor.expect(name, ANSWER_TIMEOUT_S)

    def snapshot(self) -> Snapshot:
        """Every counter as it stands."""
        return self._sight.snapshot(self._supervisor.machine_pids())

    def counters(self) -> dict[str, Any]:
        """What has been counted since every disk was Connected, by the names of the results."""
        assert self.connected is not None
        return counters(self.connected, self.snapshot())

    # --- loads ------------------------------------------------------------------------------

    def load(
        self, load: LoadSpec | Sequence[LoadSpec], every_s: float = 0.5
    ) -> Generator[Snapshot, None, None]:
        """Run a load, or several on different disks, on all living guests at once; a snapshot every
        `every_s`, one when the ramp is over, one at the end. What a load needs, as the memory of
        its disks, is there when this returns.

        Left early, it stops the guests' loads first. A guest that fails or dies does not stop the
        others: when they are done, GuestFailed names it. Raises ConfigError at once if it cannot
        run on these disks, and MachineError.
        """
        jobs = jobs_on(load_of(load), self.topology.every_disk())
        with self._blamed():
            self._prepare(jobs)
        return self._load(jobs, every_s)

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """What jobs need is there when this returns."""
        self._stores.touch({job.disk: region_of(job) for job in jobs})
        self._crew.prepare(jobs)

    def _load(self, jobs: Sequence[Job], every_s: float) -> Generator[Snapshot, None, None]:
        with self._blamed():
            load = self._begin(jobs)
            try:
                ended = False
                while not ended:
                    ended = load.wait(load.pause_s(every_s))
                    yield self.snapshot()
                    if late := load.late:
                        raise MachineError(f"the load of {', '.join(late)} does not end")
            finally:
                load.stop()
            if load.failures:
                raise GuestFailed("; ".join(load.failures))

    def _begin(self, jobs: Sequence[Job]) -> RunningLoad:
        for job in jobs:
            if job.after is not None:
                writer = self._guests[job.after.domid].numbered(job.after.number)
                reader = self._guests[job.disk.domid].numbered(job.disk.number)
                reader.expect(writer, job.after.domid)
        return self._crew.begin(jobs)

    def judge(self) -> list[Verdict]:
        """What each disk that has a state file holds, by that. Raises MachineError."""
        with self._blamed():
            disks = kept_of(self.topology.every_disk()) if self.topology.verify_state else []
            return [self._guests[disk.domid].numbered(disk.number).judge(disk) for disk in disks]

    def look(self, domid: int, vdev: str = "xvda") -> View:
        """What lies in memory for a guest's disk now: see `toolstack/look.py`."""
        with self._blamed():
            asked = asking(self._memory, self._store, domid, device_of(vdev))
            looking = Conversation(self._supervisor.children, asked)
            self._supervisor.wait(looking.look, TIMEOUT_S, ["hypervisor"])
            return view_of(looking.value)

    def add_guest(self, domid: int, attack: str = "") -> None:
        """One more guest, with a ram disk: Connected on return, or a hostile one that is to
        `attack` (hostile/attacks.py). Loads and results do not know it. Raises MachineError.
        """
        with self._blamed():
            self._latecomers.add(domid, self.topology.disk_mib, attack)

    def remove_guest(self, domid: int) -> str:
        """End a guest that `add_guest` made; how it had died before, or ""."""
        with self._blamed():
            return self._latecomers.remove(domid)

    def death_of(self, domid: int) -> str:
        """How a guest that `add_guest` made died, as far as has been seen; "" while it lives."""
        return self._latecomers.death_of(domid)

    def stats_of(self, domid: int) -> GuestStats:
        """What a guest that `add_guest` made counts, as far as it is believed."""
        return self._latecomers.stats[domid]

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Detach every disk, stop every process; `closed` is then what was counted to the end."""
        if not self._open:
            return
        self._open = False
        try:
            with self._blamed():
                self._shut_down()
        except MachineError as error:
            self.close_failure = str(error)  # who has died cannot be asked to leave
        finally:
            self._end()

    def _end(self) -> None:
        self._supervisor.close()
        self._stores.close()
        if self._states is not None:
            self._states.close()

    def _shut_down(self) -> None:
        supervisor = self._supervisor
        supervisor.check()
        self._latecomers.remove_all()
        leaving = self._crew.living()
        self._crew.unpause_all()
        for domid, name in self._names.items():
            if name in leaving:
                for disk in self._disks[domid]:
                    take_offline(self._store, domid, disk.device)
                if self._crew.tell(name, "disconnect"):
                    leaving.remove(name)
        leaving = [name for name in leaving if not self._crew.hear(name)]
        self.closed = self.snapshot()
        for name in leaving:
            try:
                supervisor.dismiss(name)
            except GuestFailed as error:
                self._crew.mourn(name, str(error))
        self._store.close()
        for name in ("dom0", "xenstored", "hypervisor"):
            supervisor.dismiss(name)
