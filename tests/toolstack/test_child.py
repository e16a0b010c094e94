"""What a supervisor believes of a child: a real process' pidfd, and a control connection that the
test holds the other end of."""

import gc
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from common.control import DATA_MAX, MESSAGE_MAX, TEXT_MAX, Control, control_pair
from common.process import open_descriptors
from toolstack.child import (
    ANSWERS_MAX,
    ENDED_MAX,
    LOG_LINES_HEARD,
    LOG_LINES_MAX,
    MESSAGES_A_LOOK,
    Child,
    readable,
)


class Held:
    """A child whose process sleeps, and whose words are the test's."""

    def __init__(self, name: str) -> None:
        self.process = subprocess.Popen(["sleep", "600"])
        ours, self.raw = control_pair()
        self.logged: list[str] = []
        pidfd = os.pidfd_open(self.process.pid)
        self.child = Child(name, self.process.pid, pidfd, ours, self.logged.append)

    def says(self, *message: Any) -> None:
        self.raw.send(msgpack.packb(message))

    def dies(self, status: int | None = None) -> str:
        """End it, as `status` says; the child's death."""
        self.process.kill()
        self.process.wait()
        self.child.ended(status)
        return self.child.death

    def is_killed(self) -> bool:
        """Has the supervisor ended it?"""
        return self.process.wait(20) == -signal.SIGKILL

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.raw.close()
        self.child.close()


@pytest.fixture
def guest() -> Iterator[Held]:
    gc.collect()  # what other tests have left to it
    before = open_descriptors()
    held = Held("guest-1")
    yield held
    held.close()
    assert open_descriptors() == before


@pytest.fixture
def dom0() -> Iterator[Held]:
    held = Held("dom0")
    yield held
    held.close()


@pytest.mark.parametrize(
    ("name", "essential"),
    [("hypervisor", True), ("xenstored", True), ("dom0", True), ("guest-1", False)],
)
def test_all_but_guests_are_essential(name: str, essential: bool) -> None:
    held = Held(name)
    assert held.child.essential is essential
    held.close()


# --- answers --------------------------------------------------------------------------------------


def test_answers_are_kept_in_order(guest: Held) -> None:
    guest.says("ok", {"size": 5})
    guest.says("error", "cannot")
    guest.says("ok", None)
    guest.child.listen()
    assert list(guest.child.answers) == [("ok", {"size": 5}), ("error", "cannot"), ("ok", None)]
    assert guest.child.death == ""


def test_nothing_said_is_nothing_and_does_not_wait(guest: Held) -> None:
    guest.child.listen()
    assert not guest.child.answers and not guest.child.hung_up


def test_an_answer_of_a_word_alone_is_one(guest: Held) -> None:
    guest.says("ok")
    guest.child.listen()
    assert list(guest.child.answers) == [("ok", None)]


def test_an_error_is_one_printable_line(guest: Held) -> None:
    guest.says("error", "red \x1b[31m\nand " + "long " * 1000)
    guest.says("error", ["no", "text"])
    guest.child.listen()
    (_, text), (_, other) = guest.child.answers
    assert text.startswith("red ?[31m and long") and len(text) == TEXT_MAX + 3
    assert other == "(a list)"


def test_a_look_is_bounded(guest: Held) -> None:
    for number in range(MESSAGES_A_LOOK + 5):
        guest.says("log", f"{number}")
    guest.child.listen()
    assert guest.child.control.receive(0) == ["log", f"{MESSAGES_A_LOOK}"]


# --- what it logs ---------------------------------------------------------------------------------


def test_log_lines_carry_the_name_and_are_few(guest: Held) -> None:
    guest.says("log", "first\nline")
    guest.child.listen()
    assert guest.logged == ["guest-1: first line"]
    for _ in range(100):
        guest.says("log", "more")
        guest.child.listen()
    assert len(guest.logged) == LOG_LINES_MAX + 1
    assert guest.logged[-1] == "guest-1: (its further lines are not shown)"
    assert not guest.child.hung_up


@pytest.mark.parametrize("text", [None, 7, b"bytes", {"a": 1}, []])
def test_a_log_line_of_no_text_is_not_shown(guest: Held, text: Any) -> None:
    guest.says("log", text)
    guest.says("log")
    guest.child.listen()
    assert guest.logged == [f"guest-1: (a {type(text).__name__})", "guest-1: (a NoneType)"]


