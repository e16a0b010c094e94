"""Control connections: what is a message, what is none, and what a command is answered."""

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgpack
import pytest

from common import control
from common.control import (
    DATA_MAX,
    DESCRIPTORS_MAX,
    MESSAGE_MAX,
    TEXT_MAX,
    CommandError,
    Control,
    ControlLost,
    answer,
    control_pair,
    one_line,
)
from common.process import open_descriptors


class Ends(NamedTuple):
    """One end as it is used, the other with nothing around it, as a hostile process has it."""

    ours: Control
    raw: socket.socket

    def sent(self) -> Any:
        """What has been sent to the raw end."""
        return msgpack.unpackb(self.raw.recv(2 * MESSAGE_MAX))


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends(*control_pair())
    ends.raw.settimeout(10)
    yield ends
    ends.ours.close()
    ends.raw.close()


def packed(value: Any) -> bytes:
    return bytes(msgpack.packb(value))


# --- the form -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        ["exit"],
        ["read", 1 << 40, 4096],
        ["write", 0, b"\0\xff" * 100],
        ["ok", {"size": 5, "backend_persistent": True, "none": None, "a": [1.5, -1]}],
        ["log", "Grüße ☃"],
    ],
)
def test_plain_values_arrive_as_they_were_sent(message: list[Any]) -> None:
    ours, theirs = control_pair()
    far = Control.of_descriptor(theirs.detach())
    ours.send(*message)
    far.send(*message)
    assert far.receive(10) == message
    assert ours.receive(10) == message
    ours.close()
    far.close()


def test_a_message_is_one_packet_of_messagepack(ends: Ends) -> None:
    ends.ours.send("read", 512, 1024)
    assert ends.raw.recv(4096) == b"\x93\xa4read\xcd\x02\x00\xcd\x04\x00"
    ends.ours.send("exit")
    ends.ours.send("exit")
    assert [ends.raw.recv(4096) for _ in range(2)] == [b"\x91\xa4exit"] * 2


def test_messages_come_in_order_and_one_at_a_time(ends: Ends) -> None:
    for number in range(5):
        ends.raw.send(packed(["log", number]))
    assert [ends.ours.receive(0) for _ in range(6)] == [*(["log", n] for n in range(5)), None]


def test_to_look_takes_no_time_and_to_wait_takes_no_longer_than_said(ends: Ends) -> None:
    assert ends.ours.receive(0) is None
    assert ends.ours.receive(0.01) is None
    later = threading.Timer(0.05, lambda: ends.raw.send(packed(["ready"])))
    later.start()
    assert ends.ours.receive() == ["ready"]
    later.join()


@pytest.mark.parametrize("nbytes", [DATA_MAX, MESSAGE_MAX - 100])
def test_as_much_as_a_message_may_hold_goes_both_ways(nbytes: int) -> None:
    ours, theirs = control_pair()
    far = Control.of_descriptor(theirs.detach())
    for sender, receiver in ((ours, far), (far, ours)):
        sender.send("ok", bytes(nbytes))
        assert receiver.receive(10) == ["ok", bytes(nbytes)]
    ours.close()
    far.close()


# --- what is no message -------------------------------------------------------------------------

