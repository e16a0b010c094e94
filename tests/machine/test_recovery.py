"""The backend dies before any phase of a mixed run, and another takes over: nothing is lost,
nothing is answered twice, and a flush still covers what came before it.
"""

from typing import Final, NamedTuple

import numpy as np
import pytest

from backend.ring_hands import RingHands
from backend.slots import FREE
from backend.stores import Features
from backend.worker import work
from common import abi, effects
from common.arena import Arena
from common.compiled import direct
from common.event_channel import clear_pending, set_pending
from common.ring import REQ, RSP
from common.steps import ANY_STEP, STEP
from frontend.blkfront import end_every_access
from frontend.blkfront_info import begin_ring
from frontend.load import LoadPlan, new_load
from frontend.recovery import queue_again, take_answers
from machine.back import slots_of
from tests.frontend.whole import check_whole
from tests.pair import (
    GRANT_COPY,
    LOOKS_MAX,
    MODES,
    PORT,
    READ,
    WRITE,
    CallbackStore,
    Pair,
)

FLUSH: Final = abi.BLKIF_OP_FLUSH_DISKCACHE
BARRIER: Final = abi.BLKIF_OP_WRITE_BARRIER
IOS, DEPTH, CAP = 12, 4, 2
BLOCK = 2 * abi.XEN_PAGE_SIZE
DISK_SECTORS = 16 * abi.SECTORS_PER_PAGE
PHASES_MAX = 5_000
SHIFT = 0x9E3779B97F4A7C15


class FlushStore(CallbackStore):
    """A ramdisk in an arena that can flush; `did`: what it was asked to do, and for which bytes."""

    features = Features(flush=True, barrier=True)

    def __init__(self, arena: Arena) -> None:
        super().__init__(DISK_SECTORS)
        self.hidden = arena.array(DISK_SECTORS * abi.SECTOR_SIZE, np.uint8)
        self.did: list[tuple[int, int, int]] = []

    def read(self, offset: int, into: np.ndarray) -> None:
        self.did.append((READ, offset, len(into)))
        super().read(offset, into)

    def write(self, offset: int, data: np.ndarray) -> None:
        self.did.append((WRITE, offset, len(data)))
        super().write(offset, data)

    def flush(self) -> None:
        self.did.append((FLUSH, 0, 0))


class Life:
    """A disk whose backend can be replaced by one of another mode."""

    def __init__(self, mode: str, gather_max: int = 1, nr_ios: int = DEPTH) -> None:
        self.arena = arena = Arena()
        self.store, self.gather_max = FlushStore(arena), gather_max
        self.pair = pair = Pair(
            mode,
            store=self.store,
            gather_max=gather_max,
            cap=CAP,
            pool_pages=22,
            nr_ios=nr_ios,
            frames_per_io=14,
            nr_handles=512,
            arena=arena,
        )
        pair.front.front["flushes_as"] = FLUSH
        self.state, self.asleep = arena.array(1, np.uint64), arena.array(2, np.uint8)
        self._first = pair.back, pair.hands, pair.copies, pair._empty
        self._work = direct(work, pair.rings, 0, 0, 0)

    def load(self) -> None:
        """Reads, writes and flushes, all verified."""
        pair = self.pair
        plan = LoadPlan("randrw", BLOCK, DEPTH, 50, IOS, None, 7, True, fsync=3)
        versions = self.arena.array(DISK_SECTORS, np.uint32)
        pair.front_job = new_load(
            self.arena, plan, pair.front, versions, pair.latency, 1, 0, real_time=False
        )

    def step(self) -> tuple[int, int] | None:
        """One phase of the end whose turn it is: which. None: the load is over."""
        turns = int(self.state[0])
        self.state[0] = turns + 1
        end = (turns * SHIFT >> 33) & 1
        end = 1 - end if self._sleeps(end) else end
        pair = self.pair
        place = int((pair.front, pair.back)[end].turn[STEP])
        if end == 0:
            effect = pair.front_run(ANY_STEP)
        else:
            effect = int(self._work(pair.rings, 0, LOOKS_MAX, ANY_STEP))
            pair.do(effect)
        self.asleep[end] = effect == effects.WAIT
        return None if effect == effects.DONE else (end, place)

    def _sleeps(self, end: int) -> bool:
        pending = (self.pair.front_events, self.pair.back_events)[end][0]
        if self.asleep[end] and clear_pending(pending, PORT):
            self.asleep[end] = 0
        return bool(self.asleep[end])

    def die(self) -> None:
        """dom0 is dead; the frontend, once it is between two turns, hears of it."""
        pair = self.pair
        pair.hypervisor.reset_backend(abi.DOMID_0)
        pair.front_run(0)
        assert take_answers(pair.front) == ""
        queue_again(pair.front)
        assert end_every_access(pair.front) == 0
        assert not pair.grant_frames.view(abi.GRANT_ENTRY_V1)["flags"].any()

    def revive(self, mode: str, flushes_as: int = FLUSH) -> None:
        """There is another backend, and a new ring to it."""
        pair, arena = self.pair, self.arena
        grant_mode, keeps = MODES[mode]
        cap = CAP if keeps else 0
        begin_ring(pair.front, abi.DOMID_0)
        pair.front.front["grant_mode"], pair.front.front["flushes_as"] = grant_mode, flushes_as
        pair.arena, pair.copies = Arena(), mode == GRANT_COPY
        pair.back = pair._build_back(
            slots_of(cap),
            persistent=keeps,
            max_persistent_grants=cap,
            gather_max=self.gather_max,
            read_only=False,
            queue=None,
        )
        pair.arena = arena
        pair.hands = RingHands(pair.back, self.store, *pair_of_nothing())
        set_pending(*pair.back_events, PORT)  # as a new binding is

    def forget(self) -> None:
        """The first backend again: a snapshot is to be restored."""
        pair = self.pair
        pair.back, pair.hands, pair.copies, pair._empty = self._first

    def check(self) -> None:
        """At rest nothing is left over."""
        pair = self.pair
        check_whole(pair.front)
        assert set(pair.back.requests["state"].tolist()) == {FREE}
        dom0 = pair.hypervisor.domains.find(abi.DOMID_0)
        assert dom0 is not None and dom0.maptrack.list["used"][0] == pair.kept
        assert pair.counts()["grants_mapped"] == pair.kept
        assert pair.front.grants.list["in_flight"][0] == 0