def test_lists_in_lists_end_nobody_but_who_sends_them(guest: Held) -> None:
    guest.raw.send(b"\x92\xa3log" + b"\x91" * 1000 + b"\x01")
    guest.raw.send(b"\x92\xa5error" + b"\x91" * 1000 + b"\x01")
    guest.child.listen()
    assert guest.logged == ["guest-1: (a list)"]
    assert list(guest.child.answers) == [("error", "(a list)")]


# --- who breaks the form --------------------------------------------------------------------------

BAD = [
    (b"\xff\xff garbage", "guest-1 sent what is no message"),
    (msgpack.packb(7), "guest-1 sent a message that is no list"),
    (msgpack.packb(["died", 2]), "guest-1 sent a message of no kind it may send: died"),
    (msgpack.packb(["\x1b[2J"]), "guest-1 sent a message of no kind it may send: ?[2J"),
    (msgpack.packb(["forked", "dom0", 1]), "guest-1 sent a message of no kind it may send"),
    (msgpack.packb(["ok", bytes(MESSAGE_MAX)]), "guest-1 sent a message of more than"),
]


@pytest.mark.parametrize(("sent", "why"), BAD)
def test_a_guest_that_breaks_the_form_is_killed_and_blamed_for_it(
    guest: Held, sent: bytes, why: str
) -> None:
    guest.says("ok", 1)
    guest.raw.send(sent)
    guest.says("error", "it was not me")
    guest.child.listen()
    assert guest.is_killed()
    assert guest.child.has_ended()
    guest.child.ended(-signal.SIGKILL)
    assert guest.child.death.startswith(why)
    assert list(guest.child.answers) == [("ok", 1)]


def test_a_guest_that_answers_what_it_was_not_asked_is_killed(guest: Held) -> None:
    for _ in range(2):
        for _ in range(ANSWERS_MAX):
            guest.says("ok", bytes(1000))
        guest.child.listen()
    assert len(guest.child.answers) == ANSWERS_MAX
    assert guest.is_killed()
    guest.child.ended(-signal.SIGKILL)
    assert guest.child.death == "guest-1 answers what it was not asked"


def test_descriptors_that_a_guest_sends_are_dropped(guest: Held) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    before = open_descriptors()
    for _ in range(10):
        socket.send_fds(guest.raw, [msgpack.packb(["log", "here"])], [null] * 20)
    guest.child.listen()
    assert open_descriptors() == before
    os.close(null)


def test_what_the_hypervisor_tells_is_kept_apart_from_its_answers(dom0: Held) -> None:
    dom0.says("died", 3)
    dom0.says("ok", None)
    dom0.child.listen()
    assert list(dom0.child.told) == [["died", 3]]
    assert list(dom0.child.answers) == [("ok", None)]


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "death"),
    [
        (-signal.SIGKILL, "guest-1 was killed by SIGKILL"),
        (-signal.SIGSEGV, "guest-1 was killed by SIGSEGV"),
        (-signal.SIGBUS, "guest-1 was killed by SIGBUS"),
        (0, "guest-1 ended unexpectedly (exit status 0)"),
        (70, "guest-1 ended unexpectedly (exit status 70)"),
        (None, "guest-1 ended unexpectedly (exit status None)"),
    ],
)
def test_how_it_ended_is_told(guest: Held, status: int | None, death: str) -> None:
    assert not guest.child.has_ended()
    assert guest.dies(status) == death
    assert guest.child.has_ended()


@pytest.mark.parametrize("status", [-35, -63])
def test_a_signal_without_a_name_is_told_by_its_number(guest: Held, status: int) -> None:
    assert guest.dies(status) == f"guest-1 was killed by signal {-status}"


def test_its_last_words_are_why_it_ended(guest: Held) -> None:
    guest.says("ok", None)
    guest.says("error", "domain 1: xenstore: READ /x: ECONNRESET")
    assert guest.dies(1) == "domain 1: xenstore: READ /x: ECONNRESET"


def test_an_answer_that_came_with_its_end_is_not_lost(guest: Held) -> None:
    """A machine that closed well said "ended unexpectedly (exit status 0)" now and then."""
    guest.says("ok", None)
    guest.dies(0)
    assert list(guest.child.answers) == [("ok", None)]


def test_who_hangs_up_is_ended(guest: Held) -> None:
    guest.says("ok", 1)
    guest.raw.close()
    guest.child.listen()
    assert guest.child.hung_up and guest.is_killed()
    assert list(guest.child.answers) == [("ok", 1)]


