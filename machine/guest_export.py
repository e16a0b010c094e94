"""A guest's disks as they are exported over NBD: clients let in, agreed with, and let go.

Owns: an export from its beginning to its end, and its connections' sockets, which the toolstack
accepts and hands over (a sealed guest makes none). Their I/O is `frontend/nbd_loop.py`'s, on the
turns of `driver`.
Rules: a client is not trusted. Who does not agree in time, or breaks the protocol, loses its
connection and nothing else. Beyond CONNECTIONS_MAX of a disk nobody is let in, but may wait a
moment for one of them to go.
"""

import contextlib
import select
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from common.arena import Arena
from common.faults import PeerFault
from frontend.driver import Driver
from frontend.load import Load
from frontend.nbd_export import (
    CONNECTIONS_MAX,
    FREE,
    LOST,
    PREFERRED_BYTES,
    Export,
    begin_connection,
    is_over,
    payload_max,
)
from frontend.nbd_greeting import PIPELINED_MAX, Greeting, Offer
from machine.guest_disk import GuestDisk

GREETING_S: Final = 10.0
ROOM_S: Final = 1.0  # of who finds too many there
PAUSED_S: Final = 2.0  # between two looks: a guest that runs looks each second
END_S: Final = 30.0  # of I/Os that are under way when an export ends
ARENA_BYTES: Final = 1 << 16


class _Newcomer:
    """A client that has not agreed yet."""

    def __init__(self, sock: socket.socket, greeting: Greeting) -> None:
        self.socket, self.greeting = sock, greeting
        self.late_at = time.monotonic() + GREETING_S


class _Exported:
    """A disk's export, asked for as `number`; sockets: by connection."""

    def __init__(self, number: int, disk: GuestDisk, export: Export, job: Load) -> None:
        self.number, self.disk, self.export, self.job = number, disk, export, job
        self.sockets: dict[int, socket.socket] = {}
        self.newcomers: dict[int, _Newcomer] = {}  # by descriptor
        self.waiting: list[tuple[socket.socket, float]] = []  # for room, and until when
        self.ending_by = 0.0
        self.why = ""

    def give(self, seconds: float) -> None:
        """Everybody has so much more time."""
        for newcomer in self.newcomers.values():
            newcomer.late_at += seconds
        self.waiting = [(sock, late_at + seconds) for sock, late_at in self.waiting]
        self.ending_by += seconds if self.ending_by else 0.0

    @property
    def offer(self) -> Offer:
        """What clients are told of it."""
        head = self.export.head[0]
        block = int(head["block"])
        sizes = block, max(block, PREFERRED_BYTES), payload_max(block)
        return Offer(int(head["nr_bytes"]), int(head["flags"]), *sizes)


