"""The backend's xenbus driver of one virtual disk: the handshake's steps, as blkback takes them.

Owns: the store keys the backend writes, and when its connection begins and ends. `common/xenbus.py`
says when a step is due; how a driver is driven is in `common/handshake.py`. Sans-I/O.
Rules
1. Everything read from the frontend's directory is the guest's to write: it is parsed, and what
   does not parse closes this device with its reason in the store's `error` node, and nothing else.
2. Nobody waits for a ring: one that does not stop at once says itself when it has, and what needs
   that is done then.
3. A directory that was removed, or made again, while this device was in use has another disk in it,
   or none: this one disconnects, and is finished once its frontend has let go, too.
"""

from collections.abc import Generator, Iterator, Mapping
from typing import Final, NamedTuple

from backend.stores import NO_FEATURES, Features
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
    Resized,
    Start,
    Stop,
    Task,
    Timeout,
)
from common.xenbus import shown

PROTOCOL: Final = b"x86_64-abi"
NO_PROTOCOL: Final = (  # what that means, on x86, to Linux's blkback
    "protocol x86_32-abi (no `protocol` key) is not served: only x86_64-abi"
)
NOT_LET_GO: Final = "the frontend has not let go of the disk that was here before"
U32_MAX: Final = 0xFFFFFFFF
THEIRS: Final = ("state", "ring-ref", "event-channel", "protocol", "feature-persistent")
OURS: Final = ("state", "online")

Taken = Generator[Intent, Answer, bool]  # False: the own directory is gone


class Published(NamedTuple):
    """What a frontend has published: its ring and its event channel."""

    ring_ref: int
    port: int
    persistent: bool


