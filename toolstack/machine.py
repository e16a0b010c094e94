"""A running machine: one hypervisor, one dom0, N guests, and what a user does with them.

Owns: the order in which a machine comes up and goes down, and the snapshots that set-up, run and
tear-down are measured between. The processes themselves are `toolstack/supervisor.py`'s.
"""

import errno
import os
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import psutil

from backend import dom0
from backend.vbd import BackendOptions, bounce_frame_of
from common.abi import BLKIF_RING_SIZE, DOMID_0, HYPERVISOR_DOMCTL, XEN_PAGE_SIZE
from common.hypercall import (
    DOMCTL_CREATEDOMAIN,
    DOMCTL_DOMAIN,
    HypercallError,
    Hypercalls,
)
from common.machine_memory import MachineMemory, SegmentRefused, host_of, stats_of
from common.xenstore import XenStoreClient, XenStoreError
from frontend import guest
from frontend.load import LoadPlan
from frontend.vbd import BUFFER_FRAME
from hypervisor import broker
from toolstack.disk import GuestDisk
from toolstack.loadspec import LoadSpec
from toolstack.results import counters
from toolstack.snapshot import Snapshot, host_tlb_shootdowns
from toolstack.supervisor import MachineError, Supervisor
from toolstack.topology import Topology
from toolstack.vbd_config import XVDA, create_vbd, take_offline

__all__ = ["Guest", "Machine", "MachineError"]

GRANT_FRAMES: Final = 4  # Linux asks for this many at boot: 2,048 grefs
LOAD_GRACE_S: Final = 60.0
ANSWER_TIMEOUT_S: Final = 60.0
COMPILE_TIMEOUT_S: Final = 600.0


class Guest:
    """One guest of a running machine."""

    def __init__(self, machine: "Machine", domid: int) -> None:
        self.domid = domid
        self.disk = GuestDisk(machine.ask, f"guest-{domid}")