def test_the_first_fault_is_the_one_that_is_told(guest: Held) -> None:
    guest.child.kill("guest-1 gave its hypercall connection up")
    guest.child.kill("guest-1 did something else")
    assert guest.is_killed()
    guest.child.kill()  # there is nobody any more
    guest.child.ended(-signal.SIGKILL)
    assert guest.child.death == "guest-1 gave its hypercall connection up"


def test_readable_waits_no_longer_than_said() -> None:
    reads, writes = os.pipe()
    assert not readable(reads, 0) and not readable(reads, 0.01) and not readable(reads, -1)
    os.write(writes, b"x")
    assert readable(reads, 0) and readable(reads, 60)
    os.close(reads)
    os.close(writes)


def test_as_large_an_answer_as_there_is_comes_whole(guest: Held) -> None:
    far = Control(guest.raw)
    far.send("ok", bytes(DATA_MAX))
    guest.child.listen()
    assert list(guest.child.answers) == [("ok", bytes(DATA_MAX))]


def test_a_guest_that_logs_without_end_is_killed(guest: Held) -> None:
    for _ in range(LOG_LINES_HEARD // MESSAGES_A_LOOK + 2):
        for _ in range(MESSAGES_A_LOOK):
            guest.raw.send(msgpack.packb(["log", "x"]), socket.MSG_DONTWAIT)
        guest.child.listen()
        if guest.child.hung_up:
            break
    assert guest.is_killed()
    assert guest.dies() == "guest-1 logs without end"
    assert len(guest.logged) == LOG_LINES_MAX + 1


def test_what_the_machine_needs_may_log_as_long_as_it_lives(dom0: Held) -> None:
    for _ in range(LOG_LINES_HEARD // MESSAGES_A_LOOK + 2):
        for _ in range(MESSAGES_A_LOOK):
            dom0.says("log", "x")
        dom0.child.listen()
    assert not dom0.child.hung_up and dom0.process.poll() is None


def test_the_ends_of_loads_are_kept_until_they_are_taken(guest: Held) -> None:
    guest.says("ended", 1, None)
    guest.says("ended", 2, "no room\nat all")
    guest.says("ended", 3, ["a", "list"])
    guest.child.listen()
    assert guest.child.ended_loads == {1: "", 2: "no room at all", 3: "(a list)"}
    assert not guest.child.answers


@pytest.mark.parametrize("load", ["1", None, 1.5, [1]])
def test_what_is_no_loads_number_ends_the_guest(guest: Held, load: object) -> None:
    guest.says("ended", load, None)
    guest.child.listen()
    assert guest.is_killed()
    assert guest.dies() == "guest-1 ends loads that it does not run"


def test_a_guest_that_ends_loads_without_end_is_ended(guest: Held) -> None:
    for load in range(ENDED_MAX + 1):
        guest.says("ended", load, None)
        guest.child.listen()
    assert guest.is_killed()
    assert len(guest.child.ended_loads) == ENDED_MAX


def test_an_end_without_anything_ends_the_guest(guest: Held) -> None:
    guest.says("ended")
    guest.child.listen()
    assert guest.is_killed()


# --- sizes ----------------------------------------------------------------------------------------


def test_a_guest_tells_a_disks_new_size(guest: Held) -> None:
    guest.says("size", 3, 512)
    guest.says("size", 3, 1024)
    guest.child.listen()
    assert guest.child.sizes == {3: 1024} and not guest.child.hung_up


@pytest.mark.parametrize(
    "message",
    [("size",), ("size", 16, 512), ("size", -1, 512), ("size", "0", 512), ("done", 1, None, "")],
)
def test_what_is_no_size_ends_it(message: tuple[object, ...], guest: Held) -> None:
    guest.says(*message)
    guest.child.listen()
    assert guest.is_killed() and guest.child.sizes == {}


def test_a_guest_does_not_tell_sizes_without_end(
    guest: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolstack.child.SIZES_HEARD", 2)
    for nbytes in (512, 1024, 1536):
        guest.says("size", 0, nbytes)
    guest.child.listen()
    assert guest.is_killed() and guest.child.hung_up


def test_an_order_is_answered_in_a_place_of_its_own(dom0: Held) -> None:
    slot = list[object]()
    dom0.child.orders = {7: slot, 8: None}
    for number in (8, 7, 9):
        dom0.says("done", number, [number], "")
    dom0.child.listen()
    assert slot == [[[7], ""]] and dom0.child.orders == {} and not dom0.child.answers
