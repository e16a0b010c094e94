"""A dom0 vCPU's thread: its rings in turn, and what the hypervisor sees of it.

Each ring is that of a whole `Pair`, with a hypervisor of its own; all are served by one thread.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any, Final, cast

import numpy as np
import pytest

from backend import vcpu_thread
from backend.ring_hands import RingHands
from backend.vcpu_thread import VcpuThread
from common.atomics import load_acquire, store_release
from common.event_channel import set_pending
from common.ring import REQ, RSP
from common.spinning import new_spin
from common.u32 import u32_add, u32_sub
from common.wakeups import PipeCarrier
from tests.pair import OKAY, PORT, READ, WRITE, Pair, Raw
from tests.patience import PATIENCE_S, eventually

STORM_S: Final = 0.5
CPU: Final = 2
NAME: Final = f"blkback-{CPU}"
Words = tuple[np.ndarray, np.ndarray]


class _Calls:
    """A hypervisor, called at once. seen: is told whether the vCPU runs then."""

    def __init__(self, pair: Pair, seen: list[int], running: np.ndarray) -> None:
        self._pair, self._seen, self._running = pair, seen, running

    def call(self, number: int, cmd: int, ops: np.ndarray) -> int:
        self._seen.append(int(self._running[CPU]))
        payload = bytearray(ops.tobytes())
        rc = self._pair.hypervisor.hypercall(0, 0, number, cmd, payload, False)
        ops[:] = np.frombuffer(payload, ops.dtype)
        return rc

    def close(self) -> None:
        pass


class Line:
    """dom0's end of a ring's event channel, and the guest's way to send."""

    def __init__(self, pair: Pair) -> None:
        (reads, self._sends), (self._reads, writes) = os.pipe(), os.pipe()
        self._pair, self.carrier = pair, PipeCarrier(reads, writes)
        os.set_blocking(self._sends, False)

    def is_pending(self) -> bool:
        return bool(int(self._pair.back_events[0][PORT >> 6]) >> (PORT & 63) & 1)

    def wake_far_end(self) -> None:
        self.carrier.wake()

    def wake(self) -> None:
        """A wake-up, be there an event or not."""
        with suppress(BlockingIOError):
            os.write(self._sends, b"\1")

    def send(self) -> None:
        set_pending(*self._pair.back_events, PORT)
        self.wake()

    def hang_up(self) -> None:
        os.close(self._sends)
        self._sends = os.dup(self._reads)

    def close(self) -> None:
        self.carrier.close()
        os.close(self._sends)
        os.close(self._reads)


class Ring:
    """A guest's disk, all of whose bytes are `number + 1`; `ended` has why it has."""

    def __init__(self, rig: "Rig", number: int, mode: str, gather_max: int) -> None:
        self.rig, self.number = rig, number
        self.pair = Pair(mode, gather_max=gather_max)
        self.pair.back = self.pair.back._replace(spin=rig.vcpu.spin)
        assert self.pair.store.memory is not None
        self.pair.store.memory[:] = number + 1
        self.line = Line(self.pair)
        self.frame = self.pair.buffer_frame
        self.gref = self.pair.grant(self.frame)
        self.running_when_called = list[int]()
        self.ended: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()

    def begin(self) -> None:
        calls = cast(Any, _Calls(self.pair, self.running_when_called, self.rig.running))
        hands = RingHands(self.pair.back, self.pair.store, cast(Any, self.line), calls)
        self.rig.vcpu.add(
            self.number,
            hands,
            lambda why: self.ended.put((why, self.pair.counts()["grants_mapped"])),
        )

    def push(self, *operations: int) -> None:
        self.pair.push_raw(*(Raw([(self.gref, 0, 7)], operation) for operation in operations))
        self.line.send()

    def answered(self) -> int:
        """Requests that are on the ring, and not answered."""
        words = self.pair.front.words
        return int(u32_sub(load_acquire(words, REQ), load_acquire(words, RSP)))

    def ask(self, operation: int = READ) -> float:
        """One request, and how long it took."""
        at = int(load_acquire(self.pair.front.words, RSP))
        began = time.monotonic()
        self.push(operation)
        eventually(lambda: self.answered() == 0)
        assert self.pair.responses[at % 32].item() == (0, operation, OKAY)
        return time.monotonic() - began

    def reads(self) -> int:
        """The byte that the disk is of, as the guest sees it."""
        self.pair.frame(self.frame)[:] = 0
        self.ask()
        (byte,) = set(self.pair.frame(self.frame).tolist())
        return byte

    def end(self) -> None:
        """It is asked to end, and has."""
        self.rig.vcpu.end(self.number)
        assert self.ended.get(timeout=PATIENCE_S) == ("", 0)


