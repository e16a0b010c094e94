"""The frontend's xenbus driver of one virtual disk: the handshake's steps, as blkfront takes them.

Owns: the store keys the frontend writes, the ring's frame and its grant. `common/xenbus.py` says
when a step is due; how a driver is driven is in `common/handshake.py`. Sans-I/O.
Rules
1. What is read from the backend's directory is parsed; what does not parse closes this device, and
   says why in the frontend's `error` node.
2. A backend may be gone and another be there, who never was told of the ring: the device is
   suspended, with what has not been answered (`kept`), and connects again. So it is, too, if it
   waits for its ring to be mapped and finds itself announced as Initialising: whoever writes that
   has started the backend again.
3. The disk may come back able to do less, but not smaller than it was, read-only, or in larger
   sectors: who uses it counts on these.
4. A backend that is Connected, and says so again, may have another size: it is taken as it is, as
   Linux's blkfront takes it. What lies beyond is for who uses the disk to know.
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Final

import numpy as np

from common import abi, xenbus
from common.faults import LocalFault, PeerFault
from common.handshake import (
    Answer,
    Asked,
    Done,
    End,
    Fail,
    Intent,
    Leave,
    Op,
    Resume,
    Start,
    Stop,
    Suspend,
    Task,
    Timeout,
    Timer,
)
from frontend.blkfront import end_every_access
from frontend.blkfront_info import PER_REQUEST, PERSISTENT, REUSE, Blkfront, begin_ring
from frontend.disk import DISK_KEYS, Disk, disk_of, number_of, resized
from frontend.frames import Domain
from frontend.grants import NO_GREF, end_access, grant_access
from frontend.recovery import queue_again, take_answers

NR_IOS: Final = 256
RETRY_S: Final = 0.1  # between two tries to end access to what is still mapped
LATE_S: Final = 2.0  # from when on a backend that says why it does not begin is believed
THEIRS: Final = ("state", "error", *DISK_KEYS)
OURS: Final = ("backend-id", "state")
PUBLISHED: Final = (
    xenbus.INITIALISED,
    xenbus.INIT_WAIT,
)  # the ring is, and not seen yet


class FrontendVbd(End):
    """One virtual disk of a guest, from Initialising to Closed, or round again.

    dev, disk: from Initialised and Connected on; port: of our channel, 0 without one; kept: it is
    suspended, and its I/Os wait for another ring; stuck_grants: after closing, how many are still
    mapped and not ended yet.
    """

    role = "frontend"
    theirs, ours = THEIRS, OURS

    def __init__(
        self,
        domain: Domain,
        device: int,
        persistent: bool,
        backend_path: str,
        numbers: Iterator[int],
    ) -> None:
        super().__init__(xenbus.frontend_path(domain.domid, device), backend_path, numbers)
        self.name = xenbus.disk_name(device)
        self.dev: Blkfront | None = None
        self.disk: Disk | None = None
        self.port = 0
        self.serving = 0  # the Start that has not ended
        self.kept = False
        self.stuck_grants = 0
        self.closed_because = ""
        self._domain, self._device, self._persistent = domain, device, persistent
        self._ring_ref = NO_GREF
        self._timer, self._late = 0, 0
        self._fault = ""
        self._asked: Asked | None = None

    @property
    def finished(self) -> bool:
        """Closed for good, and every access ended."""
        return self.state == xenbus.CLOSED and not self.stuck_grants and not self.kept

    def heed(self, event: Asked | Timeout | Done) -> None:
        """The guest wants something; the backend broke the ring; time to try again."""
        if isinstance(event, Asked):
            self._asked = event
        elif isinstance(event, Timeout) and event.number == self._late:
            self._late = 0
            self.stir()
        elif isinstance(event, Done) and event.number == self.serving:
            self.serving, self._fault = 0, event.refused
        elif isinstance(event, Timeout) and event.number == self._timer:
            self._timer = 0
            if self.stuck_grants:  # else the disk may be in use again, and what it grants, too
                self._end_accesses()
            if self.kept and not self.stuck_grants:
                self.stir()  # its pages may be used again

    def urgent(self) -> Task | None:
        """Close, suspend or resume, if that is wanted here."""
        fault, asked, self._fault, self._asked = self._fault, self._asked, "", None
        if isinstance(asked, Leave):
            self.kept = False
        if self.state in (xenbus.CLOSING, xenbus.CLOSED):
            return self._resume() if isinstance(asked, Resume) and self.kept else None
        if isinstance(asked, Suspend):
            return self._begin_to_suspend()
        return self._begin_to_close(fault) if fault or isinstance(asked, Leave) else None

    def step(self, values: Mapping[str, bytes]) -> Generator[Intent, Answer, bool]:
        """Take the step that is due."""
        other = xenbus.parse_state(values.get(f"{self.other}/state"))
        if self.serving and self.disk and self.state == other == xenbus.CONNECTED:
            self.disk = resized(self.disk, values, self.other)
        step = self._due(other, values)
        if step is None or (self.stuck_grants and step.action == "publish_ring"):
            if self.stuck_grants:
                self._end_accesses()
            return False
        if step == xenbus.CLOSE and self.state != xenbus.CLOSING:
            self.kept = False
            self.closed_because = self._why(other, values.get(f"{self.other}/error"))
        since = self.state if step.state == xenbus.CONNECTED else None
        try:
            yield from getattr(self, step.action)(values)
            yield from self.switch(step.state, since)
        except (LocalFault, PeerFault) as fault:
            yield from self._begin_to_close(str(fault))
        return True

    def _due(self, other: int, values: Mapping[str, bytes]) -> xenbus.Step | None:
        announced = xenbus.parse_state(values.get(f"{self.path}/state"))
        if announced == xenbus.INITIALISING and (self.state, other) == PUBLISHED:
            return xenbus.SUSPEND
        if self.kept and self.state == xenbus.INITIALISING:
            if other == xenbus.UNKNOWN or (not self._late and f"{self.other}/error" in values):
                return xenbus.CLOSE  # nobody will come
            self._be_late()
        return xenbus.next_step(self.role, self.state, other)

    def _begin_to_suspend(self) -> Task:
        self.kept = True
        yield from self._stop()
        yield from self.switch(xenbus.CLOSING)
        self.stir()

    def _resume(self) -> Task:
        self._be_late()
        yield from self.switch(xenbus.INITIALISING)
        self.stir()

    def _begin_to_close(self, fault: str) -> Task:
        """`fault`: why, if it is not that the guest wants to."""
        self.kept = False
        if fault:
            self.closed_because = fault
            self.want(Fail(fault))
        yield from self.switch(xenbus.CLOSING, None, **({"error": fault} if fault else {}))
        self.stir()

    @staticmethod
    def _why(other: int, error: bytes | None) -> str:
        """Why this end closes, seeing the backend `other`."""
        if other == xenbus.UNKNOWN:
            return "its backend is gone"
        said = f" ({error.decode('latin-1')})" if error else ""
        return f"its backend is {xenbus.STATE_NAMES[other]}{said}"

    def in_flight(self) -> int:
        """How many I/Os are queued or on the ring."""
        if self.dev is None:
            return 0
        front, ios = self.dev.front[0], self.dev.ios
        queued = (int(front["queue_first"]) + np.arange(front["queued"])) % len(self.dev.queue)
        busy = ios["outstanding"] > 0
        busy[self.dev.queue[queued]] = True
        return int(busy.sum())

    def publish_ring(self, values: Mapping[str, bytes]) -> Task:
        """Grant the ring, allocate the channel, and tell the backend of both in one transaction."""
        backend = number_of(values, f"{self.path}/backend-id", abi.DOMID_FIRST_RESERVED - 1)
        if self.dev is None:
            self.dev = self._domain.build(backend, self._device)
        else:
            begin_ring(self.dev, backend)
        self._ring_ref = int(
            grant_access(self.dev.grants, backend, self._domain.frames.ring, False)
        )
        if self._ring_ref == NO_GREF:
            raise LocalFault(f"{self.path}: no grant entry is free for the ring")
        allocated = yield from self.call(Op.ALLOC_UNBOUND, backend)
        if allocated.refused:
            raise LocalFault(allocated.refused)
        self.port = self.dev.events.port[0] = allocated.value
        yield from self.write(
            {
                "ring-ref": self._ring_ref,
                "event-channel": self.port,
                "protocol": "x86_64-abi",
                "feature-persistent": int(self._persistent),
            }
        )

    def read_disk(self, values: Mapping[str, bytes]) -> Task:
        """The backend is Connected: learn its disk, and settle how grants are used."""
        assert self.dev is not None
        disk = disk_of(values, self.other)
        if self.kept and self.disk is not None and (less := disk.lacks(self.disk)):
            raise PeerFault(f"{self.other}: {less}")
        self.disk, self.kept = disk, False
        front = self.dev.front
        front["grant_mode"] = PER_REQUEST
        if self._persistent:
            front["grant_mode"] = PERSISTENT if disk.backend_persistent else REUSE
        front["flushes_as"], front["discards"] = disk.flushes_as, disk.discard
        self.serving = self.number()
        self.want(Start(self.serving, disk.backend_persistent))
        yield from ()

    def close(self, _: Mapping[str, bytes]) -> Task:
        """Use the disk no more: give the channel up, and end every access that can be ended.

        Whose backend was told to close by its toolstack still has pages mapped now, and unmaps them
        when it sees this end Closed: what is refused here is tried again (Linux: by a timer).
        """
        yield from self._stop()
        connected = self.port and self.dev is not None
        if self.port:
            yield from self.call(Op.CLOSE, self.port)
            self.port = 0
        if connected and self.kept:
            assert self.dev is not None
            if broken := take_answers(self.dev):
                raise PeerFault(broken)
            queue_again(self.dev)
        if not self.kept:
            self.disk = None
        self._end_accesses()

    def suspend(self, values: Mapping[str, bytes]) -> Task:
        """The backend is gone, and all that it had mapped: the same, for its successor."""
        self.kept = True
        self._be_late()
        yield from self.close(values)

    def _be_late(self) -> None:
        """Look again after a while: a backend says why it cannot begin, and changes no state."""
        if not self._late:
            self._late = self.number()
            self.want(Timer(self._late, LATE_S))

    def _stop(self) -> Task:
        if self.serving:
            yield Stop(self.serving)
            self.serving = 0

    def _end_accesses(self) -> None:
        """End what access is left; what is refused is tried again after a while."""
        self.stuck_grants = 0
        if self.dev is not None:
            self.stuck_grants = end_every_access(self.dev)
            if self._ring_ref != NO_GREF:
                if end_access(self.dev.grants, self._ring_ref):
                    self._ring_ref = NO_GREF
                else:
                    self.stuck_grants += 1
        if self.stuck_grants and not self._timer:
            self._timer = self.number()
            self.want(Timer(self._timer, RETRY_S))

    def buffers(self) -> np.ndarray:
        """The guest RAM that I/O buffers lie in, u8, from frame `first_buffer` on."""
        first, end = (frame * abi.XEN_PAGE_SIZE for frame in self._domain.frames[2:])
        return self._domain.ram[first:end]

    @property
    def first_buffer(self) -> int:
        """The first guest frame of its I/O buffers."""
        return self._domain.frames.buffers
