"""Disks of a machine that stays, served as NBD: sockets that its keeper makes and listens on.

Owns: an export's socket from its making to its end, and who asked for it. A client that connects is
accepted here and handed to the guest, which is sealed and makes no sockets; from then on it is the
guest's alone (`machine/guest_export.py`).
Rules
1. The socket's file goes when the export ends, whatever ends it: who asked for it, the guest, the
   machine, the keeper. For the last there is a note of it in the machine's directory, by which
   whoever removes that finds it (`toolstack/janitor.py`).
2. Who connects is the machine's own user (SO_PEERCRED), and nobody waits for it.
"""

import contextlib
import os
import select
import socket
from collections.abc import Callable
from typing import Any, Final

from common.control import one_line
from common.nbd_uri import SOCKET_PATH_MAX
from toolstack.client import Client
from toolstack.disks import Disk
from toolstack.failures import GuestFailed, MachineError
from toolstack.janitor import note_of, remove_noted
from toolstack.kept_machine import KeptMachine
from toolstack.loadspec import ConfigError
from toolstack.names import own_uid, peer_of

BACKLOG: Final = 16
OWN: Final = 0o177  # the mask of a socket that is its user's alone

OFFERED: Final = ("nr_bytes", "flags", "block")  # of what a guest says that it serves

Ask = Callable[..., None]


class Export:
    """A disk's, asked for by request `number` of `client`; as a guest's answers go to who asked,
    it takes the guest's."""

    def __init__(self, client: Client, number: int, disk: Disk, path: str, run_dir: str) -> None:
        self.client, self.number, self.disk, self.path = client, number, disk, path
        self.guest, self.id = f"guest-{disk.domid}", 0
        self.begun = self.stopping = False
        self.left = False  # nobody waits for its end any more
        self.refused: Exception | None = None
        self.listener, self._note = _listen(path, run_dir)

    def answer(self, _: int, offer: Any) -> None:
        """The guest serves it from now on."""
        told = {name: offer.get(name) for name in OFFERED} if isinstance(offer, dict) else {}
        if not told or not all(isinstance(value, int) for value in told.values()):
            self.refused = GuestFailed(f"{self.guest} answered nonsense for what it serves")
            return
        self.begun = True
        self.client.more(self.number, {"socket": self.path, **told})

    def refuse(self, _: int, error: Exception) -> None:
        """It does not."""
        self.refused = error

    def close(self) -> None:
        """Nobody can connect any more, and nothing is left of the socket."""
        self.listener.close()
        remove_noted(self._note)


