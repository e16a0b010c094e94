"""An NBD connection against a scripted server: each kind of reply, cut anywhere; broken ones."""

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from backend.nbd_connection import NBD_CONNECTION, connect, kernels, new_connection, reason_of
from backend.nbd_negotiation import Export
from backend.nbd_state import Connection
from backend.slots import DISCARD, FLUSH, READ, WRITE
from backend.store_jobs import IOVEC, JOB, Jobs
from common.arena import Arena
from common.nbd_wire import (
    CMD_FLUSH,
    CMD_READ,
    CMD_TRIM,
    CMD_WRITE,
    ERROR,
    FLAG_HAS_FLAGS,
    FLAG_SEND_FLUSH,
    FLAG_SEND_TRIM,
    REPLY_ERROR,
    REPLY_ERROR_OFFSET,
    REPLY_FLAG_DONE,
    REPLY_NONE,
    REPLY_OFFSET_DATA,
    REPLY_OFFSET_HOLE,
    REQUEST,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
)

OKAY, FAILED = 0, -1
FLAGS = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH | FLAG_SEND_TRIM
S = 1_000_000_000


class Scripted:
    """A connection of 4 slots, and the server's end of its socket."""

    def __init__(self, structured: bool = True, **export: int) -> None:
        self.jobs = Jobs(
            np.zeros(4, JOB),
            np.zeros((4, 11), IOVEC),
            np.zeros(4, np.uint32),
            np.zeros(4, np.int32),
        )
        self.pages = np.full((4, 11, 4096), 0xEE, np.uint8)
        self.c: Connection = new_connection(self.jobs)
        self.c.state["timeout_ns"] = 30 * S
        self.rows = NBD_CONNECTION.rows(Arena(1 << 16), 1)
        NBD_CONNECTION.write(self.rows[0], self.c)
        self.begin, self.go_on, self.lose = kernels()
        self.ours, self.server = socket.socketpair()
        connect(self.c, self.ours.fileno(), Export(1 << 30, FLAGS, structured, **export))

    def job(self, slot: int, kind: int, offset: int, sizes: tuple[int, ...]) -> None:
        self.jobs.jobs[slot] = (offset, sum(sizes), kind, len(sizes))
        for at, size in enumerate(sizes):
            self.jobs.iovecs[slot, at] = (self.pages[slot, at].ctypes.data, size)

    def start(self, *slots: int) -> list[tuple[int, int]]:
        return self.answers(self.begin(self.rows, np.array(slots, np.uint32)))

    def say(self, said: bytes) -> list[tuple[int, int]]:
        self.server.sendall(said)
        return self.answers(self.go_on(self.rows))

    def answers(self, count: int) -> list[tuple[int, int]]:
        return list(
            zip(
                self.jobs.answered[:count].tolist(),
                self.jobs.statuses[:count].tolist(),
                strict=True,
            )
        )

    def asked(self, nr_bytes: int = 0) -> tuple[int, int, int, int]:
        """The next request: command, cookie, offset, length."""
        _, flags, command, cookie, offset, length = REQUEST.unpack(self.server.recv(REQUEST.size))
        assert flags == 0
        return command, cookie, offset, length

    @property
    def lost(self) -> str:
        return reason_of(int(self.c.state["lost"][0]))


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.ours.close()
    made.server.close()


@pytest.fixture
def simple() -> Iterator[Scripted]:
    made = Scripted(structured=False)
    yield made
    made.ours.close()
    made.server.close()


def chunk(cookie: int, type_: int, data: bytes = b"", done: bool = True) -> bytes:
    flags = REPLY_FLAG_DONE if done else 0
    return STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, flags, type_, cookie, len(data)) + data


def data_chunk(cookie: int, offset: int, data: bytes, done: bool = True) -> bytes:
    return chunk(cookie, REPLY_OFFSET_DATA, offset.to_bytes(8, "big") + data, done)


def hole(cookie: int, offset: int, size: int, done: bool = True) -> bytes:
    fields = offset.to_bytes(8, "big") + size.to_bytes(4, "big")
    return chunk(cookie, REPLY_OFFSET_HOLE, fields, done)