def pair_of_nothing() -> tuple[None, None]:
    """No channel and no hypercalls: the pair sees to both."""
    return None, None


# --- a load ---------------------------------------------------------------------------------------

REPLACED = (
    ("persistent", "persistent", 32),
    ("persistent", "backend-without-persistent", 1),
    ("backend-without-persistent", "persistent", 1),
    ("non-persistent", "non-persistent", 1),
    (GRANT_COPY, "non-persistent", 32),
)


@pytest.mark.parametrize(("mode", "next_mode", "gather_max"), REPLACED)
def test_a_backend_may_die_at_any_phase_of_a_run(
    mode: str, next_mode: str, gather_max: int
) -> None:
    life = Life(mode, gather_max)
    life.load()
    pair, arena = life.pair, life.arena
    places, kept = set[tuple[int, int]](), 0
    while (at := life.step()) is not None:
        places.add(at)
        here = arena.snapshot()
        life.die()
        kept = max(kept, int(pair.front.front["queued"][0]))
        life.revive(next_mode)
        pair.driver.run_one(0, pair.front_job, lambda: None)
        counters, load = pair.front.counters[0], pair.front_job.load[0]
        assert counters["ios"] == IOS and load["idle_ios"] == DEPTH
        assert sorted(pair.front_job.idle.tolist()) == list(range(DEPTH))
        assert counters["io_errors"] == counters["verify_errors"] == 0
        assert not pair.front_job.busy.any() and not load["flushing"]
        life.check()
        life.forget()
        arena.restore(here)
    assert kept == DEPTH and len({at for end, at in places if end == 1}) > 15


# --- what was on the ring -------------------------------------------------------------------------


class Io(NamedTuple):
    """One I/O: its block of 4 KiB, and how many."""

    operation: int
    block: int = 0
    count: int = 1


def put(life: Life, *ios: Io) -> None:
    """Queue them: each write's bytes are its number, all over."""
    for number, io in enumerate(ios):
        life.pair.buffer(number)[:] = number + 1
        sectors = 0 if io.operation == FLUSH else io.count * abi.SECTORS_PER_PAGE
        life.pair.queue(number, io.operation, io.block * abi.SECTORS_PER_PAGE, sectors)


MIXED = (
    Io(WRITE, 0),
    Io(WRITE, 1, 14),  # two requests
    Io(FLUSH),
    Io(WRITE, 0),  # over the first
    Io(READ, 15),
    Io(FLUSH),
    Io(WRITE, 15),
)


