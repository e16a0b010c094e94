"""A running machine: one hypervisor, xenstored, one dom0, N guests, and what a user does with them.

Owns: the order in which a machine comes up and goes down, what a guest's death means to the others,
and the snapshots that set-up, run and tear-down are measured between. The processes themselves are
`toolstack/supervisor.py`'s, a domain's birth is `toolstack/birth.py`'s.
"""

import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from common.counters import BACKEND_COUNTERS
from common.hypercall import HypercallError
from common.machine_memory import backend_ring, host_of
from common.xenstore import XenStoreError
from toolstack.birth import ANSWER_TIMEOUT_S, Builder
from toolstack.cpu_time import CpuTime
from toolstack.crew import Crew
from toolstack.disk import GuestDisk
from toolstack.disks import Disk, device_of
from toolstack.failures import GuestFailed, MachineError
from toolstack.guest_stats import GuestStats
from toolstack.jobs import Job, jobs_on, load_of
from toolstack.latecomers import Latecomers
from toolstack.loadspec import LoadSpec
from toolstack.look import View, look
from toolstack.results import counters
from toolstack.settings import Settings
from toolstack.snapshot import Snapshot, host_tlb_shootdowns
from toolstack.stores import Stores
from toolstack.supervisor import Supervisor
from toolstack.vbd_config import plug_in, take_offline
from toolstack.verify_state import StateFiles, Verdict, kept_of

__all__ = ["Guest", "GuestFailed", "Machine", "MachineError"]

DISK_BYTES_MAX: Final = 1 << 60


class Guest:
    """One guest of a running machine: its `disks`, by number, and the first of them."""

    def __init__(self, machine: "Machine", domid: int, sizes: Sequence[int]) -> None:
        self.domid = domid
        self.disks = [
            GuestDisk(machine.ask, f"guest-{domid}", disk.number, size, disk.vdev)
            for disk, size in zip(machine.topology.disks_of(domid), sizes, strict=True)
        ]
        self.disk = self.disks[0]