def simple_reply(cookie: int, error: int = 0) -> bytes:
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


BYTES = bytes(range(256)) * 6


@pytest.mark.parametrize("piece", [1, 3, 19, 4000])
def test_a_structured_read_may_be_cut_anywhere(scripted: Scripted, piece: int) -> None:
    scripted.job(1, READ, 8192, (512, 1024, 512))
    assert scripted.start(1) == []
    command, cookie, offset, length = scripted.asked()
    assert (command, offset, length) == (CMD_READ, 8192, 2048)
    said = (
        data_chunk(cookie, 8192 + 1000, BYTES[1000:1500], False)
        + hole(cookie, 8192 + 1500, 548, False)
        + data_chunk(cookie, 8192, BYTES[:1000], False)
        + chunk(cookie, REPLY_NONE)
    )
    answers = []
    for at in range(0, len(said), piece):
        assert answers == []
        answers = scripted.say(said[at : at + piece])
    assert answers == [(1, OKAY)] and not scripted.lost
    got = b"".join(
        scripted.pages[1, at, :size].tobytes() for at, size in enumerate((512, 1024, 512))
    )
    assert got == BYTES[:1500] + bytes(548)
    assert (scripted.pages[1, 0, 512:] == 0xEE).all() and (scripted.pages[1, 2, 512:] == 0xEE).all()


@pytest.mark.parametrize("piece", [1, 5, 4000])
def test_simple_replies_may_be_cut_and_come_in_any_order(simple: Scripted, piece: int) -> None:
    simple.job(0, READ, 0, (512,))
    simple.job(1, WRITE, 512, (512, 512))
    simple.job(2, READ, 4096, (512,))
    simple.pages[1, 0], simple.pages[1, 1] = 1, 2
    assert simple.start(0, 1, 2) == []
    _, first, _, _ = simple.asked()
    command, second, offset, length = simple.asked()
    assert (command, offset, length) == (CMD_WRITE, 512, 1024)
    assert simple.server.recv(1024) == b"\1" * 512 + b"\2" * 512
    _, third, _, _ = simple.asked()
    said = (
        simple_reply(third) + b"c" * 512 + simple_reply(second) + simple_reply(first) + b"a" * 512
    )
    answers = []
    for at in range(0, len(said), piece):
        answers += simple.say(said[at : at + piece])
    assert answers == [(2, OKAY), (1, OKAY), (0, OKAY)]
    assert simple.pages[0, 0, :512].tobytes() == b"a" * 512
    assert simple.pages[2, 0, :512].tobytes() == b"c" * 512


def test_flush_and_trim_are_asked_and_answered(scripted: Scripted) -> None:
    scripted.job(0, FLUSH, 0, ())
    scripted.job(1, DISCARD, 4096, ())
    scripted.jobs.jobs["nr_bytes"][1] = (1 << 30) + 512
    scripted.start(0, 1)
    command, flush, offset, length = scripted.asked()
    assert (command, offset, length) == (CMD_FLUSH, 0, 0)
    command, trim, offset, length = scripted.asked()
    assert (command, offset, length) == (CMD_TRIM, 4096, 1 << 30)
    assert scripted.say(simple_reply(flush) + chunk(trim, REPLY_NONE)) == [(0, OKAY)]
    command, trim, offset, length = scripted.asked()
    assert (command, offset, length) == (CMD_TRIM, 4096 + (1 << 30), 512)
    assert scripted.say(chunk(trim, REPLY_NONE)) == [(1, OKAY)]


def test_what_the_server_has_not_is_an_error() -> None:
    scripted = Scripted()
    connect(scripted.c, scripted.ours.fileno(), Export(1 << 20, FLAG_HAS_FLAGS))
    scripted.job(0, FLUSH, 0, ())
    scripted.job(1, DISCARD, 0, ())
    assert scripted.start(0, 1) == [(0, FAILED), (1, FAILED)]
    scripted.ours.close()
    scripted.server.close()


