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
    Resume,
    Seen,
    Start,
    Stirred,
    Stop,
    Suspend,
    Timeout,
    Timer,
    Write,
)
from common.spinning import new_spin
from common.xenbus import (
    CLOSED,
    CLOSING,
    CONNECTED,
    INIT_WAIT,
    INITIALISED,
    INITIALISING,
    UNKNOWN,
)
from frontend.blkfront_info import REUSE
from frontend.disk import FEATURES, Disk
from frontend.vbd import FrontendVbd
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


def test_a_backend_that_is_connected_may_have_another_size() -> None:
    """Nonsense is passed over, as blkfront does."""
    end = End()
    end.connect()
    for said, sectors in ((b"8192", 8192), (b"64", 64), (b"many", 64), (b"-1", 64), (b"", 64)):
        end.see(CONNECTED, **{**SOUND, "sectors": said})
        assert end.vbd.disk is not None and end.vbd.disk.nr_sectors == sectors
        assert (end.wants, end.vbd.state) == ([], CONNECTED)


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


# --- another backend ------------------------------------------------------------------------------


def suspended(end: End, seen: int = INITIALISING) -> Timer:
    """It was connected, and its backend is gone. When it looks again, whatever happens."""
    start = end.connect()
    end.see(seen)
    late = end.wanted(Timer)
    assert end.wanted(Stop).number == start.number
    end.tell(Done(start.number))
    end.call(Op.CLOSE)
    end.commit(state=INITIALISING)
    assert end.vbd.kept and not end.flags.any()
    return late


def connect_again(end: End, **keys: bytes) -> None:
    end.publish()
    end.see(CONNECTED, **{**SOUND, **keys})


@pytest.mark.parametrize("seen", [INITIALISING, INIT_WAIT])
def test_it_begins_again_with_another_backend(seen: int) -> None:
    end = End()
    suspended(end, seen)
    dev = end.vbd.dev
    more = {"sectors": b"8192", "feature-persistent": b"1", "feature-flush-cache": b"1"}
    connect_again(end, **more)
    assert end.wanted(Start).keeps
    end.commit(state=CONNECTED)
    assert end.vbd.dev is dev and not end.vbd.kept
    assert end.vbd.disk is not None and end.vbd.disk.nr_sectors == 8192


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"sectors": b"4088"}, "the disk has 4088 sectors now, and had 4096"),
        ({"info": b"4"}, "the disk is read-only now, and was not"),
        ({"sector-size": b"4096"}, "the disk has sectors of 4096 now, and had 512"),
    ],
)
def test_a_disk_that_is_less_now_is_closed_by_name(keys: dict[str, bytes], why: str) -> None:
    end = End()
    suspended(end)
    connect_again(end, **keys)
    assert end.wanted(Fail).reason == f"{BACK}: {why}"
    end.commit(state=CLOSING)
    assert not end.vbd.kept


def still_mapped(end: End) -> tuple[int, Timer]:
    """It was connected, and its backend is gone and has the ring mapped: its gref, and when it is
    tried again."""
    start = end.connect()
    ring = int(np.flatnonzero(end.flags)[0])
    end.flags[ring] |= abi.GTF_READING
    end.see(INITIALISING)
    end.wanted(Timer)
    end.wanted(Stop)
    end.tell(Done(start.number))
    end.call(Op.CLOSE)
    stuck = end.wanted(Timer)
    end.commit(state=INITIALISING)
    return ring, stuck


def test_nothing_is_published_while_anything_is_mapped() -> None:
    end = End()
    ring, stuck = still_mapped(end)
    end.see(INIT_WAIT)
    assert end.wants == []
    end.flags[ring] &= ~np.uint16(abi.GTF_READING)
    end.tell(Timeout(stuck.number))
    assert isinstance(end.wants[0], Look)
    end.publish()


def test_a_timer_for_access_that_has_ended_ends_none_of_the_next_ring() -> None:
    end = End()
    ring, stuck = still_mapped(end)
    end.flags[ring] &= ~np.uint16(abi.GTF_READING)
    end.see(INIT_WAIT)  # looked at before the timer: it is let go of now
    assert not end.flags.any()
    connect_again(end)
    end.wanted(Start)
    end.commit(state=CONNECTED)
    granted = end.flags.copy()
    assert granted.any()
    end.tell(Timeout(stuck.number))
    assert (end.flags == granted).all()


def test_a_ring_that_was_published_for_a_backend_that_died_is_not_waited_for() -> None:
    end = End()
    end.publish()
    values = {f"{BACK}/state": b"2", f"{end.vbd.path}/state": b"1"}
    end.tell(Seen(end.wanted(Look).number, values))
    end.wanted(Timer)
    end.call(Op.CLOSE)
    end.commit(state=INITIALISING)


def test_its_connected_does_not_go_over_what_whoever_started_a_backend_again_has_written() -> None:
    end = End()
    end.publish()
    end.see(CONNECTED, **SOUND)
    end.wanted(Start)
    assert end.wanted(Write).since == INITIALISED


@pytest.mark.parametrize("late", [False, True])
def test_a_backend_that_says_that_it_cannot_begin_is_believed_after_a_while(late: bool) -> None:
    end = End()
    timer = suspended(end)
    end.see(INITIALISING)
    if late:
        end.tell(Timeout(timer.number))
    end.see(INITIALISING, error=b"there is no such file")
    if late:
        end.commit(state=CLOSED)
        assert end.vbd.closed_because == "its backend is Initialising (there is no such file)"
    assert end.vbd.kept != late


def test_a_backend_that_is_removed_meanwhile_will_not_come() -> None:
    end = End()
    suspended(end)
    end.see(UNKNOWN)
    end.commit(state=CLOSED)
    assert not end.vbd.kept


def test_it_is_suspended_and_resumed_when_it_is_told() -> None:
    end = End()
    start = end.connect()
    end.tell(Suspend())
    assert end.wanted(Stop).number == start.number
    end.tell(Done(start.number))
    end.commit(state=CLOSING)
    end.see(CLOSING)
    end.call(Op.CLOSE)
    end.commit(state=CLOSED)
    end.see(CLOSED)
    assert end.vbd.kept and not end.vbd.finished and not end.flags.any()
    end.tell(Resume())
    end.wanted(Timer)
    end.commit(state=INITIALISING)
    end.see(CLOSED)
    connect_again(end)
    end.wanted(Start)
    end.commit(state=CONNECTED)
    assert not end.vbd.kept


def test_a_disk_that_is_suspended_can_be_unplugged() -> None:
    end = End()
    start = end.connect()
    end.tell(Suspend())
    end.wanted(Stop)
    end.tell(Done(start.number))
    end.commit(state=CLOSING)
    end.see(CLOSING)
    end.call(Op.CLOSE)
    end.commit(state=CLOSED)
    end.see(CLOSED)
    end.tell(Leave())
    assert end.vbd.finished
    end.tell(Resume())
    assert end.wants == []
