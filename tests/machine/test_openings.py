"""Stores that take their time: nobody waits for them, and what is not wanted any more is closed."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from backend.plug import Plug
from backend.stores import NullStore, RamStores
from common.faults import LocalFault, PeerFault
from machine import openings
from machine.openings import Openings

KEY = (1, 51712)
SLOW = Plug(b"file:/slow", False)
OTHER = Plug(b"file:/other", False)
RAM = Plug(b"ram:4k", False)


class Slow(NullStore):
    closed = False

    def close(self) -> None:
        self.closed = True


class World:
    """Openings whose files come when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gates: dict[str, threading.Event] = {}
        self.results: dict[str, Any] = {}
        self.reports: list[Callable[[], None]] = []
        self.reported, self.looks = threading.Semaphore(0), list[tuple[int, int]]()
        real = openings.open_disk

        def opened(target: Any, *rest: Any) -> Any:
            if target.kind != "file":
                return real(target, *rest)
            assert self.gates[target.where].wait(10)
            found = self.results[target.where]
            if isinstance(found, LocalFault):
                raise found
            return found

        monkeypatch.setattr(openings, "open_disk", opened)
        for where in ("/slow", "/other"):
            self.gates[where], self.results[where] = threading.Event(), Slow(8)
        self.openings = Openings(RamStores(), self._report, self.looks.append)

    def _report(self, call: Callable[[], None]) -> None:
        self.reports.append(call)
        self.reported.release()

    def come(self, where: str) -> None:
        """It has been opened, and the main thread hears of it."""
        self.gates[where].set()
        assert self.reported.acquire(timeout=10)
        self.reports.pop()()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_what_opens_at_once_is_had_at_once(world: World) -> None:
    store = world.openings.take(KEY, RAM)
    assert store is not None and store.nr_sectors == 8
    store.close()


def test_what_does_not_is_had_when_it_is_there(world: World) -> None:
    assert world.openings.take(KEY, SLOW) is None
    assert world.openings.take(KEY, SLOW) is None  # and is opened once
    world.come("/slow")
    assert world.looks == [KEY]
    assert world.openings.take(KEY, SLOW) is world.results["/slow"]


def test_one_that_cannot_be_had_is_said_then(world: World) -> None:
    world.results["/slow"] = LocalFault("no such file")
    assert world.openings.take(KEY, SLOW) is None
    world.come("/slow")
    with pytest.raises(LocalFault, match="no such file"):
        world.openings.take(KEY, SLOW)


@pytest.mark.parametrize("instead", [OTHER, RAM, None])
@pytest.mark.parametrize("late", [False, True])
def test_one_that_is_not_wanted_any_more_is_closed(
    world: World, instead: Plug | None, late: bool
) -> None:
    assert world.openings.take(KEY, SLOW) is None
    if not late:
        world.come("/slow")
    if instead is None:
        world.openings.forget(KEY)
    elif (store := world.openings.take(KEY, instead)) is not None:
        store.close()
    if late:
        world.come("/slow")
    assert world.results["/slow"].closed
    if instead is OTHER:
        world.come("/other")
        assert world.openings.take(KEY, OTHER) is world.results["/other"]


def test_a_target_that_is_none_is_the_writer_s_fault(world: World) -> None:
    with pytest.raises(PeerFault, match="name no disk"):
        world.openings.take(KEY, Plug(b"x", False))


def test_at_the_end_all_are_closed(world: World) -> None:
    world.openings.take(KEY, SLOW)
    world.come("/slow")
    world.openings.close()
    assert world.results["/slow"].closed
