"""The stores of a thread: polled for as they like, called in time, told of when they are silent."""

import os
import select
from typing import Any

import numpy as np

from backend.ring_hands import RingHands
from backend.store_jobs import Jobs
from backend.store_watch import STALLED_NS, StoreWatch
from backend.stores import NO_FEATURES
from tests.backend.late import Late
from tests.backend.test_slots import granted, one
from tests.pair import OKAY, READ

S = 1_000_000_000


class LaterOne:
    """Answers what the test has it answer."""

    nr_sectors, sector_size, features, memory = 512, 512, NO_FEATURES, None

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ready_ones: list[int] = []
        self.fd, self.mask, self.due, self.closed = -1, select.POLLIN, None, False

    def attach(self, jobs: Jobs) -> None:
        self.jobs = jobs

    def start(self, slots: np.ndarray) -> int:
        self.started += slots.tolist()
        return 0

    def ready(self) -> int:
        count = len(self.ready_ones)
        self.jobs.answered[:count], self.jobs.statuses[:count] = self.ready_ones, OKAY
        self.ready_ones.clear()
        return count

    def fileno(self) -> int:
        return self.fd

    def events(self) -> int:
        return self.mask

    def due_ns(self) -> int | None:
        return self.due

    def closing(self) -> None:
        self.closed = True

    def close(self) -> None:
        pass


class World:
    """A ring at whose store one request is, and who watches it."""

    def __init__(self) -> None:
        self.store: Any = LaterOne()
        self.pair, grefs = granted()
        none: Any = None
        self.hands = RingHands(self.pair.back, self.store, none, none)
        self.poller, self.told = select.poll(), list[int]()
        self.watch = StoreWatch(self.poller)
        self.watch.add(3, self.hands, self.told.append)
        self.pair.push_raw(one(grefs[0], READ, 0, 0))
        self.pair.do = self.hands.do  # type: ignore[method-assign]
        self.pair.go_on()

    def at_store(self) -> int:
        return int(self.pair.back.back["at_store"][0])


def test_what_has_been_started_is_the_store_s_until_it_says_so() -> None:
    world = World()
    assert len(world.store.started) == 1 == world.at_store()
    assert world.watch.look(0) == []
    world.store.ready_ones = list(world.store.started)
    assert world.watch.look(1) == [3]
    assert world.at_store() == 0
    world.pair.go_on()
    assert int(world.pair.back.words[2]) == 1  # rsp_prod


def test_the_descriptor_and_what_it_is_polled_for_may_change() -> None:
    world, (read, write) = World(), os.pipe()
    try:
        for fd, mask in ((-1, 1), (write, select.POLLOUT), (read, select.POLLIN), (-1, 0)):
            world.store.fd, world.store.mask = fd, mask
            world.watch.timeout_ns(0)
            ready = world.poller.poll(0)
            assert ready == ([(write, select.POLLOUT)] if fd == write else [])
            assert [world.watch.is_ready(fd) for fd, _ in ready] == ([3] if ready else [])
        world.store.fd, world.store.mask = read, select.POLLIN
        world.watch.timeout_ns(0)
        os.write(write, b"x")
        assert world.poller.poll(0) == [(read, select.POLLIN)]
        world.watch.forget(3)
        assert world.poller.poll(0) == [] and world.watch.is_ready(read) is None
    finally:
        os.close(read)
        os.close(write)


def test_a_sleep_ends_when_a_store_wants_to_be_called() -> None:
    world = World()
    world.watch.look(10 * S)
    assert world.watch.timeout_ns(10 * S) == STALLED_NS
    world.store.due = 11 * S
    assert world.watch.timeout_ns(10 * S) == S
    assert world.watch.timeout_ns(12 * S) == 0


def test_a_store_that_is_silent_is_told_of_at_growing_distances_and_when_it_answers() -> None:
    world = World()
    for second in range(45):
        world.watch.look(second * S)
    assert world.told == [5, 10, 20, 40]
    world.store.ready_ones = list(world.store.started)
    world.watch.look(45 * S)
    assert world.told == [5, 10, 20, 40, 0]
    for second in range(45, 90):  # it has nothing to do
        world.watch.look(second * S)
    assert len(world.told) == 5
    assert world.watch.timeout_ns(90 * S) is None


def test_a_ring_that_closes_tells_its_store() -> None:
    world = World()
    world.hands.closing()
    assert world.store.closed


def test_memory_is_not_watched() -> None:
    pair = Late()
    none: Any = None
    watch = StoreWatch(select.poll())
    watch.add(0, RingHands(pair.back, pair.store, none, none), lambda _: None)
    assert watch.timeout_ns(0) is None and watch.look(0) == []
