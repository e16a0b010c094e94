"""Attacks on the store, and through it on dom0, which watches the frontend's state."""

import contextlib
import itertools
import socket
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from common import abi, xenbus
from common.xenstore_wire import MessageType, Packet, Parser, pack, pack_strings
from hostile.attacker import Attacker
from hostile.hypercall_door import RANDOM_SEED

CROWD: Final = 1 << 20
LEVELS: Final = 950  # two bytes each: within a path's 2,048
PIPELINED: Final = 64
RECEIVE_BYTES: Final = 1 << 16
STATES: Final = (b"1", b"3", b"4", b"5", b"6", b"4", b"0", b"rubbish")


class Wire:
    """The protocol, without its manners. Raises OSError when cut off."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._parser, self.tx_ids = sock, Parser(), list[int]()
        self._answers = list[Packet]()

    def send(self, *requests: tuple[MessageType, bytes], tx_id: int = 0) -> None:
        """Several at once; nothing is read."""
        self._socket.sendall(b"".join(pack(Packet(kind, 1, tx_id, p)) for kind, p in requests))

    def answers(self, count: int) -> list[Packet]:
        """The next answers; events between them are dropped."""
        while len(self._answers) < count:
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError("cut off")
            found = self._parser.feed(data)
            self._answers += [p for p in found if p.type != MessageType.WATCH_EVENT]
        taken, self._answers = self._answers[:count], self._answers[count:]
        return taken

    def ask(self, *requests: tuple[MessageType, bytes], tx_id: int = 0) -> list[Packet]:
        """Several at once, and their answers."""
        self.send(*requests, tx_id=tx_id)
        return self.answers(len(requests))

    def begin(self) -> int:
        """A transaction; 0 if there is none to have."""
        payload = self.ask((MessageType.TRANSACTION_START, b"\0"))[0].payload.rstrip(b"\0")
        return int(payload) if payload.isdigit() else 0

    def end(self, tx_id: int) -> None:
        """Commit it."""
        self.ask((MessageType.TRANSACTION_END, b"T\0"), tx_id=tx_id)


def _for_ever(me: Attacker, requests: Sequence[tuple[MessageType, bytes]]) -> Iterator[None]:
    wire = Wire(me.store)
    while True:
        for start in range(0, len(requests), PIPELINED):
            some = requests[start : start + PIPELINED]
            wire.ask(*some)
            me.stroke(len(some))
            yield


def readers(me: Attacker) -> Iterator[None]:
    """Reads and listings at full speed."""
    path = me.frontend_path.encode() + b"\0"
    asked = [(MessageType.READ, path[:-1] + b"/state\0"), (MessageType.DIRECTORY, path)]
    return _for_ever(me, asked * (PIPELINED // 2))


def _deep() -> bytes:
    return b"/".join([b"d"] * LEVELS) + b"\0"


def deep(me: Attacker) -> Iterator[None]:
    """A path of 950 levels made, and removed at its root."""
    return _for_ever(me, [(MessageType.MKDIR, _deep()), (MessageType.RM, b"d\0")])


def deep_commits(me: Attacker) -> Iterator[None]:
    """The same in transactions, each of which touches them all."""
    wire = Wire(me.store)
    while True:
        tx_id = wire.begin()
        wire.ask((MessageType.MKDIR, _deep()), (MessageType.RM, b"d\0"), tx_id=tx_id)
        wire.ask((MessageType.WRITE, _deep() + b"x"), tx_id=tx_id)
        wire.end(tx_id)
        wire.ask((MessageType.RM, b"d\0"))
        me.stroke()
        yield


def watches(me: Attacker) -> Iterator[None]:
    """As many watches as it may have, all of which each write fires; taken back, and again."""
    path = me.frontend_path.encode()
    tokens = [b"%0200d" % number for number in range(130)]
    on = [(MessageType.WATCH, pack_strings(path, token)) for token in tokens]
    off = [(MessageType.UNWATCH, pack_strings(path, token)) for token in tokens]
    writes = [(MessageType.WRITE, path + b"/mine\0x")] * PIPELINED
    return _for_ever(me, [*on, *writes, *off])


def conflicts(me: Attacker) -> Iterator[None]:
    """All the transactions it may have, each in the way of the others and of its own disk."""
    wire, state = Wire(me.store), me.frontend_path.encode() + b"/state"
    changes = [(MessageType.READ, state + b"\0"), (MessageType.WRITE, state + b"\0" + b"1")]
    while True:
        open_now = [tx_id for tx_id in (wire.begin() for _ in range(12)) if tx_id]
        for tx_id in open_now:
            wire.ask(*changes, tx_id=tx_id)
        for tx_id in open_now:
            wire.end(tx_id)
            me.stroke()
        yield


def unread(me: Attacker) -> Iterator[None]:
    """Requests with the largest answers, and watches that fire, and it reads nothing."""
    path = me.frontend_path.encode()
    value = bytes(1800)
    watch = [(MessageType.WATCH, pack_strings(path, b"%0900d" % n)) for n in range(128)]
    asked = [(MessageType.WRITE, path + b"/x\0" + value), (MessageType.READ, path + b"/x\0")]
    me.store.setblocking(False)
    bytes_left = b"".join(pack(Packet(kind, 1, 0, payload)) for kind, payload in watch)
    endless = b"".join(pack(Packet(kind, 1, 0, payload)) for kind, payload in asked * 8)
    while True:
        with contextlib.suppress(BlockingIOError):
            bytes_left = bytes_left[me.store.send(bytes_left) :]
            me.stroke()
        bytes_left = bytes_left or endless
        yield


def garbage(me: Attacker) -> Iterator[None]:
    """Requests of chance, then a stream that is none."""
    rng, wire = np.random.default_rng(RANDOM_SEED), Wire(me.store)
    for _ in range(500):
        kind = int(rng.integers(0, 30))
        payload = rng.bytes(int(rng.integers(0, 300)))
        wire.send((kind, payload), tx_id=int(rng.integers(0, 3)))  # type: ignore[arg-type]
        wire.answers(1)
        me.stroke()
        yield
    while True:
        me.stroke()  # before: it may be the death of it
        me.store.sendall(rng.bytes(4096))
        yield


def flapping(me: Attacker) -> Iterator[None]:
    """Every state there is, and none, at full speed, with what a ring needs in place."""
    path = me.frontend_path.encode()
    keys = ((b"ring-ref", b"8"), (b"event-channel", b"1"), (b"protocol", b"x86_64-abi"))
    me.grant.view(np.uint32)[16:18] = (abi.GTF_PERMIT_ACCESS, 0)  # gref 8: frame 0, for domain 0
    Wire(me.store).ask(*((MessageType.WRITE, path + b"/" + k + b"\0" + v) for k, v in keys))
    return _for_ever(me, [(MessageType.WRITE, path + b"/state\0" + state) for state in STATES])


def crowd(me: Attacker) -> Iterator[None]:
    """Nodes without end in the directory that dom0 looks at; now and then all are gone."""
    wire, path = Wire(me.store), me.frontend_path.encode()
    for start in itertools.count(0, PIPELINED):
        names = [b"%s/crowd/n%d" % (path, number) for number in range(start, start + PIPELINED)]
        wire.ask(*((MessageType.WRITE, name + b"\0" + bytes(500)) for name in names))
        me.stroke(PIPELINED)
        if start % CROWD == 0:
            wire.ask((MessageType.RM, path + b"/crowd\0"))
        yield


def permissions(me: Attacker) -> Iterator[None]:
    """Its disk's nodes given away, shut, and their parents removed."""
    path = me.frontend_path.encode()
    state = path + b"/state"
    return _for_ever(
        me,
        [
            (MessageType.SET_PERMS, pack_strings(state, b"n0", b"w1", b"b2")),
            (MessageType.SET_PERMS, pack_strings(state, b"n%d" % me.config.domid)),
            (MessageType.RM, path + b"\0"),
            (MessageType.WRITE, state + b"\0" + b"1"),
            (MessageType.SET_PERMS, pack_strings(state, b"n%d" % me.config.domid, b"r0")),
        ],
    )


def vanishing(me: Attacker) -> Iterator[None]:
    """It publishes its ring, and is gone while dom0 maps it."""
    vbd = me.plug()
    for _ in me.follow(vbd, xenbus.INITIALISED, xenbus.CONNECTED, xenbus.CLOSED):
        yield
    me.stroke()
    me.hypercalls.shutdown(socket.SHUT_RDWR)
    yield
