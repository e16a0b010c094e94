"""The frontend's xenbus driver of one virtual disk: the handshake's steps, as blkfront takes them.

Owns: the store keys the frontend writes, the ring's frame and its grant. `common/xenbus.py` says
when a step is due; how a driver is driven is in `common/handshake.py`. Sans-I/O.
Rule: what is read from the backend's directory is parsed; what does not parse closes this device,
and says why in the frontend's `error` node.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from common import abi, xenbus
from common.faults import LocalFault, PeerFault
from common.handshake import (
    Answer,
    Done,
    End,
    Fail,
    Intent,
    Leave,
    Op,
    Start,
    Stop,
    Task,
    Timeout,
    Timer,
)
from frontend.blkfront import end_every_access
from frontend.blkfront_info import NOT_SENT, PER_REQUEST, PERSISTENT, REUSE, Blkfront
from frontend.frames import DiskFrames
from frontend.grants import NO_GREF, end_access, grant_access

NR_IOS: Final = 256
RETRY_S: Final = 0.1  # between two tries to end access to what is still mapped
INFO_MAX: Final = (1 << 32) - 1
SECTORS_MAX: Final = 1 << 54  # whose bytes a signed 64-bit offset reaches
SECTOR_SIZES: Final = (512, 1024, 2048, 4096)
_SIZES: Final = ", ".join(map(str, SECTOR_SIZES))
BYTES_MAX: Final = (1 << 32) - 1
FEATURES: Final = (
    "feature-flush-cache", "feature-barrier", "feature-discard", "discard-granularity",
    "discard-alignment", "discard-secure",
)  # fmt: skip
THEIRS: Final = (
    "state", "sectors", "sector-size", "info", "feature-persistent", "error", *FEATURES
)  # fmt: skip
OURS: Final = ("backend-id",)


@dataclass(frozen=True)
class Disk:
    """What the backend says of its disk when it is Connected.

    nr_sectors: of 512 bytes, whatever sector_size, the bytes that are moved at least, is;
    discard_granularity, discard_alignment: bytes, 0 where nothing is said.
    """

    nr_sectors: int
    sector_size: int
    backend_persistent: bool
    read_only: bool
    flush_cache: bool = False
    barrier: bool = False
    discard: bool = False
    discard_granularity: int = 0
    discard_alignment: int = 0
    discard_secure: bool = False

    @property
    def flushes_as(self) -> int:
        """The operation that a flush is sent as."""
        if self.flush_cache:
            return abi.BLKIF_OP_FLUSH_DISKCACHE
        return abi.BLKIF_OP_WRITE_BARRIER if self.barrier else NOT_SENT


@dataclass(frozen=True)
class Domain:
    """What a disk has of its guest. ram: all its frames (u8); frames: which are the disk's;
    build(backend_domid, handle): a device on a fresh ring in them (`machine/front.py`).
    """

    domid: int
    ram: np.ndarray
    frames: DiskFrames
    build: Callable[[int, int], Blkfront]


class FrontendVbd(End):
    """One virtual disk of a guest, from Initialising to Closed.

    dev, disk: from Initialised and Connected on; port: of our channel, 0 without one;
    stuck_grants: after closing, how many are still mapped and not ended yet.
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
        self.stuck_grants = 0
        self.closed_because = ""
        self._domain, self._device, self._persistent = domain, device, persistent
        self._ring_ref = NO_GREF
        self._timer = 0
        self._fault, self._leaving = "", False

    @property
    def finished(self) -> bool:
        """Closed, and every access ended."""
        return self.state == xenbus.CLOSED and not self.stuck_grants

    def heed(self, event: Leave | Timeout | Done) -> None:
        """The guest unplugs its disk; the backend broke the ring; time to try again."""
        if isinstance(event, Leave):
            self._leaving = True
        elif isinstance(event, Done) and event.number == self.serving:
            self.serving, self._fault = 0, event.refused
        elif isinstance(event, Timeout) and event.number == self._timer:
            self._timer = 0
            self._end_accesses()

    def urgent(self) -> Task | None:
        """Close, if that is wanted here."""
        fault, leaving, self._fault, self._leaving = self._fault, self._leaving, "", False
        if self.state in (xenbus.CLOSING, xenbus.CLOSED):
            return None
        return self._begin_to_close(fault) if fault or leaving else None

    def step(self, values: Mapping[str, bytes]) -> Generator[Intent, Answer, bool]:
        """Take the step that is due."""
        other = xenbus.parse_state(values.get(f"{self.other}/state"))
        step = xenbus.next_step(self.role, self.state, other)
        if step is None:
            if self.stuck_grants:
                self._end_accesses()
            return False
        if step == xenbus.CLOSE and not self.closed_because:
            self.closed_because = self._why(other, values.get(f"{self.other}/error"))
        try:
            yield from getattr(self, step.action)(values)
            yield from self.switch(step.state)
        except (LocalFault, PeerFault) as fault:
            yield from self._begin_to_close(str(fault))
        return True

    def _begin_to_close(self, fault: str) -> Task:
        """`fault`: why, if it is not that the guest wants to."""
        if fault:
            self.closed_because = fault
            self.want(Fail(fault))
        yield from self.switch(xenbus.CLOSING, **({"error": fault} if fault else {}))
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
        backend = _number(values, f"{self.path}/backend-id", abi.DOMID_FIRST_RESERVED - 1)
        self.dev = self._domain.build(backend, self._device)
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
        sectors = _number(values, f"{self.other}/sectors", SECTORS_MAX)
        sector_size = _number(values, f"{self.other}/sector-size", abi.XEN_PAGE_SIZE)
        if sector_size not in SECTOR_SIZES:
            raise PeerFault(f"{self.other}/sector-size is {sector_size}, and not one of {_SIZES}")
        if sectors % (sector_size // abi.SECTOR_SIZE):
            raise PeerFault(f"{self.other}/sectors is {sectors}, no whole sectors of {sector_size}")
        flush, barrier, discard, granularity, alignment, secure = (
            _number(values, f"{self.other}/{name}", BYTES_MAX, 0) for name in FEATURES
        )
        kept = values.get(f"{self.other}/feature-persistent", b"").strip() == b"1"
        self.dev.front["grant_mode"] = (
            PER_REQUEST if not self._persistent else PERSISTENT if kept else REUSE
        )
        info = _number(values, f"{self.other}/info", INFO_MAX)
        read_only = bool(info & abi.VDISK_READONLY)
        special = (bool(flush), bool(barrier), bool(discard), granularity, alignment, bool(secure))
        self.disk = Disk(sectors, sector_size, kept, read_only, *special)
        self.dev.front["flushes_as"] = self.disk.flushes_as
        self.dev.front["discards"] = self.disk.discard
        self.serving = self.number()
        self.want(Start(self.serving, kept))
        yield from ()

    def close(self, _: Mapping[str, bytes]) -> Task:
        """Use the disk no more: give the channel up, and end every access that can be ended.

        Whose backend was told to close by its toolstack still has pages mapped now, and unmaps them
        when it sees this end Closed: what is refused here is tried again (Linux: by a timer).
        """
        if self.serving:
            yield Stop(self.serving)
            self.serving = 0
        if self.port:
            yield from self.call(Op.CLOSE, self.port)
            self.port, self.disk = 0, None
        self._end_accesses()

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


def _number(
    values: Mapping[str, bytes], path: str, maximum: int, missing: int | None = None
) -> int:
    value = values.get(path)
    if value is None and missing is not None:
        return missing
    number = xenbus.parse_number(value, maximum)
    if number is None:
        raise PeerFault(f"{path} is {xenbus.shown(value)}, and no number up to {maximum}")
    return number
