"""When a guest counts as paused, what may be said to it then, and its clock."""

import os
import time
from collections.abc import Iterator

import pytest

from tests.toolstack.test_child import Held
from toolstack import pausing
from toolstack.failures import GuestFailed, MachineError
from toolstack.hold import PAUSED, SUSPENDED, TO_SUSPEND, Hold
from toolstack.pausing import Pausing, Unpausing, letters, thread_states


@pytest.fixture
def guest() -> Iterator[Held]:
    held = Held("guest-1")
    yield held
    held.close()


def test_it_is_paused_once_every_thread_is_stopped(
    guest: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = ["T", "R"]
    monkeypatch.setattr(pausing, "thread_states", lambda pid: states)
    order = Pausing(guest.child)
    assert not order.look()
    states[1] = "T"
    assert order.look()
    assert letters(guest.child) == "--p---"


def test_one_that_does_not_stop_is_let_go_on(guest: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "thread_states", lambda pid: ["D"])
    monkeypatch.setattr(pausing, "TIMEOUT_S", 0)
    order = Pausing(guest.child)
    with pytest.raises(MachineError, match=r"^guest-1 does not stop within 0 s$"):
        order.look()
    assert guest.child.hold.why == []


def test_a_real_process_stops_and_goes_on(guest: Held) -> None:
    order = Pausing(guest.child)
    while not order.look():
        time.sleep(0.001)
    assert thread_states(guest.child.pid) == ["T"]
    Unpausing(guest.child)
    while thread_states(guest.child.pid) == ["T"]:
        time.sleep(0.001)
    with pytest.raises(MachineError, match=r"^guest 1 is not paused$"):
        Unpausing(guest.child)


def test_a_dead_one_is_said_to_be(guest: Held) -> None:
    order = Pausing(guest.child)
    guest.dies(-9)
    with pytest.raises(GuestFailed, match=r"^guest-1 was killed by SIGKILL$"):
        order.look()
    assert letters(guest.child) == "----c-"
    assert "R" in thread_states(os.getpid())


@pytest.mark.parametrize(
    ("why", "may", "may_not"),
    [
        ([PAUSED], ["stop"], ["read", "load", "resume", "exit", "disconnect"]),
        ([SUSPENDED], ["stop", "resume", "exit", "disconnect"], ["suspend", "read", "load"]),
        ([TO_SUSPEND], ["stop", "exit"], ["resume", "read"]),
        ([SUSPENDED, PAUSED], ["stop"], ["resume", "exit"]),
    ],
)
def test_what_may_be_said(why: list[str], may: list[str], may_not: list[str]) -> None:
    hold = Hold("guest-1")
    for each in why:
        hold.begin(each)
    for word in may:
        hold.allow(word)
    for word in may_not:
        with pytest.raises(MachineError, match=f"^guest 1 is {why[-1]}$"):
            hold.allow(word)


def test_its_clock_stands_still_while_anything_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("toolstack.hold.time.monotonic", lambda: now[0])
    hold, read = Hold("guest-1"), list[float]()
    for change in (
        lambda: None,
        lambda: hold.begin(SUSPENDED),
        lambda: hold.begin(PAUSED),
        lambda: hold.end(SUSPENDED),
        lambda: hold.end(PAUSED),
        lambda: hold.end(PAUSED),  # which it is not: nothing
    ):
        change()
        now[0] += 1
        read.append(hold.clock_s())
    assert read == [101, 101, 101, 101, 102, 103]
