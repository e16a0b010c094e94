"""A machine that stays, for who comes to it: by the command line or in Python, in any process.

Owns: `up` and `attach`, and the machine as they give it: what `Topology.start` gives, but that to
close it is to leave it.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from common.control import ControlLost, control_pair
from toolstack.config import bytes_of
from toolstack.disk_checks import size_there
from toolstack.disks import Disk, DiskSpec
from toolstack.exported import Export
from toolstack.failures import GuestFailed, MachineError
from toolstack.jobs import jobs_on, load_of
from toolstack.loadspec import VDEVS, LoadSpec
from toolstack.names import DEFAULT, checked_name, connect_to, peer_of
from toolstack.programs import start_program
from toolstack.results import counters
from toolstack.snapshot import Snapshot
from toolstack.snapshot_wire import from_plain
from toolstack.topology import Topology, with_spare_disks
from toolstack.verify_state import Verdict, kept_of
from toolstack.wire import ERRORS, ConnectionLost, Requests

if TYPE_CHECKING:
    from toolstack.attached_guest import AttachedGuest
    from toolstack.disk import GuestDisk
    from toolstack.look import View

UP_TIMEOUT_S: Final = 900.0
END_TIMEOUT_S: Final = 60.0


def up(topology: Topology, name: str, say: Callable[[str], None]) -> None:
    """Start a machine that stays; every disk is Connected on return. say: told how it goes.

    Raises ConfigError, MachineError.
    """
    checked_name(name)
    topology = with_spare_disks(topology)
    topology.check_host()
    topology.check_disks()
    control, theirs = control_pair()
    module, silent = "toolstack.keeper_main", {"stderr": subprocess.DEVNULL}
    start_program(module, theirs.fileno(), **silent).wait()  # the keeper itself goes on
    theirs.close()
    try:
        control.send("order", name, topology.model_dump(mode="json", exclude_unset=True))
        while (message := control.receive(UP_TIMEOUT_S) or ["late"])[0] == "log":
            say(str(message[1]))
    except ControlLost:
        raise MachineError(f"machine {name!r}: its keeper ended while it started") from None
    finally:
        control.close()
    if message[0] == "error":
        raise ERRORS.get(message[1], MachineError)(message[2])
    if message[0] != "up":
        raise MachineError(f"machine {name!r} does not start within {UP_TIMEOUT_S:g} s")


def attach(name: str = DEFAULT, timeout_s: float | None = None) -> "AttachedMachine":
    """Come to the machine of that name. timeout_s: how long its keeper may take to answer what it
    is asked later. Raises ConfigError, MachineError if there is none."""
    return AttachedMachine(name, connect_to(name), timeout_s)


class AttachedMachine:
    """The machine `name`: see RunningMachine. A context manager that leaves it, and lets it stay.

    described: what the keeper says of it that does not change.
    """

    def __init__(
        self, name: str, connection: socket.socket, timeout_s: float | None = None
    ) -> None:
        self.name = name
        self._keeper_pid = peer_of(connection)[0]
        self._requests = Requests(connection)
        try:
            self.described: dict[str, Any] = self._requests.ask("describe")
        except ConnectionLost as error:
            self._requests.close()
            raise type(error)(f"machine {name!r}: {error}") from None
        connection.settimeout(timeout_s)
        self.topology = Topology(**self.described["topology"])
        self.run_dir: str = self.described["run_dir"]
        self.xenstore_path: str = self.described["xenstore_path"]
        self.closed: Snapshot | None = None
        self.close_failure = ""
        self._guests: dict[int, AttachedGuest] = {}

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
        return dict(self._requests.ask("describe")["pids"])

    @property
    def failures(self) -> dict[str, str]:
        """The guests that died or failed, and how."""
        return dict(self._requests.ask("describe")["failures"])

    @property
    def booted(self) -> Snapshot | None:
        """As it was when its processes were up."""
        return self._snapshot("booted")

    @property
    def connected(self) -> Snapshot | None:
        """As it was when every disk was Connected."""
        return self._snapshot("connected")

    def snapshot(self) -> Snapshot:
        """Every counter as it stands."""
        return self._snapshot("now")

    def _snapshot(self, which: str) -> Snapshot:
        return from_plain(self._requests.ask("snapshot", which))

    def status(self) -> dict[str, Any]:
        """Its domains and disks as they are now (docs/staying.md)."""
        return dict(self._requests.ask("status"))

    def open_trace(self, seconds: float) -> int:
        """Have its logs written for so long; until when (toolstack/trace_windows.py)."""
        return int(self._requests.ask("open_trace", seconds))

    def take_trace(self) -> dict[str, Any]:
        """What has been written to its logs since."""
        return dict(self._requests.ask("take_trace"))

    def counters(self) -> dict[str, Any]:
        """What has been counted since every disk was Connected, by the names of the results."""
        connected = self.connected
        assert connected is not None
        return counters(connected, self.snapshot())

    def guest(self, domid: int) -> "AttachedGuest":
        """The guest `domid`. Raises KeyError naming those that exist."""
        from toolstack.attached_guest import (  # noqa: PLC0415 - brings Numba: `ls` needs it not
            AttachedGuest,
        )

        self._refresh()
        sizes = dict(self.described["sizes"])
        if domid not in sizes:
            raise KeyError(f"guest {domid} is not one of 1..{self.topology.guests}")
        if domid not in self._guests:
            disks = self.topology.disks_of(domid)
            given = self._ask, domid, disks, sizes[domid]
            self._guests[domid] = AttachedGuest(*given, self.order)
        return self._guests[domid]

    def attach_disk(self, domid: int, disk: str | Mapping[str, Any] | DiskSpec) -> "GuestDisk":
        """See PluggedMachine.attach_disk."""
        spec = DiskSpec.of(disk)
        size_there(Disk(domid, 0, spec.vdev or "new disk", spec))
        vdev = self._requests.ask("attach_disk", domid, spec.text())["vdev"]
        return self.guest(domid).numbered(VDEVS.index(vdev))

    def detach_disk(self, domid: int, vdev: str, force: bool = False) -> None:
        """See PluggedMachine.detach_disk."""
        self._requests.ask("detach_disk", domid, vdev, force)

    def _refresh(self) -> None:
        """Disks come and go."""
        before, self.described = self.described, self._requests.ask("describe")
        if any(before[each] != self.described[each] for each in ("topology", "sizes")):
            self.topology = Topology(**self.described["topology"])
            self._guests.clear()

    def _ask(self, name: str, *message: Any) -> Any:
        return self._requests.ask("guest", int(name.removeprefix("guest-")), *message)

    def order(self, word: str, domid: int) -> None:
        """Pause, unpause, suspend or resume a guest: as its own methods do."""
        self._requests.ask(word, domid)

    def look(self, domid: int, vdev: str = "xvda") -> "View":
        """What lies in memory for a guest's disk now: see `toolstack/look.py`."""
        from toolstack.look import Raw, view_of  # noqa: PLC0415

        return view_of(Raw(*self._requests.ask("look", domid, vdev)))

    def resize(self, domid: int, vdev: str, size: int | str) -> None:
        """Give a disk another size: bytes, or as "32m". Its guest knows it on return, or a
        MachineError says that it does not take it."""
        nbytes, guest = bytes_of(size), self._guests.get(domid)
        self._requests.ask("resize", domid, vdev, nbytes)
        for disk in guest.disks if guest is not None else []:  # its user may have it for long
            if disk.number == VDEVS.index(vdev):
                disk.size = nbytes

    def load(
        self, load: LoadSpec | Sequence[LoadSpec], every_s: float = 0.5
    ) -> Generator[Snapshot, None, None]:
        """See Machine.load. Others' loads run meanwhile, and are in the snapshots."""
        spec = load_of(load)
        self._refresh()
        jobs_on(spec, self.topology.every_disk())  # refused here, before anybody is asked
        plain = spec.model_dump(mode="json", exclude_unset=True)
        number = self._requests.begin("load", plain, every_s)
        results, failed = self._requests.results(number), list[str]()
        ended = False
        try:
            for result in results:
                if isinstance(result, dict):
                    yield from_plain(result)
                else:
                    failed, ended = list(result), True
        except MachineError:
            ended = True
            raise
        finally:
            if not ended:
                with contextlib.suppress(MachineError):
                    self._requests.stop(number)
                    for _ in results:
                        pass
        if failed:
            raise GuestFailed("; ".join(failed))

    def export(self, domid: int, vdev: str = "xvda", socket: str = "") -> Export:
        """Serve a guest's disk as NBD at `socket`, or in the machine's directory: a context manager
        that ends it. Raises ConfigError, MachineError."""
        return Export(self._requests, domid, vdev, socket)

    def judge(self) -> list[Verdict]:
        """See Machine.judge."""
        disks = kept_of(self.topology.every_disk()) if self.topology.verify_state else []
        return [self.guest(disk.domid).numbered(disk.number).judge(disk) for disk in disks]

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Leave it; it stays, but for loads that were begun here. Idempotent."""
        self._requests.close()

    def down(self, force: bool = False) -> None:
        """Put it down: nothing is left of it on return. force: without asking any part of it.

        Raises MachineError if something of it could not be closed in order; it is gone even so.
        """
        keeper = os.pidfd_open(self._keeper_pid)
        try:
            answer = self._requests.ask("down", force)
            if answer["closed"] is not None:
                self.closed = from_plain(answer["closed"])
            self.close_failure = "" if force else answer["failure"]
        except ConnectionLost as error:
            self.close_failure = str(error)
        finally:
            self._requests.close()
            _await_end(keeper)
            os.close(keeper)
        if self.close_failure:
            raise MachineError(self.close_failure)


def _await_end(keeper: int) -> None:
    poller = select.poll()
    poller.register(keeper, select.POLLIN)
    if not poller.poll(END_TIMEOUT_S * 1000):
        signal.pidfd_send_signal(keeper, signal.SIGKILL)
        poller.poll(END_TIMEOUT_S * 1000)


def kill(name: str) -> None:
    """End a machine whose keeper does not answer: it, and with it all that it keeps. Raises
    ConfigError, MachineError if there is none."""
    with connect_to(name) as connection:
        pid = peer_of(connection)[0]
    keeper = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(keeper, signal.SIGKILL)
        _await_end(keeper)
    finally:
        os.close(keeper)