class Machine:
    """Boot with `start`; a context manager that closes. See `Topology.start`."""

    def __init__(self, topology: Settings) -> None:
        self.topology = topology
        self.booted: Snapshot | None = None
        self.connected: Snapshot | None = None
        self.closed: Snapshot | None = None
        self.close_failure = ""
        self._supervisor = Supervisor(lambda line: print(f"grantlab: {line}", file=sys.stderr))
        self.run_dir = self._supervisor.run_dir
        self.xenstore_path = os.path.join(self.run_dir, "xenstored")
        self._domids = topology.domids
        self._disks = {domid: topology.disks_of(domid) for domid in self._domids}
        self._names = {domid: f"guest-{domid}" for domid in self._domids}
        self._stores = Stores(self._supervisor)
        self._crew = Crew(self._supervisor, self._names)
        self.failures = self._crew.failures
        self._guests: dict[int, Guest] = {}
        self._stats: dict[int, GuestStats] = {}
        self._cpu_time = CpuTime()
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
                    self._guests[domid] = Guest(self, domid, self._connected(domid, name))
                self.connected = self.snapshot()
        except BaseException:
            self._end()
            raise
        return self

    def _boot(self) -> None:
        topology, supervisor = self.topology, self._supervisor
        self._states = StateFiles(topology.verify_state, topology.every_disk())
        supervisor.await_fork_server()
        self._builder = Builder(topology, supervisor, self.xenstore_path)
        self._store, self._memory = self._builder.store, self._builder.memory
        self._crew.store = self._store
        self._latecomers = Latecomers(self._builder, supervisor, self._store, self._stores)
        descriptors = {}
        for domid, disks in self._disks.items():
            descriptors[domid] = self._builder.create_domain(domid, len(disks))
            self._stats[domid] = self._builder.stats(domid)
        self._builder.start_dom0()
        supervisor.expect("dom0", ANSWER_TIMEOUT_S)
        # Before there is any end of a disk: a guest that sees its backend announced connects at
        # once, and what that costs is set-up.
        self.booted = self.snapshot()
        for domid, disks in self._disks.items():
            self._stores.give(disks)
            plug_in(self._store, disks)
            states = self._states.take(domid)
            self._builder.start_guest(domid, self._names[domid], disks, descriptors[domid], states)
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

    def guest(self, domid: int) -> Guest:
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
        host = host_of(self._memory.segment("host"))[0]
        stats = {domid: self._stats[domid].read() for domid in self._domids}
        return Snapshot(
            at_s=time.monotonic(),
            frontend={d: stats[d].counters[: len(disks)] for d, disks in self._disks.items()},
            backend={d: self._backend(host, disks) for d, disks in self._disks.items()},
            hypervisor={d: host["hypervisor"][d : d + 1].copy() for d in self._domids},
            latency={d: stats[d].latency[: len(disks)] for d, disks in self._disks.items()},
            cpus=host["cpus"][: self.topology.dom0_vcpus].copy(),
            host_tlb_shootdowns=host_tlb_shootdowns(),
            cpu_seconds=self._cpu_time.seconds(self._supervisor.machine_pids()),
            suspects=frozenset(d for d in self._domids if self._stats[d].suspect),
        )

    @staticmethod
    def _backend(host: np.void, disks: Sequence[Disk]) -> np.ndarray:
        """What dom0 counts for a guest's disks; nothing for one it has not met yet."""
        nothing = np.zeros(1, BACKEND_COUNTERS)
        rings = [backend_ring(host, disk.domid, disk.device) for disk in disks]
        return np.concatenate([nothing if ring is None else ring for ring in rings])

    def counters(self) -> dict[str, Any]:
        """What has been counted since every disk was Connected, by the names of the results."""
        assert self.connected is not None
        return counters(self.connected, self.snapshot())

    # --- loads ------------------------------------------------------------------------------

    def load(
        self, load: LoadSpec | Sequence[LoadSpec], every_s: float = 0.5
    ) -> Generator[Snapshot, None, None]:
        """Run a load, or several on different disks, on all living guests at once; a snapshot every
        `every_s`, one at the end.

        Left early, it stops the guests' loads first. A guest that fails or dies does not stop the
        others: when they are done, GuestFailed names it. Raises ConfigError at once if it cannot
        run on these disks, and MachineError.
        """
        return self._load(jobs_on(load_of(load), self.topology.every_disk()), every_s)

    def _load(self, jobs: Sequence[Job], every_s: float) -> Generator[Snapshot, None, None]:
        with self._blamed():
            for job in jobs:
                if job.after is not None:
                    writer = self._guests[job.after.domid].disks[job.after.number]
                    reader = self._guests[job.disk.domid].disks[job.disk.number]
                    reader.expect(writer, job.after.domid)
            yield from self._crew.load(jobs, every_s, self.snapshot)

    def judge(self) -> list[Verdict]:
        """What each disk that has a state file holds, by that. Raises MachineError."""
        with self._blamed():
            disks = kept_of(self.topology.every_disk()) if self.topology.verify_state else []
            return [self._guests[disk.domid].disks[disk.number].judge(disk) for disk in disks]

    def look(self, domid: int, vdev: str = "xvda") -> View:
        """What lies in memory for a guest's disk now: see `toolstack/look.py`."""
        with self._blamed():
            return look(self._memory, self._store, self.ask, domid, device_of(vdev))

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
        for domid, name in self._names.items():
            if name in leaving:
                for disk in self._disks[domid]:
                    take_offline(self._store, domid, disk.device)
                if self._crew.tell(name, "disconnect"):
                    leaving.remove(name)
        leaving = [name for name in leaving if self._crew.hear(name)]
        self.closed = self.snapshot()
        for name in leaving:
            try:
                supervisor.dismiss(name)
            except GuestFailed as error:
                self._crew.mourn(name, str(error))
        self._store.close()
        for name in ("dom0", "xenstored", "hypervisor"):
            supervisor.dismiss(name)