NO_MESSAGES = [
    ("garbage", b"\xc1\xc1\xc1", "is no message"),
    ("half a message", packed(["ok", "text"])[:-1], "is no message"),
    ("two messages", packed(["ok"]) * 2, "is no message"),
    ("a pickle", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02ok\x94.", "is no"),
    ("an extension type", packed(["ok", msgpack.ExtType(42, b"x")]), "extension type 42"),
    ("a text of bad utf-8", b"\x92\xa2ok\xa2\xff\xff", "is no message"),
    ("a list as a key", b"\x92\xa2ok\x81\x91\x01\x01", "is no message"),
    ("a list that says it is long", b"\xdd\xff\xff\xff\xff\xa2ok", "is no message"),
    ("bytes that say they are long", b"\x92\xa2ok\xc6\xff\xff\xff\xff", "is no message"),
    ("lists in lists", b"\x92\xa2ok" + b"\x91" * 100_000 + b"\x01", "is no message"),
    ("a number", packed(7), "no list with a word at its head"),
    ("a word", packed("ok"), "no list with a word at its head"),
    ("a map", packed({"ok": 1}), "no list with a word at its head"),
    ("nothing in a list", packed([]), "no list with a word at its head"),
    ("a number first", packed([1, "ok"]), "no list with a word at its head"),
    ("bytes first", packed([b"ok"]), "no list with a word at its head"),
    ("a list first", packed([["ok"]]), "no list with a word at its head"),
    ("an empty packet", b"", "is gone"),
    ("a long one", packed(["ok", bytes(MESSAGE_MAX)]), f"of more than {MESSAGE_MAX} bytes"),
]


@pytest.mark.parametrize(("case", "sent", "why"), NO_MESSAGES, ids=[n[0] for n in NO_MESSAGES])
@pytest.mark.parametrize("with_descriptors", [False, True])
def test_what_is_no_message_is_the_end_of_the_other_end(
    ends: Ends, case: str, sent: bytes, why: str, with_descriptors: bool
) -> None:
    ends.raw.send(sent)
    with pytest.raises(ControlLost, match=why):
        if with_descriptors:
            ends.ours.receive_with_descriptors()
        else:
            ends.ours.receive(0)


def test_random_bytes_are_a_message_or_none_and_never_anything_else(ends: Ends) -> None:
    import random

    rng = random.Random(1)
    lost = 0
    for _ in range(3000):
        head = packed(["ok"])[1:] if rng.random() < 0.7 else b""
        count = bytes([0x90 + rng.randrange(16)]) if head else b""
        ends.raw.send(count + head + rng.randbytes(rng.randrange(1, 40)))
        try:
            message = ends.ours.receive(0)
        except ControlLost:
            lost += 1
        else:
            assert isinstance(message, list) and isinstance(message[0], str)
    assert 1000 < lost < 3000


def test_an_end_that_is_gone_is_told_at_once_whoever_asks(ends: Ends) -> None:
    ends.raw.close()
    with pytest.raises(ControlLost, match=r"^is gone$"):
        ends.ours.receive()
    with pytest.raises(ControlLost, match=r"^is gone$"):
        ends.ours.receive_with_descriptors()
    with pytest.raises(ControlLost, match=r"cannot be told anything: .*Broken pipe"):
        ends.ours.send("exit")


def test_an_end_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SEND_TIMEOUT_S", 0.05)
    ours, theirs = control_pair()
    with theirs, pytest.raises(ControlLost, match="cannot be told anything: timed out"):
        for _ in range(1000):
            ours.send("ok", bytes(DATA_MAX))
    ours.close()


# --- descriptors --------------------------------------------------------------------------------


def test_descriptors_come_with_their_message_and_are_not_inherited(ends: Ends) -> None:
    reads, writes = os.pipe()
    far = Control.of_descriptor(ends.raw.detach())
    far.send("fork", "guest-1", descriptors=[reads, writes])
    message, (r, w) = ends.ours.receive_with_descriptors()
    assert message == ["fork", "guest-1"]
    os.write(w, b"x")
    assert os.read(reads, 1) == b"x"
    assert not os.get_inheritable(r) and not os.get_inheritable(w)
    for fd in (reads, writes, r, w):
        os.close(fd)
    far.close()


def test_descriptors_that_nobody_asked_for_are_dropped(ends: Ends) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    before = open_descriptors()
    socket.send_fds(ends.raw, [packed(["log", "here"])], [null] * 10)
    assert ends.ours.receive(0) == ["log", "here"]
    assert open_descriptors() == before
    os.close(null)


@pytest.mark.parametrize("sent", [b"\xc1", b"", bytes(MESSAGE_MAX + 1)])
def test_descriptors_of_what_is_no_message_are_closed(ends: Ends, sent: bytes) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    before = open_descriptors()
    socket.send_fds(ends.raw, [sent], [null, null])
    with pytest.raises(ControlLost):
        ends.ours.receive_with_descriptors()
    assert open_descriptors() == before
    os.close(null)


def test_more_descriptors_than_are_taken_do_not_stay_open(ends: Ends) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    before = open_descriptors()
    socket.send_fds(ends.raw, [packed(["ok"])], [null] * (DESCRIPTORS_MAX + 10))
    _, descriptors = ends.ours.receive_with_descriptors()
    for fd in descriptors:
        os.close(fd)
    assert open_descriptors() == before
    os.close(null)


# --- answers ------------------------------------------------------------------------------------


def refuse() -> None:
    raise CommandError("it cannot\nbe done \x1b[31m")


COMMANDS = {"add": lambda a, b: a + b, "refuse": refuse, "nothing": lambda: None}


@pytest.mark.parametrize(
    ("message", "answered"),
    [
        (["add", 2, 3], ["ok", 5]),
        (["add", b"a", b"b"], ["ok", b"ab"]),
        (["nothing"], ["ok", None]),
        (["refuse"], ["error", "it cannot be done ?[31m"]),
        (["help"], ["error", "no such command 'help'; allowed are add, nothing, refuse"]),
        (["Add", 1], ["error", "no such command 'Add'; allowed are add, nothing, refuse"]),
    ],
)
def test_a_command_is_answered_once(ends: Ends, message: list[Any], answered: list[Any]) -> None:
    answer(ends.ours, message, COMMANDS)
    assert ends.sent() == answered
    ends.raw.setblocking(False)
    with pytest.raises(BlockingIOError):
        ends.raw.recv(1)


def test_a_command_of_any_length_and_kind_can_be_unknown(ends: Ends) -> None:
    answer(ends.ours, ["\0" * 100_000], COMMANDS)
    kind, text = ends.sent()
    assert kind == "error" and text.startswith("no such command '\\x00") and len(text) < 5000


@pytest.mark.parametrize("message", [["add"], ["add", 1], ["add", 1, 2, 3], ["nothing", 1]])
def test_a_command_with_other_arguments_than_it_takes_is_an_error_too(
    ends: Ends, message: list[Any]
) -> None:
    answer(ends.ours, message, COMMANDS)
    kind, text = ends.sent()
    assert kind == "error" and text.startswith(f"{message[0]}: ")


def test_an_error_of_ours_is_not_told_as_an_answer(ends: Ends) -> None:
    with pytest.raises(TypeError):
        answer(ends.ours, ["add", 1, "x"], COMMANDS)


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("all is well", "all is well"),
        ("two\nlines\r\nand\ttabs \v\f", "two lines and tabs"),
        ("\x1b[2J\x1b]0;title\x07red", "?[2J?]0;title?red"),
        ("\x9b31m \x7f \x00", "?31m ? ?"),
        ("right\u202eto left\u2066\u200b", "right?to left??"),
        ("Grüße ☃", "Grüße ☃"),
        ("", ""),
        ("x" * (TEXT_MAX + 1), "x" * TEXT_MAX + "..."),
        ("x" * TEXT_MAX, "x" * TEXT_MAX),
        (None, "(a NoneType)"),
        (7, "(a int)"),
        (["text"], "(a list)"),
        (b"bytes", "(a bytes)"),
    ],
)
def test_what_others_say_is_one_printable_line(said: object, shown: str) -> None:
    assert one_line(said) == shown


def test_lists_in_lists_do_not_recurse_in_who_shows_them(ends: Ends) -> None:
    ends.raw.send(b"\x92\xa3log" + b"\x91" * 1000 + b"\x01")
    message = ends.ours.receive(0)
    assert message is not None
    assert one_line(message[1]) == "(a list)"