def _listen(path: str, run_dir: str) -> tuple[socket.socket, str]:
    """A socket that listens at `path`, and the path of the note of it. Raises ConfigError."""
    mask, bound = os.umask(OWN), False
    listener = None
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        bound = True
        note = note_of(run_dir, path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
        return listener, note
    except OSError as error:
        if listener is not None:
            listener.close()
        if bound:
            os.unlink(path)
        raise ConfigError(f"socket: '{path}' cannot be made: {error.strerror}") from None
    finally:
        os.umask(mask)


class Exports:
    """Those of a keeper's machine."""

    def __init__(self, machine: KeptMachine) -> None:
        self._machine = machine
        self._exports: list[Export] = []

    def descriptors(self) -> list[int]:
        """What becomes readable when somebody connects."""
        return [export.listener.fileno() for export in self._exports if self._lets_in(export)]

    def _lets_in(self, export: Export) -> bool:
        """Who connects while its guest is paused waits in the socket."""
        return export.begun and not self._machine.is_paused(export.guest)

    def sockets(self) -> dict[Disk, str]:
        """The socket of each disk that is exported."""
        return {export.disk: export.path for export in self._exports}

    def begin(
        self, client: Client, number: int, domid: int, vdev: str, path: str, ask: Ask
    ) -> None:
        """Export a disk at `path`, or in the machine's directory if that is "". ask: see Keeper.
        Raises ConfigError, MachineError."""
        disk = self._disk(domid, vdev)
        path = path or os.path.join(self._machine.run_dir, f"nbd-{domid}-{disk.vdev}")
        if len(os.fsencode(path)) > SOCKET_PATH_MAX or not os.path.isabs(path) or "\0" in path:
            form = f"an absolute path of at most {SOCKET_PATH_MAX} bytes"
            raise ConfigError(f"socket: {one_line(path)!r} is not {form}")
        use = self._machine.reserve(disk)
        try:
            export = Export(client, number, disk, path, self._machine.run_dir)
        except ConfigError:
            self._machine.release(disk)
            raise
        self._exports.append(export)
        export.id = use
        try:
            ask(export, number, export.guest, "export", use, disk.number)
        except MachineError:
            self._end(export)
            raise

    def _disk(self, domid: int, vdev: str) -> Disk:
        disks = self._machine.topology.every_disk()
        for disk in disks:
            if (disk.domid, disk.vdev) == (domid, vdev):
                return disk
        there = ", ".join(f"{disk.domid}:{disk.vdev}" for disk in disks)
        place = f"{one_line(str(domid))}:{one_line(vdev)}"
        raise ConfigError(f"disk: {place} is none of this machine's: {there}")

    def accept(self, ready: set[int]) -> None:
        """Who has connected is handed to its guest. Raises MachineError."""
        for export in self._exports:
            if self._lets_in(export) and export.listener.fileno() in ready:
                self._hand_over(export)

    def _hand_over(self, export: Export) -> None:
        try:
            connection, _ = export.listener.accept()
        except OSError:  # it has gone again; or too many are there, and it waits
            return
        with connection:
            if peer_of(connection)[1] != own_uid() or export.stopping:
                return
            with contextlib.suppress(GuestFailed):  # whose end is seen by `look`
                fds = [connection.fileno()]
                self._machine.hand(export.guest, fds, "nbd", export.disk.number)

    def look(self) -> None:
        """See which have ended. Raises MachineError."""
        for export in list(self._exports):
            if export.refused is not None:
                self._end(export)
                export.client.refuse(export.number, export.refused)
            elif (why := self._machine.end_of_use(export.guest, export.id)) is not None:
                self._end(export)
                if export.left:
                    continue
                if why or not export.begun:
                    why = why or f"{export.disk}: its export has ended before it began"
                    export.client.refuse(export.number, GuestFailed(why))
                else:
                    export.client.answer(export.number, None)

    def stop(self, client: Client, number: int | None = None) -> None:
        """The one that a client's request began is to end, or all of a client that has gone."""
        for export in self._exports:
            if export.client is client and number in (None, export.number):
                self._stop(export)

    def _stop(self, export: Export) -> None:
        if not export.stopping:
            export.stopping = True
            with contextlib.suppress(GuestFailed):
                self._machine.tell(export.guest, "stop", export.id)
            if held := self._machine.held(export.guest):  # nobody waits for that
                why = f"{held}: the export ends once it goes on"
                export.client.refuse(export.number, MachineError(why))
                export.left = True

    def died(self, how: str) -> None:
        """The machine has."""
        for export in list(self._exports):
            self._end(export)
            export.client.refuse(export.number, MachineError(how))

    def close(self) -> None:
        """The machine goes down: nobody is let in any more, and what is exported ends with it."""
        for export in list(self._exports):
            with contextlib.suppress(MachineError):
                self._stop(export)
            self._end(export)
            if export.begun and not export.left:
                export.client.answer(export.number, None)
            elif not export.left:
                export.client.refuse(export.number, MachineError("the machine goes down"))

    def _end(self, export: Export) -> None:
        export.close()
        self._machine.release(export.disk)
        self._exports.remove(export)


def poll_on(poller: "select.poll", exports: Exports) -> None:
    """Have a poller look at them."""
    for fd in exports.descriptors():
        poller.register(fd, select.POLLIN)