class Rig:
    """A thread, and rings that it serves."""

    def __init__(self) -> None:
        self.running, self.dirty = np.zeros(4, np.uint32), np.zeros(4, np.uint32)
        self.vcpu = VcpuThread(
            CPU,
            self.running,
            self.dirty,
            cast(Any, _Calls(cast(Any, None), [], self.running)),
            new_spin(adaptive=False),
            "pipe",
            8,
        )
        self.rings: list[Ring] = []

    def ring(self, number: int, mode: str = "persistent", gather_max: int = 1) -> Ring:
        """One more, which is served."""
        ring = Ring(self, number, mode, gather_max)
        self.rings.append(ring)
        ring.begin()
        return ring

    def close(self) -> None:
        for ring in self.rings:
            self.vcpu.end(ring.number)
        self.vcpu.close()
        for ring in self.rings:
            ring.line.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()
    assert NAME not in {thread.name for thread in threading.enumerate()}


@contextmanager
def meanwhile(does: Callable[[], object]) -> Iterator[None]:
    """It is done again and again, as long as the block takes."""
    ends = threading.Event()

    def again() -> None:
        while not ends.wait(0.0005):
            does()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


# --- what the hypervisor sees -------------------------------------------------------------------


def test_a_vcpu_has_run_once_when_its_domain_is_booted(rig: Rig) -> None:
    assert rig.running.tolist() == [0, 0, 0, 0] and rig.dirty.tolist() == [0, 0, 1, 0]


def test_it_runs_while_it_serves_and_idles_while_all_its_rings_sleep(rig: Rig) -> None:
    rings = [rig.ring(number, "non-persistent") for number in range(2)]
    for ring in rings:
        ring.ask()
        eventually(lambda: not rig.running.any())
        assert ring.running_when_called == [1, 1]


def test_a_cpu_that_left_the_mask_is_dirty_again_when_its_vcpu_runs(rig: Rig) -> None:
    ring = rig.ring(0)
    ring.ask()  # its thread has begun
    eventually(lambda: not rig.running.any())
    rig.dirty[CPU] = 0
    ring.ask()
    assert rig.dirty[CPU] == 1


