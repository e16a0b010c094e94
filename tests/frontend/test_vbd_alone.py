"""The frontend's driver alone: events in, intents out; what is refused is tried again later."""

import itertools
from typing import Any, TypeVar

import numpy as np
import pytest

from common import abi
from common.arena import Arena
from common.counters import FRONTEND_COUNTERS
from common.handshake import (
    Committed,
    Done,
    Event,
    Fail,
    Hypercall,
    Intent,
    Leave,
    Look,
    Op,
    Seen,
    Start,
    Stirred,
    Stop,
    Timeout,
    Timer,
    Write,
)
from common.spinning import new_spin
from common.xenbus import CLOSED, CLOSING, CONNECTED, INIT_WAIT, INITIALISED
from frontend.blkfront_info import REUSE
from frontend.vbd import FEATURES, Disk, FrontendVbd
from machine.front import guest_disks
from machine.hypervisor import domain_memory

T = TypeVar("T", bound=Intent)

PAGES = 4
BACK = "/local/domain/0/backend/vbd/1/51712"
SOUND = {"sectors": b"4096", "sector-size": b"512", "info": b"0", "feature-persistent": b"0"}


class End:
    """The driver, and what it wants now. `flags`: of the guest's grant table."""

    def __init__(self) -> None:
        memory = domain_memory(Arena(), 1 + PAGES)
        self.flags = memory.grant.view(abi.GRANT_ENTRY_V1)["flags"]
        counters, spin = np.zeros(1, FRONTEND_COUNTERS), new_spin(adaptive=False)
        (domain,) = guest_disks(1, *memory, counters, spin, nr_ios=1, pool_pages=PAGES)
        self.vbd = FrontendVbd(domain, 51712, True, BACK, itertools.count(1))
        self.wants: list[Intent] = []

    def tell(self, event: Event) -> None:
        self.wants = self.vbd.handle(event)

    def wanted(self, kind: type[T]) -> T:
        """The next intent, which is of `kind`."""
        intent = self.wants.pop(0)
        assert isinstance(intent, kind)
        return intent

    def see(self, state: int, **keys: bytes) -> None:
        if not self.wants:
            self.tell(Stirred())
        values = {f"{BACK}/state": b"%d" % state, f"{self.vbd.path}/backend-id": b"0"}
        values |= {f"{BACK}/{key}": value for key, value in keys.items()}
        self.tell(Seen(self.wanted(Look).number, values))

    def commit(self, **values: Any) -> None:
        write = self.wanted(Write)
        assert values.items() <= dict(write.values).items()
        self.tell(Committed(write.number))

    def call(self, op: Op, value: int = 0, refused: str = "") -> None:
        call = self.wanted(Hypercall)
        assert call.op == op
        self.tell(Done(call.number, value, refused))

    def publish(self) -> None:
        self.see(INIT_WAIT)
        self.call(Op.ALLOC_UNBOUND, 5)
        self.commit(**{"event-channel": 5, "protocol": "x86_64-abi"})
        self.commit(state=INITIALISED)

    def connect(self) -> Start:
        self.publish()
        self.see(CONNECTED, **SOUND)
        start = self.wanted(Start)
        self.commit(state=CONNECTED)
        self.see(CONNECTED)
        assert (self.wants, self.vbd.state) == ([], CONNECTED)
        return start


def test_it_learns_its_disk() -> None:
    end = End()
    assert not end.connect().keeps
    assert end.vbd.disk == Disk(4096, 512, False, read_only=False)
    assert end.vbd.dev is not None and end.vbd.dev.front["grant_mode"][0] == REUSE


def test_it_learns_what_more_its_backend_can() -> None:
    end = End()
    end.publish()
    names = ("feature-flush-cache", "feature-discard", "discard-secure")
    more = dict.fromkeys(names, b"1") | {"discard-granularity": b"4096", "sector-size": b"4096"}
    end.see(CONNECTED, **{**SOUND, **more, "discard-alignment": b"512"})
    assert end.vbd.disk == Disk(
        4096, 4096, False, False, True, False, True, 4096, 512, discard_secure=True
    )
    assert end.vbd.dev is not None
    front = end.vbd.dev.front[0]
    assert (front["flushes_as"], front["discards"]) == (abi.BLKIF_OP_FLUSH_DISKCACHE, 1)


@pytest.mark.parametrize(
    "keys",
    [
        *({"sectors": b"many"}, {"sectors": b"-1"}, {"sector-size": b"8192"}, {"sectors": b""}),
        *({"sector-size": b"1000"}, {"sector-size": b"256"}, {"sector-size": b"0"}),
        {"sectors": b"4095", "sector-size": b"4096"},
        *({name: b"many"} for name in FEATURES),
        {"discard-granularity": b"4294967296"},
    ],
)
def test_nonsense_closes_the_disk_which_says_why(keys: dict[str, bytes]) -> None:
    end = End()
    end.publish()
    end.see(CONNECTED, **{**SOUND, **keys})
    reason = end.wanted(Fail).reason
    assert str(next(iter(keys))) in reason
    end.commit(state=CLOSING, error=reason)
    assert end.vbd.closed_because == reason


def test_a_channel_that_cannot_be_had_closes_the_disk_and_publishes_nothing() -> None:
    end = End()
    end.see(INIT_WAIT)
    end.call(Op.ALLOC_UNBOUND, refused="no port is free")
    assert end.wanted(Fail).reason == "no port is free"
    end.commit(state=CLOSING, error="no port is free")
    end.see(CLOSING)
    end.commit(state=CLOSED)
    assert not end.flags.any()


def test_access_that_cannot_be_ended_is_tried_again_after_a_while() -> None:
    end = End()
    start = end.connect()
    ring = int(np.flatnonzero(end.flags)[0])
    end.flags[ring] |= abi.GTF_READING  # the backend has it mapped
    end.see(CLOSING)
    assert end.wanted(Stop).number == start.number
    end.tell(Done(start.number))
    end.call(Op.CLOSE)
    first = end.wanted(Timer)
    end.commit(state=CLOSED)
    end.see(CLOSING)
    assert end.vbd.stuck_grants == 1 and not end.vbd.finished
    end.tell(Timeout(first.number))
    second = end.wanted(Timer)
    end.flags[ring] &= ~np.uint16(abi.GTF_READING)
    end.tell(Timeout(first.number))  # an old one
    assert end.vbd.stuck_grants == 1
    end.tell(Timeout(second.number))
    assert (end.wants, end.vbd.finished) == ([], True)
    assert not end.flags.any()


def test_a_backend_that_breaks_the_ring_has_its_disk_closed() -> None:
    end = End()
    start = end.connect()
    end.tell(Done(start.number, refused="more responses than requests"))
    assert end.wanted(Fail).reason == "more responses than requests"
    end.commit(state=CLOSING, error="more responses than requests")
    end.see(CLOSING)
    end.call(Op.CLOSE)  # and nothing is stopped: that has ended
    end.commit(state=CLOSED)
    end.see(CLOSED)
    end.tell(Done(start.number, refused="again"))
    assert (end.wants, end.vbd.finished) == ([], True)


@pytest.mark.parametrize("connected", [True, False])
def test_it_may_be_unplugged_at_any_time(connected: bool) -> None:
    end = End()
    if connected:
        end.connect()
    end.tell(Leave())
    end.commit(state=CLOSING)
    end.see(CLOSING)
    if connected:
        end.tell(Done(end.wanted(Stop).number))
        end.call(Op.CLOSE)
    end.commit(state=CLOSED)
    end.see(CLOSED)
    end.tell(Leave())
    assert (end.wants, end.vbd.finished) == ([], True)