@pytest.mark.parametrize("flushes_as", [FLUSH, BARRIER])
@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_what_is_issued_again_keeps_its_order_about_each_flush(mode: str, flushes_as: int) -> None:
    """Whatever phase the backend was in; each is done once, and the last write stays."""
    life = Life(mode, gather_max=32, nr_ios=len(MIXED))
    pair, arena = life.pair, life.arena
    put(life, *MIXED)
    answered_before = 0
    while (at := life.step()) is not None:
        here = arena.snapshot()
        life.die()
        before = set(pair.front.done[: pair.front.front["done"][0]].tolist())
        answered_before = max(answered_before, len(before))
        life.store.did.clear()
        life.revive(mode, flushes_as)
        done = pair.run()
        assert sorted(done) == list(range(len(MIXED))), at
        assert not pair.front.ios["status"][: len(MIXED)].any()
        again = [number for number in done if number not in before]
        follows_its_flushes(life.store.did, again)
        assert set(life.store.hidden.reshape(16, -1)[0]) == {4}
        assert set(life.store.hidden.reshape(16, -1)[15]) == {7}
        life.check()
        life.forget()
        arena.restore(here)
    assert answered_before > 2


def follows_its_flushes(did: list[tuple[int, int, int]], again: list[int]) -> None:
    """Of what was issued again: all before a flush is done before it."""
    starts = {0: 0, 1: 4096, 3: 0, 4: 15 * 4096, 6: 15 * 4096}
    place = 0
    for number, io in enumerate(MIXED):
        if number not in again:
            continue
        if io.operation == FLUSH:
            wanted = [(n, o) for n, o in enumerate(MIXED[:number]) if n in again and n in starts]
            at = next(i for i in range(place, len(did)) if did[i][0] == FLUSH)
            for earlier, what in wanted:
                assert any(d[:2] == (what.operation, starts[earlier]) for d in did[:at])
            place = at + 1


@pytest.mark.parametrize("flushes_as", [FLUSH, BARRIER])
def test_a_flush_that_comes_again_is_not_asked_for_before_all_before_it_is_answered(
    flushes_as: int,
) -> None:
    life = Life("persistent", nr_ios=4)
    pair = life.pair
    put(life, Io(WRITE, 0), Io(WRITE, 1), Io(FLUSH), Io(WRITE, 2))
    while pair.front_run(0) != effects.WAIT:
        pass
    assert pair.front.words[REQ] == 4
    life.die()
    life.revive("persistent", flushes_as)
    for asked in (2, 4, 4):  # the two writes; then the flush, and what comes after it
        while pair.front_run(0) not in (effects.WAIT, effects.DONE):
            pass
        assert pair.front.words[REQ] == asked
        pair.serve()
    assert sorted(pair.take_done()) == [0, 1, 2, 3]


def test_an_io_of_which_a_part_was_answered_is_done_again_from_its_beginning() -> None:
    """What that backend had in a cache has gone with it."""
    life = Life("persistent", nr_ios=2)
    pair = life.pair
    put(life, Io(WRITE, 0, 14))
    while pair.front.words[RSP] == 0:  # the first of its two requests is not answered
        assert life.step() is not None
    life.die()
    assert pair.front.ios["issued_sectors"][0] == 0
    assert pair.front.front["queued"][0] == 1
    life.store.hidden[:] = 0
    life.revive("persistent")
    assert pair.run() == [0]
    assert set(life.store.hidden[: 14 * 4096]) == {1}


def test_a_write_of_whose_end_nobody_has_been_told_is_done_again() -> None:
    life = Life("persistent", nr_ios=2)
    pair = life.pair
    put(life, Io(WRITE, 3), Io(READ, 5))
    while pair.front_run(0) != effects.WAIT:
        pass
    pair.serve()
    life.die()
    assert pair.take_done() == [1]
    assert pair.front.front["queued"][0] == 1
    life.revive("persistent")
    assert pair.run() == [0]


def test_a_backend_without_flushes_is_told_of_none() -> None:
    life = Life("persistent", nr_ios=3)
    put(life, Io(WRITE, 3), Io(FLUSH), Io(WRITE, 4))
    life.pair.front_run(0)
    life.die()
    life.revive("persistent", flushes_as=0)
    assert sorted(life.pair.run()) == [0, 1, 2]
    assert life.pair.front.front["unflushed"][0] == 1
    assert [what for what, *_ in life.store.did] == [WRITE, WRITE]


def test_a_liar_of_a_backend_that_died_is_told() -> None:
    life = Life("persistent", nr_ios=2)
    put(life, Io(WRITE, 3))
    life.pair.front_run(0)
    life.pair.answer_raw((9, WRITE, 0))
    life.pair.hypervisor.reset_backend(abi.DOMID_0)
    assert "not asked" in take_answers(life.pair.front)
