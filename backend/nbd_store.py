"""A disk that an NBD server keeps: asked over one connection, which is made again if it is lost.

Owns: when there is a connection, what a server must be to be this disk's, and what the log says.
What is asked over it is compiled (`backend/nbd_connection.py`).
Rules
1. Nothing waits but `open_nbd` and `check_nbd`: the thread that serves the ring polls.
2. A job is answered within `timeout_s`, whatever becomes of the connection. What was on its way
   when that was lost is sent again, once.
3. A server that comes back as another disk (size, flags) is not this disk's: it stays away.
"""

import logging
import select
import socket
import time
from contextlib import suppress
from typing import Final

import numpy as np

from backend.nbd_connection import (
    NBD_CONNECTION,
    connect,
    kernels,
    new_connection,
    no_jobs,
    reason_of,
    text_of,
)
from backend.nbd_dial import Address, Dial, addresses_of, dialled
from backend.nbd_negotiation import Export
from backend.slots import KINDS
from backend.store_jobs import CLOSE_S, Jobs
from backend.stores import Features
from common.abi import SECTOR_SIZE
from common.arena import Arena
from common.faults import LocalFault
from common.nbd_uri import parse_nbd_uri
from common.nbd_wire import (
    CMD_DISC,
    FLAG_READ_ONLY,
    FLAG_SEND_FLUSH,
    FLAG_SEND_TRIM,
    REQUEST,
    REQUEST_MAGIC,
)

RETRY_S: Final = 0.1  # doubled each time
RETRY_S_MAX: Final = 5.0
DIAL_S: Final = 5.0  # for one attempt to come back
OWN_FLAGS: Final = FLAG_READ_ONLY | FLAG_SEND_FLUSH | FLAG_SEND_TRIM
GOODBYE: Final = REQUEST.pack(REQUEST_MAGIC, 0, CMD_DISC, 0, 0, 0)
NS: Final = 1_000_000_000

log = logging.getLogger(__name__)


class NbdStore:
    """The disk `name` (its URI), over `sock`; of one thread from `attach` on."""

    memory: np.ndarray | None = None

    def __init__(
        self,
        name: str,
        addresses: list[Address],
        export_name: str,
        sock: socket.socket,
        export: Export,
        sector_size: int,
        read_only: bool,
        timeout_s: float,
    ) -> None:
        flush = bool(export.flags & FLAG_SEND_FLUSH)
        discard = bool(export.flags & FLAG_SEND_TRIM) and not read_only
        self.features = Features(flush, flush, discard, sector_size * discard)
        self.nr_sectors, self.sector_size = export.nr_bytes // SECTOR_SIZE, sector_size
        self._name, self._addresses, self._export_name = name, addresses, export_name
        self._export, self._socket = export, sock
        self._dial: Dial | None = None
        self._attempts, self._retry_s = 0, RETRY_S
        self._retry_ns = self._lost_ns = 0  # when to try again, since when it is lost
        self._connected_ns = time.monotonic_ns()
        self._begin, self._go_on, self._lose = kernels()
        self._rows = NBD_CONNECTION.rows(Arena(1 << 16), 1)
        self._c = new_connection(no_jobs())
        self._c.state["timeout_ns"] = int(timeout_s * NS)
        self._state = self._c.state[0]
        self._told = self._c.failures.copy()
        self._failed_told = 0
        self._refused = ""
        connect(self._c, sock.fileno(), export)
        self.attach(no_jobs())

    # --- LaterStore ---------------------------------------------------------------------------

    def attach(self, jobs: Jobs) -> None:
        """A ring is served from now on, whose jobs these are. None is at the store."""
        self._c = new_connection(jobs, self._c)
        NBD_CONNECTION.write(self._rows[0], self._c)

    def start(self, slots: np.ndarray) -> int:
        """Begin the jobs of `slots` (u32), in that order; how many are answered."""
        return self._heed(self._begin(self._rows, slots))

    def ready(self) -> int:
        """The descriptor is ready, or `due_ns` has come; how many are answered."""
        if not self._state["connected"]:
            self._come_back()
        return self._heed(self._go_on(self._rows))

    def fileno(self) -> int:
        """What to poll; -1 while there is nothing."""
        if self._state["connected"]:
            return self._socket.fileno()
        return self._dial.fileno() if self._dial else -1

    def events(self) -> int:
        """What to poll for."""
        if self._dial:
            return self._dial.events()
        state = self._state
        wants_out = state["out_to"] > state["out_from"]
        return select.POLLIN | select.POLLOUT if wants_out else select.POLLIN

    def due_ns(self) -> int | None:
        """When to call `ready` at the latest; None: never."""
        due_ns = int(self._state["deadline_ns"])
        if self._state["connected"]:
            return due_ns or None
        return min(due_ns or self._retry_ns, self._retry_ns)

    def closing(self) -> None:
        """No more jobs come: all there are are answered in time, at once if nobody hears them."""
        wait_ns = int(CLOSE_S * NS * 0.8) if self._state["connected"] else 0
        closing_ns = time.monotonic_ns() + wait_ns
        self._state["closing_ns"] = closing_ns
        slots = self._c.slots
        slots["due_ns"] = np.minimum(slots["due_ns"], closing_ns)
        if self._state["nr_active"]:
            self._state["deadline_ns"] = min(int(self._state["deadline_ns"]), closing_ns)

    def close(self) -> None:
        """Give up the connection, whose server is told if that does not wait."""
        self._tell_failures(at_the_end=True)
        if self._state["connected"] and self._state["out_to"] == self._state["out_from"]:
            with suppress(OSError):  # it is gone, or does not read
                self._socket.send(GOODBYE)
        self._state["connected"] = 0
        self._socket.close()
        if self._dial:
            self._dial.close()
            self._dial = None

    # --- the connection -----------------------------------------------------------------------

    def _heed(self, answered: int) -> int:
        """What a call has left in the state."""
        if self._state["lost"]:
            answered = self._let_go(reason_of(int(self._state["lost"])))
        if self._state["nr_failed"] != self._failed_told:
            self._failed_told = int(self._state["nr_failed"])
            self._tell_failures()
        return answered

    def _let_go(self, why: str) -> int:
        """The connection is lost. How many are answered."""
        answered = int(self._lose(self._rows))
        self._socket.close()
        self._lost_ns = time.monotonic_ns()
        if self._lost_ns - self._connected_ns > RETRY_S_MAX * NS:
            self._retry_s = RETRY_S
        waiting = int(self._state["nr_waiting"])
        log.warning("%s: connection lost (%s): %d requests wait", self._name, why, waiting)
        self._later()
        return answered

    def _later(self) -> None:
        self._retry_ns = time.monotonic_ns() + int(self._retry_s * NS)
        self._retry_s = min(2 * self._retry_s, RETRY_S_MAX)

    def _come_back(self) -> None:
        """The next step to a connection, if it is time for one."""
        try:
            if self._dial is None:
                if time.monotonic_ns() < self._retry_ns:
                    return
                address = self._addresses[self._attempts % len(self._addresses)]
                self._attempts += 1
                self._dial = Dial(address, self._export_name)
                self._retry_ns = time.monotonic_ns() + int(DIAL_S * NS)
            elif time.monotonic_ns() >= self._retry_ns:
                raise LocalFault(f"no answer within {DIAL_S:g} s")
            self._dial.go_on()
            if (export := self._dial.export) is not None:
                self._check_the_same(export)
                self._be_back(export)
        except (LocalFault, OSError) as fault:
            if isinstance(fault, LocalFault) and str(fault) != self._refused:
                self._refused = str(fault)
                log.warning("%s: cannot come back: %s", self._name, fault)
            if self._dial:
                self._dial.close()
                self._dial = None
            self._later()

    def _check_the_same(self, export: Export) -> None:
        was = self._export
        if export.nr_bytes != was.nr_bytes:
            raise LocalFault(f"the export has {export.nr_bytes} bytes, and not {was.nr_bytes}")
        if (export.flags ^ was.flags) & OWN_FLAGS or export.min_block > self.sector_size:
            raise LocalFault("the export can do other things than before (flags, block size)")

    def _be_back(self, export: Export) -> None:
        assert self._dial is not None
        self._socket, self._dial, self._refused = self._dial.take(), None, ""
        connect(self._c, self._socket.fileno(), export)
        self._connected_ns = time.monotonic_ns()
        away_s = (self._connected_ns - self._lost_ns) / NS
        waiting = int(self._state["nr_waiting"])
        log.warning("%s: back after %.1f s: %d requests waited", self._name, away_s, waiting)

    def _tell_failures(self, at_the_end: bool = False) -> None:
        """Each kind of error once, and again when there are ten times as many."""
        failures = self._c.failures
        for kind, code in np.argwhere(failures > self._told):
            count, told = int(failures[kind, code]), int(self._told[kind, code])
            if at_the_end or count >= 10 * told:
                self._told[kind, code] = count
                text = text_of(int(code))
                log.warning("%s: %s: %s (%d so far)", self._name, KINDS[kind], text, count)