def test_a_request_is_cut_at_what_the_server_takes() -> None:
    scripted = Scripted(max_payload=1024)
    scripted.job(0, READ, 0, (512, 512, 512))
    scripted.start(0)
    _, cookie, offset, length = scripted.asked()
    assert (offset, length) == (0, 1024)
    assert scripted.say(data_chunk(cookie, 0, b"a" * 1024)) == []
    _, cookie, offset, length = scripted.asked()
    assert (offset, length) == (1024, 512)
    assert scripted.say(data_chunk(cookie, 1024, b"b" * 512)) == [(0, OKAY)]
    assert scripted.pages[0, 1, 0] == ord("a") and scripted.pages[0, 2, 0] == ord("b")
    scripted.ours.close()
    scripted.server.close()


@pytest.mark.parametrize(
    "error",
    [
        chunk(0, REPLY_ERROR, ERROR.pack(5, 3) + b"bad"),
        chunk(0, REPLY_ERROR_OFFSET, ERROR.pack(28, 0) + bytes(8)),
        chunk(0, 0x8077, ERROR.pack(5, 0)),
        chunk(0, REPLY_ERROR, ERROR.pack(0, 0)),
    ],
)
def test_an_error_chunk_is_that_requests_error(scripted: Scripted, error: bytes) -> None:
    scripted.job(0, READ, 0, (512,))
    scripted.job(1, READ, 0, (512,))
    scripted.start(0, 1)
    _, bad, _, _ = scripted.asked()
    _, good, _, _ = scripted.asked()
    error = error[:8] + bad.to_bytes(8, "big") + error[16:]
    assert scripted.say(error + data_chunk(good, 0, b"g" * 512)) == [(0, FAILED), (1, OKAY)]
    assert scripted.c.failures[READ].sum() == 1


def test_a_read_of_which_some_is_missing_is_an_error(scripted: Scripted) -> None:
    scripted.job(0, READ, 0, (512,))
    scripted.start(0)
    _, cookie, _, _ = scripted.asked()
    assert scripted.say(data_chunk(cookie, 0, b"g" * 511)) == [(0, FAILED)]
    assert scripted.c.failures[READ, 0] == 1 and not scripted.lost


@pytest.mark.parametrize(
    "said, why",
    [
        (lambda c: bytes(16), "what is no reply"),
        (lambda c: simple_reply(c + 1), "not asked"),
        (lambda c: simple_reply(c + (1 << 16)), "not asked"),
        (lambda c: simple_reply(0xFFFF), "not asked"),
        (lambda c: simple_reply(0), "not asked"),
        (simple_reply, "without their structure"),
        (lambda c: simple_reply(c, 108), "shutting down"),
        (lambda c: chunk(c, REPLY_NONE, b"x"), "no sound form"),
        (lambda c: chunk(c, REPLY_NONE, done=False), "no sound form"),
        (lambda c: chunk(c, 5, bytes(12)), "no sound form"),
        (lambda c: chunk(c, REPLY_OFFSET_DATA, bytes(8)), "no sound form"),
        (lambda c: data_chunk(c, 1023, b"x"), "no sound form"),
        (lambda c: data_chunk(c, 1535, b"xx"), "no sound form"),
        (lambda c: data_chunk(c, (1 << 64) - 1, b"xx"), "no sound form"),
        (lambda c: data_chunk(c, 1024, bytes(513)), "no sound form"),
        (lambda c: hole(c, 1024, 0), "no sound form"),
        (lambda c: hole(c, 1024, 513), "no sound form"),
        (lambda c: hole(c, 0, (1 << 32) - 1), "no sound form"),
        (lambda c: hole(c, 1024, 9, False) + hole(c, 1032, 9), "same bytes twice"),
        (lambda c: chunk(c, REPLY_ERROR, b"1234"), "no sound form"),
        (lambda c: chunk(c, REPLY_ERROR, ERROR.pack(5, 9) + b"short"), "no sound form"),
        (lambda c: chunk(c, REPLY_ERROR, bytes(9000)), "no sound form"),
    ],
)
def test_a_broken_server_loses_the_connection(scripted, said, why) -> None:  # type: ignore[no-untyped-def]
    scripted.job(0, READ, 1024, (512,))
    scripted.start(0)
    _, cookie, _, _ = scripted.asked()
    assert scripted.say(said(cookie)) == []
    assert why in scripted.lost
    assert (scripted.pages[0, 1:] == 0xEE).all() and (scripted.pages[0, 0, 512:] == 0xEE).all()