class Machine:
    """Boot with `start`; a context manager that closes. See `Topology.start`."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.booted: Snapshot | None = None
        self.connected: Snapshot | None = None
        self.closed: Snapshot | None = None
        self.close_failure = ""
        self._supervisor = Supervisor()
        self.run_dir = self._supervisor.run_dir
        self.xenstore_path = os.path.join(self.run_dir, "xenstored")
        self._domids = range(1, topology.guests + 1)
        self._names = [f"guest-{domid}" for domid in self._domids]
        self._guests: dict[int, Guest] = {}
        self._open = True

    def start(self) -> Self:
        """Bring every process up and every disk to Connected. Raises MachineError, all cleaned."""
        try:
            self._boot()
            for name in self._names:
                self._supervisor.send(name, "connect")
            for domid, name in zip(self._domids, self._names, strict=True):
                connected = self._supervisor.expect(name, ANSWER_TIMEOUT_S)
                self._guests[domid] = Guest(self, domid)
                self._guests[domid].disk.size = connected["size"]
            self.connected = self.snapshot()
        except (HypercallError, XenStoreError, SegmentRefused, OSError) as error:
            self._supervisor.close()
            raise MachineError(str(error)) from error
        except BaseException:
            self._supervisor.close()
            raise
        return self

    def _boot(self) -> None:
        topology, supervisor = self.topology, self._supervisor
        supervisor.start(
            "hypervisor",
            broker.main,
            broker.BrokerConfig(
                self.run_dir,
                supervisor.topology_id,
                self.xenstore_path,
                topology.dom0_vcpus,
                topology.flush_policy,
                bounce_frame_of(topology.guests + 1 if topology.grant_copy else 1),
            ),
        )
        supervisor.expect("hypervisor", COMPILE_TIMEOUT_S)
        self._hypercalls = Hypercalls(self.run_dir, DOMID_0)
        self._memory = MachineMemory(self.run_dir, DOMID_0)
        self._store = XenStoreClient(self.xenstore_path)
        for domid in self._domids:
            self._create_domain(domid)
            create_vbd(self._store, domid, topology.disk_mib)
        # Before there is any end of a disk: a guest that sees its backend announced connects at
        # once, and what that costs is set-up.
        self.booted = self.snapshot()
        supervisor.start(
            "dom0",
            dom0.main,
            dom0.Dom0Config(self.run_dir, self.xenstore_path, self._backend_options()),
        )
        for domid, name in zip(self._domids, self._names, strict=True):
            supervisor.start(name, guest.main, self._guest_config(domid))
        for name in ("dom0", *self._names):
            supervisor.expect(name, ANSWER_TIMEOUT_S)

    def _backend_options(self) -> BackendOptions:
        return BackendOptions(
            persistent=self.topology.backend_persistent,
            max_persistent_grants=self.topology.max_persistent_grants,
            gather_max=BLKIF_RING_SIZE if self.topology.batching == "drain" else 1,
            grant_copy=self.topology.grant_copy,
            adaptive_spin=self.topology.spin == "adaptive",
            nr_vcpus=self.topology.dom0_vcpus,
        )

    def _guest_config(self, domid: int) -> guest.GuestConfig:
        return guest.GuestConfig(
            self.run_dir,
            os.path.join(self.run_dir, f"xenstored-{domid}"),
            domid,
            XVDA,
            self.topology.persistent,
            self.topology.spin == "adaptive",
        )

    def _create_domain(self, domid: int) -> None:
        order = np.zeros(1, DOMCTL_DOMAIN)
        order["domid"], order["nr_vcpus"], order["grant_frames"] = domid, 1, GRANT_FRAMES
        buffer_frames = self.topology.buffer_mib * (1 << 20) // XEN_PAGE_SIZE
        order["ram_frames"] = BUFFER_FRAME + buffer_frames
        rc = self._hypercalls.call(HYPERVISOR_DOMCTL, DOMCTL_CREATEDOMAIN, order)
        if rc == -errno.ENOMEM:
            self._supervisor.expect("hypervisor", ANSWER_TIMEOUT_S)  # says which segment, and why
        if rc < 0:
            raise MachineError(f"domain {domid} cannot be created: {os.strerror(-rc)}")

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
        """Process ids by name: "hypervisor", "dom0", "guest-1", ..."""
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
        stats = {domid: stats_of(self._memory.segment("stats", domid)) for domid in self._domids}
        return Snapshot(
            at_s=time.monotonic(),
            frontend={domid: stats[domid]["counters"].copy() for domid in self._domids},
            backend={d: host["backend"][d : d + 1].copy() for d in self._domids},
            hypervisor={d: host["hypervisor"][d : d + 1].copy() for d in self._domids},
            latency={domid: stats[domid]["latency"][0].copy() for domid in self._domids},
            cpus=host["cpus"][: self.topology.dom0_vcpus].copy(),
            host_tlb_shootdowns=host_tlb_shootdowns(),
            cpu_seconds=self._cpu_seconds(),
        )

    def _cpu_seconds(self) -> float:
        total = 0.0
        for pid in self.pids.values():
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def counters(self) -> dict[str, Any]:
        """What has been counted since every disk was Connected, by the names of the results."""
        assert self.connected is not None
        return counters(self.connected, self.snapshot())

    def load(self, spec: LoadSpec, every_s: float = 0.5) -> Iterator[Snapshot]:
        """Run `spec` on every guest at once; yields a snapshot every `every_s`, and one at the end.

        Left early, it stops the guests' loads first. Raises MachineError.
        """
        for name, domid in zip(self._names, self._domids, strict=True):
            self._supervisor.send(name, "load", _plan(spec, domid))
        running = list(self._names)
        deadline = None if spec.runtime_s is None else spec.runtime_s + LOAD_GRACE_S
        started = time.monotonic()
        try:
            while running:
                next_at = time.monotonic() + every_s
                while running and (left := next_at - time.monotonic()) > 0:
                    for name in self._supervisor.answers(running, left):
                        self._supervisor.take(name)
                        running.remove(name)
                yield self.snapshot()
                if deadline is not None and time.monotonic() - started > deadline:
                    raise MachineError(f"the load of {', '.join(running)} does not end")
        finally:
            self._stop_loads(running)

    def _stop_loads(self, running: list[str]) -> None:
        for name in running:
            try:
                self._supervisor.send(name, "stop")
                self._supervisor.expect(name, ANSWER_TIMEOUT_S)  # the load's own answer
                self._supervisor.expect(name, ANSWER_TIMEOUT_S)
            except MachineError:
                return  # something died: whoever closes the machine ends the others

    def close(self) -> None:
        """Detach every disk, stop every process; `closed` is then what was counted to the end."""
        if not self._open:
            return
        self._open = False
        try:
            self._shut_down()
        except (MachineError, HypercallError, XenStoreError, OSError) as error:
            self.close_failure = str(error)  # who has died cannot be asked to leave
        finally:
            self._supervisor.close()

    def _shut_down(self) -> None:
        supervisor = self._supervisor
        for domid, name in zip(self._domids, self._names, strict=True):
            take_offline(self._store, domid)
            supervisor.send(name, "disconnect")
        for name in self._names:
            supervisor.expect(name, ANSWER_TIMEOUT_S)
        self.closed = self.snapshot()
        for name in (*self._names, "dom0", "hypervisor"):
            supervisor.send(name, "exit")
            supervisor.expect(name, ANSWER_TIMEOUT_S)
            if name != "hypervisor":
                supervisor.forget(name)
        self._store.close()
        self._hypercalls.close()
        supervisor.forget("hypervisor")


def _plan(spec: LoadSpec, domid: int) -> LoadPlan:
    """A guest's share of a load: the same shape, its own sequence of choices."""
    return LoadPlan(
        spec.rw,
        spec.bs,
        spec.iodepth,
        spec.rwmixread,
        spec.ios,
        spec.runtime_s,
        spec.seed + domid,
        spec.verify,
    )