def open_nbd(uri: str, read_only: bool, sector_size: int, timeout_s: float) -> NbdStore:
    """The disk there; waits for `timeout_s` at most. Raises LocalFault."""
    try:
        parsed = parse_nbd_uri(uri)
        give_up_ns = time.monotonic_ns() + int(timeout_s * NS)
        addresses = addresses_of(parsed, timeout_s)
        for address in addresses[:-1]:
            with suppress(OSError):  # the next one
                dial = dialled(address, parsed.name, give_up_ns)
                break
        else:
            dial = dialled(addresses[-1], parsed.name, give_up_ns)
        try:
            export = dial.export
            assert export is not None
            _check(export, read_only, sector_size)
        except LocalFault:
            dial.take().close()
            raise
    except (LocalFault, OSError, ValueError) as fault:
        raise LocalFault(
            str(fault) if isinstance(fault, ValueError) else f"{uri}: {_said(fault)}"
        ) from fault
    return NbdStore(
        uri, addresses, parsed.name, dial.take(), export, sector_size, read_only, timeout_s
    )


def check_nbd(uri: str, read_only: bool, sector_size: int, timeout_s: float) -> int:
    """Could it be opened? Its size in bytes. Raises LocalFault."""
    store = open_nbd(uri, read_only, sector_size, timeout_s)
    store.close()
    return store.nr_sectors * SECTOR_SIZE


def _said(fault: Exception) -> str:
    return (fault.strerror if isinstance(fault, OSError) else None) or str(fault)


def _check(export: Export, read_only: bool, sector_size: int) -> None:
    """Raises LocalFault if it cannot be such a disk."""
    if export.flags & FLAG_READ_ONLY and not read_only:
        raise LocalFault("the export is read-only: the disk needs access=ro")
    if export.min_block > sector_size:
        raise LocalFault(
            f"the server's blocks have {export.min_block} bytes: the disk needs sector-size="
            f"{export.min_block}, and has {sector_size}"
        )
    if export.nr_bytes == 0 or export.nr_bytes % sector_size:
        raise LocalFault(
            f"the export has {export.nr_bytes} bytes, which is no multiple of a sector's"
            f" {sector_size}"
        )