def test_it_says_that_it_runs_before_it_sets_its_bit(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the hypervisor, between the two, would leave a running vCPU's CPU out of the mask."""
    rig.dirty[CPU] = 0
    seen = []

    def store(words: np.ndarray, index: int, value: np.uint32) -> None:
        words[index] = value
        seen.append((int(rig.running[CPU]), int(rig.dirty[CPU])))

    monkeypatch.setattr(vcpu_thread, "store_release", store)
    rig.vcpu.run()
    assert seen == [(1, 0), (1, 1)]
    rig.vcpu.idle()


def test_there_is_a_thread_from_its_first_ring_on_and_none_after_it_is_closed() -> None:
    rig = Rig()
    assert NAME not in {thread.name for thread in threading.enumerate()}
    rig.ring(0), rig.ring(1)
    assert [thread.name for thread in threading.enumerate()].count(NAME) == 1
    rig.close()
    assert NAME not in {thread.name for thread in threading.enumerate()}
    Rig().close()  # nor if it never had a ring


# --- many rings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("mode", ["persistent", "non-persistent", "grant-copy"])
def test_each_ring_has_its_own_disk(rig: Rig, mode: str, adaptive: bool) -> None:
    rig.vcpu.spin["adaptive"] = adaptive
    rings = [rig.ring(number, mode) for number in (5, 0, 3)]
    for _ in range(3):
        assert [ring.reads() for ring in rings] == [6, 1, 4]
    assert [int(ring.pair.back.counters["requests"][0]) for ring in rings] == [3, 3, 3]


def test_two_rings_that_are_swapped_are_found_by_who_reads(rig: Rig) -> None:
    one, other = Ring(rig, 0, "persistent", 1), Ring(rig, 1, "persistent", 1)
    rig.rings += [one, other]
    for to, of in ((one.pair, other.pair.front), (other.pair, one.pair.front)):
        to.back = to.back._replace(words=of.words, qwords=of.qwords)
    one.begin(), other.begin()
    one.pair.frame(one.frame)[:] = 0
    one.push(READ)
    other.line.send()
    eventually(lambda: one.answered() == 0)
    assert set(one.pair.frame(one.frame).tolist()) != {1}


def test_many_requests_on_all_rings_are_all_answered(rig: Rig) -> None:
    rings = [rig.ring(number, "non-persistent", 32) for number in range(4)]
    for _ in range(20):
        for ring in rings:
            ring.push(*[READ, WRITE] * 12)
        eventually(lambda: not any(ring.answered() for ring in rings))
    assert [int(ring.pair.back.counters["requests"][0]) for ring in rings] == [480] * 4


# --- one ring is no other's concern -------------------------------------------------------------


def test_a_ring_that_is_broken_ends_and_the_others_go_on(rig: Rig) -> None:
    rings = [rig.ring(number) for number in range(3)]
    assert [ring.reads() for ring in rings] == [1, 2, 3]
    words = rings[1].pair.front.words
    store_release(words, REQ, u32_add(int(words[RSP]), 33))
    rings[1].line.send()
    why, mapped = rings[1].ended.get(timeout=PATIENCE_S)
    assert (why, mapped) == ("the frontend produced more requests than the ring holds", 0)
    assert [rings[at].reads() for at in (0, 2)] == [1, 3]
    rig.vcpu.end(1)  # which comes late, and is nothing
    assert [rings[at].reads() for at in (0, 2)] == [1, 3]
    assert rings[1].ended.empty()


@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_a_ring_ends_between_two_requests_however_busy_it_is(rig: Rig, mode: str) -> None:
    busy, other = rig.ring(0, mode), rig.ring(1, mode)
    ends = threading.Event()

    def keep_busy() -> None:
        while not ends.is_set():
            if busy.answered() < 16:
                busy.push(*[READ] * 16)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        eventually(lambda: busy.pair.back.counters["requests"][0] > 100)
        assert other.reads() == 2
        busy.end()
        assert other.reads() == 2
    finally:
        ends.set()
        thread.join()
    back = busy.pair.back
    assert busy.ended.empty() and back.half["published"][0] == back.half["cons"][0]


def test_rings_come_and_go_and_their_numbers_are_used_again(rig: Rig) -> None:
    stays = rig.ring(7)
    for number in (0, 1, 0, 0):
        comes = rig.ring(number)
        assert (comes.reads(), stays.reads()) == (number + 1, 8)
        comes.end()
        assert stays.reads() == 8


@pytest.mark.parametrize("what", ["events", "wake-ups"])
def test_a_storm_costs_its_sender_time_and_nobody_else(rig: Rig, what: str) -> None:
    stormy, calm = rig.ring(0), rig.ring(1)
    for ring in (stormy, calm):
        ring.ask()
    storm = stormy.line.send if what == "events" else stormy.line.wake
    before = int(stormy.pair.back.counters["waits"][0])
    with meanwhile(storm):
        eventually(lambda: rig.vcpu._naps)
        took, ends = list[float](), time.monotonic() + STORM_S
        while time.monotonic() < ends:
            took.append(calm.ask())
    assert median(took) < 0.004
    assert int(stormy.pair.back.counters["waits"][0]) - before < 3 * STORM_S / 0.016
    assert stormy.reads() == 1  # its own requests come through all the same
    stormy.end()
    assert calm.reads() == 2


def test_a_ring_ends_while_it_naps(rig: Rig) -> None:
    ring = rig.ring(0)
    with meanwhile(ring.line.send):
        eventually(lambda: rig.vcpu._naps)
        ring.end()


def test_a_far_end_that_has_hung_up_is_polled_no_more(rig: Rig) -> None:
    gone, other = rig.ring(0), rig.ring(1)
    assert (gone.reads(), other.reads()) == (1, 2)
    gone.line.hang_up()
    assert other.reads() == 2
    eventually(lambda: gone.line.carrier.hung_up)
    waits = int(gone.pair.back.counters["waits"][0])
    time.sleep(0.1)
    assert int(gone.pair.back.counters["waits"][0]) <= waits + 1
    gone.end()