class BackendVbd(End):
    """One virtual disk of dom0, from Initialising to Closed (and round again).

    persistent: whether mappings may be kept; numbers: see `common/handshake.py`; read_only: writes
    are answered ERROR; features, sector_size: the store's.
    """

    role = "backend"
    theirs, ours = THEIRS, OURS

    def __init__(
        self,
        frontend_domid: int,
        device: int,
        nr_sectors: int,
        persistent: bool,
        numbers: Iterator[int],
        read_only: bool = False,
        features: Features = NO_FEATURES,
        sector_size: int = abi.SECTOR_SIZE,
    ) -> None:
        super().__init__(
            xenbus.backend_path(frontend_domid, device),
            xenbus.frontend_path(frontend_domid, device),
            numbers,
        )
        self.port = 0  # our own, while it is bound
        self.mapped = False  # the ring is
        self.serving = 0  # the Start that has not ended
        self._nr_sectors, self._persistent, self._read_only = nr_sectors, persistent, read_only
        self._features, self._sector_size = features, sector_size
        self._online = True
        self._failure = ""  # a fault of the frontend that this device has yet to be closed for
        self._leaving = False  # it has yet to let go, whatever the frontend does
        self._resized = False  # the frontend has yet to be told
        self._gone = False  # the directory is another one now, or none
        self._let_go = False  # and the frontend is not connected any more

    @property
    def finished(self) -> bool:
        """Closed, and the toolstack wants it gone; or it is gone."""
        if self._gone:
            return self._let_go
        return self.state == xenbus.CLOSED and not self._online

    def heed(self, event: Asked | Timeout | Done) -> None:
        """What an old connection reports is nothing to the new one."""
        if isinstance(event, Leave):
            self._leaving = True
        elif isinstance(event, Resized):
            self._nr_sectors, self._resized = event.nr_sectors, True
        elif isinstance(event, Done) and event.number == self.serving:
            self.serving, self._failure = 0, event.refused

    def urgent(self) -> Task | None:
        """A ring that has broken; the end of dom0; another size."""
        if self._leaving:
            self._leaving = False
            return self._retire()
        if self._failure:
            return self._close_for(self._failure)
        resized, self._resized = self._resized, False
        return self._tell_size() if resized and self.state == xenbus.CONNECTED else None

    def step(self, values: Mapping[str, bytes]) -> Taken:
        """Take the step that is due."""
        self._online = values.get(f"{self.path}/online") == b"1"
        other = xenbus.parse_state(values.get(f"{self.other}/state"))
        self._gone = self._gone or self._is_another(values.get(f"{self.path}/state"))
        if self._gone:
            yield from self._leave(other)
            return False
        step = xenbus.next_step(self.role, self.state, other)
        if step is None:
            return False
        try:
            if (yield from getattr(self, step.action)(values)):
                yield from self.switch(step.state)
        except (LocalFault, PeerFault) as fault:
            yield from self._close_for(str(fault))
        return True

    def announce(self, _: Mapping[str, bytes]) -> Taken:
        """What this backend could do, before it has seen the frontend."""
        return (
            yield from self.write(
                {
                    "feature-max-indirect-segments": 0,
                    "multi-queue-max-queues": 1,
                    "max-ring-page-order": 0,
                }
            )
        )

    def connect(self, values: Mapping[str, bytes]) -> Taken:
        """Map the ring, bind the channel, announce the disk in one transaction, start serving."""
        published = self._published(values)
        yield from self._peers_call(Op.MAP_RING, published.ring_ref)
        self.mapped = True
        self.port = yield from self._peers_call(Op.BIND_INTERDOMAIN, published.port)
        announced = yield from self.write(
            {
                **self._announced(),
                "feature-persistent": int(self._persistent),
                "sectors": self._nr_sectors,
                "info": abi.VDISK_READONLY if self._read_only else 0,
                "sector-size": self._sector_size,
                "physical-sector-size": abi.XEN_PAGE_SIZE,
            },
            gone=["error"],
        )
        if announced:
            self.serving = self.number()
            self.want(Start(self.serving, published.persistent))
        else:
            yield from self.disconnect(values)
        return announced

    def _announced(self) -> dict[str, object]:
        """What the store can do; nothing of it where nothing may be written."""
        has = NO_FEATURES if self._read_only else self._features
        announced: dict[str, object] = {"feature-flush-cache": int(has.flush)}
        if has.discard:
            announced["discard-granularity"] = has.discard_granularity
            announced["discard-alignment"] = has.discard_alignment
            announced["discard-secure"] = 0
        announced["feature-discard"] = int(has.discard)
        announced["feature-barrier"] = int(has.barrier)
        return announced

    def _peers_call(self, op: Op, named: int) -> Generator[Intent, Answer, int]:
        """A call about what the frontend has named: if it is refused, that is its fault."""
        done = yield from self.call(op, named)
        if done.refused:
            raise PeerFault(done.refused)
        return done.value

    def disconnect(self, _: Mapping[str, bytes]) -> Taken:
        """Stop the ring, which unmaps everything it kept; then unmap the ring itself."""
        if self.serving:
            yield Stop(self.serving)
            self.serving = 0
        if self.port:
            yield from self.call(Op.CLOSE, self.port)
            self.port = 0
        if self.mapped:
            yield from self.call(Op.UNMAP_RING)
            self.mapped = False
        return True

    def _close_for(self, reason: str) -> Task:
        """Close this device for a fault of its frontend, and say why where people look."""
        self._failure = ""
        self.want(Fail(reason))
        yield from self.disconnect({})
        yield from self.switch(xenbus.CLOSING, error=reason)

    def _tell_size(self) -> Task:
        """As Linux's xen_vbd_resize: `state` is written again, as it is, and so the frontend looks.
        A disk that is not connected says it when it is."""
        told = {"sectors": self._nr_sectors, "state": xenbus.CONNECTED}
        yield from self.write(told, since=xenbus.CONNECTED)

    def _retire(self) -> Task:
        yield from self.disconnect({})
        self._gone = self._let_go = True

    def _is_another(self, written: bytes | None) -> bool:
        """Has the directory been removed since this device began, or made again?"""
        if written is None:
            return True
        begins = xenbus.parse_state(written) == xenbus.INITIALISING
        return begins and self.state != xenbus.INITIALISING

    def _leave(self, other: int) -> Task:
        """Let go of the disk that was here. What is here now is not begun before the frontend has
        let go, too: its Connected would be taken for the new disk's."""
        yield from self.disconnect({})
        self._let_go = other not in (xenbus.INITIALISED, xenbus.CONNECTED)
        if not self._let_go:
            yield from self.write({"error": NOT_LET_GO})

    def _published(self, values: Mapping[str, bytes]) -> Published:
        theirs = {key: values.get(f"{self.other}/{key}") for key in THEIRS}
        ring_ref, port = (_number(key, theirs[key]) for key in ("ring-ref", "event-channel"))
        protocol = theirs["protocol"]
        if protocol is None:
            raise PeerFault(NO_PROTOCOL)
        if protocol != PROTOCOL:
            raise PeerFault(f"protocol {shown(protocol)} is not '{PROTOCOL.decode()}'")
        return Published(ring_ref, port, self._persistent and theirs["feature-persistent"] == b"1")


def _number(key: str, value: bytes | None) -> int:
    number = xenbus.parse_number(value, U32_MAX)
    if number is None:
        raise PeerFault(f"{key} {shown(value)} is not a number")
    return number
