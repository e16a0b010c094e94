"""The stores of a thread: polled for as they like, called in time, told of when they are silent."""

import os
import select
from typing import Any

import numpy as np
import pytest
import zmq

from backend.ring_hands import RingHands
from backend.store_jobs import Jobs
from backend.store_watch import STALLED_NS, StoreWatch
from backend.stores import NO_FEATURES
from common import effects
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

    def __init__(self, poller: Any = None) -> None:
        self.store: Any = LaterOne()
        self.pair, grefs = granted()
        none: Any = None
        self.hands = RingHands(self.pair.back, self.store, none, none)
        self.poller, self.told = poller or select.poll(), list[int]()
        self.watch = StoreWatch(self.poller)
        self.watch.add(3, self.hands, self.told.append, 0)
        self.pair.push_raw(one(grefs[0], READ, 0, 0))
        others = self.pair.do
        self.pair.do = lambda e: self.hands.do(e) if e == effects.IO else others(e)  # type: ignore
        self.pair.go_on()

    def at_store(self) -> int:
        return int(self.pair.back.back["at_store"][0])

    def sleeps(self) -> bool:
        """Is there nothing that would end a sleep?"""
        self.watch.timeout_ns(0, [3])
        return not self.poller.poll(0)


def test_what_has_been_started_is_the_store_s_until_it_says_so() -> None:
    world = World()
    assert len(world.store.started) == 1 == world.at_store()
    assert world.watch.look(0) == []
    world.store.ready_ones = list(world.store.started)
    assert world.watch.look(1) == [3]
    assert world.at_store() == 0
    world.pair.go_on()
    assert int(world.pair.back.words[2]) == 1  # rsp_prod


@pytest.mark.parametrize("poller", [select.poll, zmq.Poller])
def test_the_descriptor_and_what_it_is_polled_for_may_change(poller: Any) -> None:
    world, (read, write) = World(poller()), os.pipe()
    try:
        for fd, mask, ready in (
            (-1, select.POLLIN, False),
            (write, select.POLLOUT, True),
            (read, select.POLLIN, False),
            (write, select.POLLIN | select.POLLOUT, True),
            (-1, 0, False),
        ):
            world.store.fd, world.store.mask = fd, mask
            assert world.sleeps() != ready
            assert world.watch.look(0, slept=True) == ([3] if ready else [])
        world.store.fd, world.store.mask = read, select.POLLIN
        os.write(write, b"x")
        assert not world.sleeps()
        world.watch.forget(3)
        assert world.sleeps()
    finally:
        os.close(read)
        os.close(write)


def test_a_number_that_is_another_s_by_now_is_polled_for_that_one() -> None:
    """One store closes its socket, and the next one that another opens has its number."""
    world, other = World(), World()
    world.watch.add(4, other.hands, other.told.append, 0)
    read, write = os.pipe()
    world.store.fd = read
    assert world.sleeps()
    os.close(read)
    os.close(write)
    again, write = os.pipe()
    assert again == read
    try:
        world.store.fd, other.store.fd = -1, again
        assert world.sleeps()
        os.write(write, b"x")
        assert not world.sleeps()
        assert world.watch.look(0, slept=True) == [4]
        world.watch.forget(4)
        assert world.sleeps()
    finally:
        os.close(again)
        os.close(write)


def test_a_sleep_ends_when_a_store_wants_to_be_called() -> None:
    world = World()
    assert world.watch.timeout_ns(0, [3]) == STALLED_NS
    world.store.due = S
    assert world.watch.timeout_ns(0, [3]) == S
    assert world.watch.timeout_ns(2 * S, [3]) == 0


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
    assert world.watch.timeout_ns(90 * S, [3]) is None


def test_one_that_ends_while_it_is_silent_is_told_of_no_more() -> None:
    world = World()
    world.watch.look(0)
    world.watch.look(6 * S)
    world.watch.forget(3)
    assert world.told == [6, 0]


def test_a_ring_that_closes_tells_its_store() -> None:
    world = World()
    world.hands.closing()
    assert world.store.closed


def test_the_queue_of_a_ring_that_has_no_turns_ends_no_sleep() -> None:
    pair, poller = Late(), select.poll()
    none: Any = None
    read, write = os.pipe()
    watch = StoreWatch(poller)
    watch.add(0, RingHands(pair.back, pair.store, none, none, queue_fd=read), lambda _: None, 0)
    os.write(write, b"x")
    for rings, ready in (([], False), ([0], True), ([], False)):
        watch.timeout_ns(0, rings)
        assert bool(poller.poll(0)) == ready
    watch.forget(0)
    watch.close()
    os.close(read)
    os.close(write)


def test_memory_is_not_watched() -> None:
    pair = Late()
    none: Any = None
    watch = StoreWatch(select.poll())
    watch.add(0, RingHands(pair.back, pair.store, none, none), lambda _: None, 0)
    assert watch.timeout_ns(0, [0]) is None and watch.look(0, slept=True) == []