def test_a_server_that_ends_it_is_seen(scripted: Scripted) -> None:
    scripted.server.close()
    scripted.go_on(scripted.rows)
    assert scripted.lost == "the server ended it"


@pytest.mark.parametrize("before", [0, 10, 100])
def test_what_comes_too_late_reaches_no_page(simple: Scripted, before: int) -> None:
    """Part of the reply may have come before its job was given up."""
    simple.c.state["timeout_ns"] = 1
    simple.job(0, READ, 0, (512,))
    simple.c.state["received_ns"] = 1 << 62  # something else has just come
    simple.start(0)
    _, cookie, _, _ = simple.asked()
    said = simple_reply(cookie) + b"x" * 512
    simple.c.slots["due_ns"] = simple.c.state["deadline_ns"] = 1 << 62
    assert simple.say(said[:before]) == [] if before else True
    simple.c.state["received_ns"] = 1 << 62
    simple.c.slots["due_ns"] = simple.c.state["deadline_ns"] = 1
    assert simple.answers(simple.go_on(simple.rows)) == [(0, FAILED)]
    assert not simple.lost
    simple.pages[:] = 0xEE
    simple.c.state["timeout_ns"] = 30 * S
    simple.job(0, READ, 4096, (512,))
    simple.start(0)
    _, again, _, _ = simple.asked()
    assert again != cookie
    assert simple.say(said[before:]) == [] and not simple.lost
    assert (simple.pages == 0xEE).all()
    assert simple.say(simple_reply(again) + b"y" * 512) == [(0, OKAY)]
    assert simple.pages[0, 0, 0] == ord("y")


def test_a_server_that_says_nothing_is_lost(scripted: Scripted) -> None:
    scripted.c.state["timeout_ns"] = 1
    scripted.job(0, READ, 0, (512,))
    scripted.start(0)
    assert scripted.answers(scripted.go_on(scripted.rows)) == [(0, FAILED)]
    assert scripted.lost == "the server says nothing"


def test_what_was_on_its_way_is_sent_again_once(scripted: Scripted) -> None:
    for slot in range(2):
        scripted.job(slot, READ, slot * 512, (512,))
    scripted.start(0)
    _, old, _, _ = scripted.asked()
    assert scripted.lose(scripted.rows) == 0
    assert scripted.start(1) == []  # waits
    connect(scripted.c, scripted.ours.fileno(), Export(1 << 30, FLAGS, True))
    scripted.go_on(scripted.rows)
    _, first, offset, _ = scripted.asked()
    assert offset == 0 and first != old
    _, second, offset, _ = scripted.asked()
    assert offset == 512
    assert scripted.answers(scripted.lose(scripted.rows)) == [(0, FAILED)]
    connect(scripted.c, scripted.ours.fileno(), Export(1 << 30, FLAGS, True))
    scripted.go_on(scripted.rows)
    _, again, offset, _ = scripted.asked()
    assert offset == 512 and again not in (first, second)
    assert scripted.say(data_chunk(old, 0, bytes(512))) == []
    assert "not asked" in scripted.lost


def test_more_than_the_socket_takes_is_sent_by_and_by(scripted: Scripted) -> None:
    scripted.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for slot in range(4):
        scripted.job(slot, WRITE, slot << 20, (4096,) * 11)
        scripted.pages[slot] = slot
    scripted.start(0, 1, 2, 3)
    scripted.server.settimeout(0.05)
    got = b""
    while len(got) < 4 * (28 + 45056):
        try:
            got += scripted.server.recv(1 << 20)
        except TimeoutError:
            scripted.go_on(scripted.rows)
    at = 0
    for slot in range(4):
        assert REQUEST.unpack_from(got, at)[4:] == (slot << 20, 45056)
        assert got[at + 28 : at + 28 + 45056] == bytes([slot]) * 45056
        at += 28 + 45056
