"""The backend's xenbus driver of one virtual disk: the handshake's steps, as blkback takes them.

Owns: the store keys the backend writes, and when its connection begins and ends. `common/xenbus.py`
says when a step is due; what is connected is `backend/connection.py`'s. Runs in dom0's main thread.
Rules
1. Everything read from the frontend's directory is the guest's to write: it is parsed, and what
   does not parse closes this device with its reason in the store's `error` node, and nothing else.
2. The main thread waits for no ring: one that does not stop at once is left to say itself that it
   has, and the step that needs it is taken then.
3. A directory that was removed, or made again, while this device was in use has another disk in it,
   or none: this one disconnects, and is finished once its frontend has let go, too.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Final

from backend.connection import (
    BackendOptions,
    Connection,
    FrontendError,
    Place,
    Published,
    RingEnded,
    bounce_frame_of,
)
from backend.ring_thread import Vcpu
from backend.stores import Store
from common import abi, xenbus
from common.hypercall import Hypercalls
from common.machine_memory import MachineMemory
from common.xenbus import shown
from common.xenbus_writes import write_if_there
from common.xenstore import XenStoreClient

__all__ = ["BackendOptions", "BackendVbd", "RingEnded", "bounce_frame_of"]

log = logging.getLogger(__name__)

PROTOCOL: Final = b"x86_64-abi"
NO_PROTOCOL: Final = (  # what that means, on x86, to Linux's blkback
    "protocol x86_32-abi (no `protocol` key) is not served: only x86_64-abi"
)
NOT_LET_GO: Final = "the frontend has not let go of the disk that was here before"
STOP_WAIT_S: Final = 0.1  # an honest guest's ring stops in a fraction of that
U32_MAX: Final = 0xFFFFFFFF


class BackendVbd:
    """One virtual disk of dom0, from Initialising to Closed (and round again)."""

    def __init__(
        self,
        store: XenStoreClient,
        hypercalls: Hypercalls,
        memory: MachineMemory,
        run_dir: str,
        frontend_domid: int,
        device: int,
        disk: Store,
        vcpu: Vcpu,
        options: BackendOptions,
        report_end: Callable[[RingEnded], None],
    ) -> None:
        self._store, self._disk, self._options = store, disk, options
        self._place = Place(hypercalls, memory, run_dir, frontend_domid, device, vcpu)
        self._report_end = report_end
        self.path = xenbus.backend_path(frontend_domid, device)
        self.frontend_path = xenbus.frontend_path(frontend_domid, device)
        self.state = xenbus.INITIALISING
        self._connection: Connection | None = None
        self._failure = ""  # a fault of the frontend that this device has yet to be closed for
        self._gone = False  # the directory is another one now, or none
        self._let_go = False  # and the frontend is not connected any more
        self._watch = (f"{self.frontend_path}/state", f"{frontend_domid}/{device}")
        store.watch(*self._watch)

    @property
    def finished(self) -> bool:
        """Closed, and the toolstack wants it gone; or it is gone."""
        if self._gone:
            return self._let_go
        return self.state == xenbus.CLOSED and self._read(f"{self.path}/online") != b"1"

    def handle_store(self) -> bool:
        """Something may have changed: take the step that is due. True if there may be another."""
        self._gone = self._gone or self._is_another()
        if self._gone:
            self._leave()
            return False
        if self._failure:
            return self._fail()
        other = self._frontend_state()
        step = xenbus.next_step("backend", self.state, other)
        if step is None:
            return False
        try:
            if not getattr(self, step.action)():
                return False
        except FrontendError as error:
            self.fail(str(error))
            return True
        self._switch(step.state)
        return True

    def ring_ended(self, ended: RingEnded) -> None:
        """A ring's thread has ended. What an old connection reports is nothing to the new one."""
        if self._connection is None or self._connection.number != ended.number:
            return
        if ended.reason:
            self.fail(ended.reason)

    def fail(self, reason: str) -> None:
        """Close this device for a fault of its frontend, and say why where people look."""
        log.warning("vbd %d/%d: %s", self._place.domid, self._place.device, reason)
        self._failure = reason
        self._fail()

    def _fail(self) -> bool:
        if not self.disconnect():
            return False
        self._write({"error": self._failure})
        self._failure = ""
        self._switch(xenbus.CLOSING)
        return True

    def announce(self) -> bool:
        """What this backend could do, before it has seen the frontend."""
        return self._write(
            {
                "feature-max-indirect-segments": 0,
                "multi-queue-max-queues": 1,
                "max-ring-page-order": 0,
            }
        )

    def connect(self) -> bool:
        """Map the ring, bind the channel, announce the disk in one transaction, start serving."""
        published = self._published()
        self._connection = Connection(
            self._place, self._disk, self._options, published, self._report_end
        )
        announced = self._write(
            {
                "feature-flush-cache": 0,
                "feature-discard": 0,
                "feature-barrier": 0,
                "feature-persistent": int(self._options.persistent),
                "sectors": self._disk.nr_sectors,
                "info": 0,
                "sector-size": abi.SECTOR_SIZE,
                "physical-sector-size": abi.XEN_PAGE_SIZE,
            },
            gone=["error"],
        )
        if announced:
            self._connection.start()
        else:
            self.disconnect()
        return announced

    def disconnect(self) -> bool:
        """Stop the ring, unmap everything it kept, then the ring itself; False: not stopped yet."""
        if self._connection is not None:
            if not self._connection.has_ended(STOP_WAIT_S):
                return False
            self._connection.close()
            self._connection = None
        return True

    def stop_serving(self) -> None:
        """dom0 is going down: let the ring's thread end, without waiting for it."""
        if self._connection is not None:
            self._connection.ask_to_stop()

    def close(self) -> None:
        """dom0 forgets this device, and waits for its ring's thread to end, if there is one."""
        if self._connection is not None:
            self._connection.has_ended(None)
        self.disconnect()
        self._store.unwatch(*self._watch)
        self._disk.close()

    def _is_another(self) -> bool:
        """Has the directory been removed since this device began, or made again?"""
        written = self._read(f"{self.path}/state")
        if written is None:
            return True
        begins = xenbus.parse_state(written) == xenbus.INITIALISING
        return begins and self.state != xenbus.INITIALISING

    def _leave(self) -> None:
        """Let go of the disk that was here. What is here now is not begun before the frontend has
        let go, too: its Connected would be taken for the new disk's."""
        if not self.disconnect():
            return
        connected = (xenbus.INITIALISED, xenbus.CONNECTED)
        self._let_go = self._frontend_state() not in connected
        if not self._let_go:
            self._write({"error": NOT_LET_GO})

    def _published(self) -> Published:
        ring_ref, port = self._frontend_number("ring-ref"), self._frontend_number("event-channel")
        protocol = self._read(f"{self.frontend_path}/protocol")
        if protocol is None:
            raise FrontendError(NO_PROTOCOL)
        if protocol != PROTOCOL:
            raise FrontendError(f"protocol {shown(protocol)} is not '{PROTOCOL.decode()}'")
        frontend_keeps = self._read(f"{self.frontend_path}/feature-persistent") == b"1"
        return Published(ring_ref, port, self._options.persistent and frontend_keeps)

    def _frontend_number(self, key: str) -> int:
        value = self._read(f"{self.frontend_path}/{key}")
        number = xenbus.parse_number(value, U32_MAX)
        if number is None:
            raise FrontendError(f"{key} {shown(value)} is not a number")
        return number

    def _frontend_state(self) -> int:
        return xenbus.parse_state(self._read(f"{self.frontend_path}/state"))

    def _switch(self, state: int) -> None:
        self.state = state
        self._write({"state": state})

    def _write(self, values: dict[str, object], gone: Sequence[str] = ()) -> bool:
        """False where the directory has gone, which the next look finds, too."""
        return write_if_there(self._store, self.path, values, gone)

    def _read(self, path: str) -> bytes | None:
        return self._store.read_or_none(path)