class GuestExports:
    """Of a guest whose rings `driver` runs. pollers: what ends its sleeps."""

    def __init__(self, driver: Driver, *pollers: Any) -> None:
        self._driver, self._pollers = driver, pollers
        self._exports: dict[int, _Exported] = {}  # by disk
        self._looked_at = 0.0

    def __contains__(self, disk: GuestDisk) -> bool:
        """Is this disk exported?"""
        return disk.number in self._exports

    def begin(self, number: int, disk: GuestDisk) -> dict[str, Any]:
        """Export a disk, which nobody uses: what it is. Raises CommandError."""
        export, job = disk.export(Arena(ARENA_BYTES))
        self._driver.begin_export(disk.number, job, export)
        self._exports[disk.number] = _Exported(number, disk, export, job)
        return self._exports[disk.number].offer._asdict()

    def let_in(self, disk: int, fds: Sequence[int]) -> None:
        """Clients of a disk have connected; these descriptors are ours."""
        exported = self._exports.get(disk)
        for fd in fds:
            sock = socket.socket(fileno=fd)
            if exported is None or exported.ending_by or len(exported.waiting) == CONNECTIONS_MAX:
                sock.close()
            else:
                exported.waiting.append((sock, time.monotonic() + ROOM_S))
        self.look_after()

    def _greet_those_who_wait(self, exported: _Exported, now: float) -> None:
        """As far as there is room; somebody may just have gone. Who waits too long is sent away."""
        waiting, exported.waiting = exported.waiting, []
        for sock, late_at in waiting:
            if len(exported.newcomers) + len(exported.sockets) < CONNECTIONS_MAX:
                self._greet(exported, sock)
            elif now < late_at:
                exported.waiting.append((sock, late_at))
            else:
                sock.close()

    def _greet(self, exported: _Exported, sock: socket.socket) -> None:
        sock.setblocking(False)
        fd, greeting = sock.fileno(), Greeting(exported.offer)
        exported.newcomers[fd] = _Newcomer(sock, greeting)
        for poller in self._pollers:
            poller.register(fd, select.POLLIN)
        self._send(exported, fd, greeting.opening)

    def stop(self, number: int) -> None:
        """The export asked for as `number` is to end: what is under way is awaited."""
        for exported in self._exports.values():
            if exported.number == number and not exported.ending_by:
                self._end(exported)

    def _end(self, exported: _Exported, why: str = "") -> None:
        exported.ending_by, exported.why = time.monotonic() + END_S, why
        exported.job.load["stop"] = 1
        for fd in list(exported.newcomers):
            self._drop(exported, fd)
        for waiting, _ in exported.waiting:
            waiting.close()
        exported.waiting.clear()
        for sock in exported.sockets.values():
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        connections = exported.export.connections
        connections["state"][connections["state"] != FREE] = LOST
        self._driver.stir(exported.disk.number)

    # --- newcomers ----------------------------------------------------------------------------

    def look(self, ready: set[int]) -> None:
        """Descriptors are `ready`: those of newcomers have something to say."""
        for exported in list(self._exports.values()):
            for fd in list(ready & exported.newcomers.keys()):
                self._hear(exported, fd)

    def _hear(self, exported: _Exported, fd: int) -> None:
        newcomer = exported.newcomers[fd]
        try:
            received = newcomer.socket.recv(PIPELINED_MAX)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        try:
            answer = newcomer.greeting.take(received)
        except PeerFault:
            received = answer = b""
        if not received or not self._send(exported, fd, answer) or newcomer.greeting.over:
            self._drop(exported, fd)
        elif newcomer.greeting.agreed:
            self._agree(exported, fd)

    def _send(self, exported: _Exported, fd: int, data: bytes) -> bool:
        """A greeting's answers are few: who takes none of them is not waited for."""
        try:
            return exported.newcomers[fd].socket.send(data) == len(data) if data else True
        except OSError:
            return False

    def _agree(self, exported: _Exported, fd: int) -> None:
        newcomer = exported.newcomers.pop(fd)
        self._poll_no_more(fd)
        free = (at for at in range(CONNECTIONS_MAX) if at not in exported.sockets)
        number = next(free)
        exported.sockets[number] = newcomer.socket
        greeting = newcomer.greeting
        begin_connection(exported.export, number, fd, greeting.structured, greeting.rest)
        self._driver.add_connection(exported.disk.number, number, fd)

    def _drop(self, exported: _Exported, fd: int) -> None:
        self._poll_no_more(fd)
        exported.newcomers.pop(fd).socket.close()

    def _poll_no_more(self, fd: int) -> None:
        for poller in self._pollers:
            poller.unregister(fd)

    # --- what becomes of them -----------------------------------------------------------------

    def look_after(self) -> None:
        """Let go who has gone, or is late, and let in who waits."""
        now = time.monotonic()
        if now - self._looked_at > PAUSED_S:  # the guest did not run: that is nobody's lateness
            for exported in self._exports.values():
                exported.give(now - self._looked_at)
        self._looked_at = now
        for exported in list(self._exports.values()):
            for fd, newcomer in list(exported.newcomers.items()):
                if now > newcomer.late_at:
                    self._drop(exported, fd)
            for number in list(exported.sockets):
                if is_over(exported.export, number):
                    exported.sockets.pop(number).close()
                    exported.export.connections["state"][number] = FREE
            self._greet_those_who_wait(exported, now)

    def ended(self) -> Iterator[tuple[int, str | None]]:
        """Each export that has ended, once, and why it failed, or None."""
        for disk, exported in list(self._exports.items()):
            if not exported.ending_by and disk in self._driver.failed:
                self._end(exported, self._driver.failed[disk])
            runs = disk in self._driver.running
            if runs and exported.ending_by and not exported.disk.vbd.usable:
                exported.ending_by = time.monotonic() + END_S  # it waits for another ring
            if not exported.ending_by or (runs and time.monotonic() < exported.ending_by):
                continue
            exported.disk.tell_of_flushes()
            if runs:
                self._driver.fail(disk, "it does not come to an end")
                exported.disk.give_up("an export's I/Os are not answered")
                exported.why = "its I/Os are not answered"
            for sock in exported.sockets.values():
                sock.close()
            del self._exports[disk]
            self._driver.end_export(disk)
            told = str(exported.disk.told(exported.why)) if exported.why else None
            yield exported.number, told
