"""A disk's clients over NBD, in the guest's own loop: what they ask, and what they are told."""

import errno
import select
import socket
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

import numpy as np
import pytest

from backend.stores import RamStore
from common import nbd_wire as nbd
from common.abi import SECTOR_SIZE, XEN_PAGE_SIZE
from common.arena import Arena
from frontend.disk import Disk
from frontend.nbd_export import (
    CONNECTIONS_MAX,
    FREE,
    IOS,
    LOST,
    REQUESTS,
    begin_connection,
    export_load,
    is_over,
    new_export,
)
from frontend.pattern import UNKNOWN
from tests.frontend.answering import DISCARD, FLUSH, Answering
from tests.frontend.whole import check_whole
from tests.pair import EOPNOTSUPP, ERROR, READ, WRITE

DISK_BYTES = 1 << 20
SHARE_BYTES = IOS * XEN_PAGE_SIZE  # a frame to each I/O here
FUA = nbd.CMD_FLAG_FUA
SIMPLE = Struct(">IIQ")


class Told(NamedTuple):
    """A reply without bytes, or a chunk; at: of a chunk's bytes."""

    cookie: int
    error: int = 0
    data: bytes = b""
    at: int | None = None
    done: bool = True


class Client:
    """One end of a connection; number: the export's of the other."""

    def __init__(self, world: "World", structured: bool, came: bytes = b"") -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        theirs.setblocking(False)
        self.world, self._structured = world, structured
        states = world.export.connections["state"]
        self.number = int(np.flatnonzero(states == FREE)[0])
        begin_connection(world.export, self.number, theirs.fileno(), structured, came)
        world.pair.driver.add_connection(0, self.number, theirs.fileno())
        world.sockets.append(theirs)
        self.got = b""

    def ask(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"",
            flags: int = 0, cookie: int = 7) -> None:  # fmt: skip
        self.send(request(command, offset, length or len(data), flags, cookie) + data)

    def send(self, data: bytes) -> None:
        """All of it, while the guest works."""
        while data:
            try:
                data = data[self.socket.send(data) :]
            except BlockingIOError:
                self.world.go()

    def receive(self) -> bytes:
        """What has been sent to us, while the guest works."""
        self.world.go()
        while True:
            try:
                received = self.socket.recv(1 << 20)
            except BlockingIOError:
                return self.got
            except ConnectionResetError:
                received = b""
            self.got += received
            if not received:
                return self.got
            self.world.go()

    def is_left(self) -> bool:
        """Has the guest ended the connection?"""
        self.receive()
        try:
            return self.socket.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def told(self, *lengths: int) -> list[Told]:
        """What has come, all of it; lengths: of what simple replies to reads bring, in order."""
        self.receive()
        found, at, expected = [], 0, list(lengths)
        while at < len(self.got):
            (magic,) = Struct(">I").unpack_from(self.got, at)
            if magic == nbd.SIMPLE_REPLY_MAGIC:
                _, error, cookie = SIMPLE.unpack_from(self.got, at)
                at += SIMPLE.size
                size = expected.pop(0) if expected and not error else 0
                found.append(Told(cookie, error, self.got[at : at + size]))
                at += size
                continue
            assert self._structured and magic == nbd.STRUCTURED_REPLY_MAGIC
            _, flags, type_, cookie, size = nbd.STRUCTURED_REPLY.unpack_from(self.got, at)
            at += nbd.STRUCTURED_REPLY.size
            payload, done = self.got[at : at + size], bool(flags & nbd.REPLY_FLAG_DONE)
            at += size
            if type_ == nbd.REPLY_ERROR:
                found.append(Told(cookie, nbd.ERROR.unpack(payload)[0], done=done))
            else:
                assert type_ == nbd.REPLY_OFFSET_DATA
                start = nbd.OFFSET_DATA.unpack(payload[:8])[0]
                found.append(Told(cookie, 0, payload[8:], start, done))
        self.got = b""
        return found


def request(command: int, offset: int, length: int, flags: int = 0, cookie: int = 7) -> bytes:
    return nbd.REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length)


class World:
    """A guest's disk that is exported, and a backend by script."""

    def __init__(self, **disk: bool) -> None:
        store = RamStore(DISK_BYTES // SECTOR_SIZE)
        nr_ios = CONNECTIONS_MAX * IOS
        self.pair = Answering(nr_ios=nr_ios, frames_per_io=1, store=store)
        assert store.memory is not None
        self.memory = store.memory
        self.pair.ground.bed.poll = self._sleep  # type: ignore[method-assign]
        told = {"read_only": False, "flush_cache": True, "discard": True, **disk}
        nr_sectors = DISK_BYTES // SECTOR_SIZE
        self.versions = np.zeros(nr_sectors, np.uint32)
        described = Disk(nr_sectors, SECTOR_SIZE, True, **told)
        given = self.pair.front.ios, self.pair.buffer_frame, nr_ios
        self.export = new_export(described, nr_sectors, *given)
        self.job = export_load(Arena(1 << 16), self.versions, None)
        self.sockets: list[socket.socket] = []
        self.pair.driver.begin_export(0, self.job, self.export)
        self.rests, self.holds = False, False

    def _sleep(self, timeout_ms: int | None) -> list[object]:
        assert timeout_ms is not None
        if not self.holds:
            self.pair.serve()
        epoll = self.pair.driver._epoll
        told = epoll is not None and select.select([epoll.fileno()], [], [], 0)[0]
        self.rests = not (told or self.pair.front_is_awake())
        return []

    def go(self) -> None:
        """Until the guest sleeps, and nothing would wake it."""
        self.rests = False
        while not self.rests and self.pair.driver.running:
            self.pair.driver.turn(lambda: None)

    def client(self, structured: bool = False, came: bytes = b"") -> Client:
        return Client(self, structured, came)

    def close(self) -> None:
        self.holds = False
        self.job.load["stop"] = 1
        self.pair.driver.stir(0)
        self.go()
        assert not self.pair.driver.running
        check_whole(self.pair.front)
        self.pair.driver.end_export(0)
        for each in self.sockets:
            each.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


@pytest.fixture(params=["simple", "structured"])
def client(world: World, request: pytest.FixtureRequest) -> Client:
    return world.client(request.param == "structured")


def noise(nbytes: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


# --- what is asked for is done --------------------------------------------------------------------


def test_what_is_written_is_on_the_disk_and_is_read(world: World, client: Client) -> None:
    data = noise(4096)
    client.ask(nbd.CMD_WRITE, 8192, data=data, cookie=1)
    assert client.told() == [Told(1)]
    assert world.memory[8192 : 8192 + 4096].tobytes() == data
    client.ask(nbd.CMD_READ, 8192 + 512, 1024, cookie=2)
    (told,) = client.told(1024)
    assert (told.cookie, told.data) == (2, data[512:1536])
    assert told.at in (None, 8192 + 512)


def test_flush_trim_and_zeroes(world: World, client: Client) -> None:
    world.memory[:] = 5
    client.ask(nbd.CMD_FLUSH, cookie=1)
    client.ask(nbd.CMD_TRIM, 512, 1024, cookie=2)
    assert sorted(client.told()) == [Told(1), Told(2)]
    assert sorted(asked[:1] + asked[2:] for asked in world.pair.asked) == [
        (FLUSH, 0, 0), (DISCARD, 1, 1024 // 512)
    ]  # fmt: skip
    client.ask(nbd.CMD_WRITE_ZEROES, 4096, SHARE_BYTES * 2, flags=nbd.CMD_FLAG_NO_HOLE)
    assert client.told() == [Told(7)]
    assert not world.memory[4096 : 4096 + SHARE_BYTES * 2].any()
    assert world.memory[:4096].all() and world.memory[4096 + SHARE_BYTES * 2 :].all()


@pytest.mark.parametrize(
    ("command", "length"), [(nbd.CMD_WRITE, 3 * 4096), (nbd.CMD_WRITE_ZEROES, 8192),
                            (nbd.CMD_TRIM, 8192)]
)  # fmt: skip
def test_with_fua_a_flush_follows_all_of_it_and_then_the_answer(
    world: World, client: Client, command: int, length: int
) -> None:
    world.pair.slow.add(FLUSH)
    data = bytes(length) if command == nbd.CMD_WRITE else b""
    client.ask(command, 0, length, data, flags=FUA)
    assert client.told() == [Told(7)]
    *before, last = world.pair.operations()
    assert last == FLUSH and FLUSH not in before and before
    world.pair.statuses[FLUSH] = ERROR
    client.ask(command, 0, length, data, flags=FUA)
    assert client.told() == [Told(7, nbd.EIO)]


def test_bytes_may_come_one_by_one(world: World, client: Client) -> None:
    data = noise(1024)
    for byte in request(nbd.CMD_WRITE, 0, 1024) + data + request(nbd.CMD_READ, 0, 512, cookie=8):
        client.send(bytes([byte]))
        world.go()
    written, read = client.told(0, 512)
    assert written == Told(7) and (read.cookie, read.data) == (8, data[:512])


def test_what_came_with_the_greeting_is_heeded(world: World) -> None:
    client = world.client(came=request(nbd.CMD_WRITE, 512, 512) + b"x" * 100)
    client.send(b"x" * 412)
    assert client.told() == [Told(7)]
    assert world.memory[512:1024].tobytes() == b"x" * 512 and not world.memory[:512].any()


def test_a_request_may_be_larger_than_the_share_and_others_wait_for_it(
    world: World, client: Client
) -> None:
    data = noise(5 * SHARE_BYTES + 512)
    client.ask(nbd.CMD_WRITE, 1024, data=data, cookie=1)
    client.ask(nbd.CMD_READ, 1024, len(data), cookie=2)
    client.ask(nbd.CMD_READ, 0, 512, cookie=3)
    told = client.told(0, len(data), 512)
    assert told[0] == Told(1)
    large = [each for each in told if each.cookie == 2]
    assert b"".join(each.data for each in large) == data
    assert [each.done for each in large] == [False] * (len(large) - 1) + [True]
    assert told[-1].cookie == 3 and told[-1].data == bytes(512)


def test_many_are_under_way_at_once_and_each_has_its_own_answer(
    world: World, client: Client
) -> None:
    world.memory[:] = np.frombuffer(noise(DISK_BYTES), np.uint8)
    places = [(at * 7 % 200) * 512 for at in range(100)]
    client.send(b"".join(request(nbd.CMD_READ, at, 512, cookie=at) for at in places))
    found = client.told(*[512] * 100)
    assert sorted(each.cookie for each in found) == sorted(places)
    for each in found:
        assert each.data == world.memory[each.cookie : each.cookie + 512].tobytes()


def test_no_load_knows_what_is_written_or_gone(world: World, client: Client) -> None:
    client.ask(nbd.CMD_WRITE, 512, data=bytes(1024))
    client.ask(nbd.CMD_TRIM, 4096, 512)
    client.ask(nbd.CMD_READ, 8192, 512)
    client.receive()
    assert np.flatnonzero(world.versions).tolist() == [1, 2, 8]
    assert world.versions[1] == UNKNOWN


# --- what is not ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "flags", "offset", "length", "error"),
    [
        (nbd.CMD_READ, 0, 1, 512, errno.EINVAL),
        (nbd.CMD_READ, 0, 0, 511, errno.EINVAL),
        (nbd.CMD_READ, 0, 0, 0, errno.EINVAL),
        (nbd.CMD_READ, 0, DISK_BYTES, 512, errno.EINVAL),
        (nbd.CMD_READ, 0, (1 << 64) - 512, 1024, errno.EINVAL),
        (nbd.CMD_READ, 0, 0, nbd.PAYLOAD_MAX + 512, errno.EINVAL),
        (nbd.CMD_WRITE, 0, DISK_BYTES - 512, 1024, errno.ENOSPC),
        (nbd.CMD_WRITE, 0, 1 << 63, 512, errno.ENOSPC),
        (nbd.CMD_WRITE, 1 << 4, 0, 512, errno.EINVAL),
        (nbd.CMD_WRITE_ZEROES, 1 << 4, 0, 512, errno.EINVAL),  # FAST_ZERO is not offered
        (nbd.CMD_WRITE_ZEROES, 0, 0, DISK_BYTES + 512, errno.ENOSPC),
        (nbd.CMD_TRIM, 0, 512, DISK_BYTES, errno.EINVAL),
        (nbd.CMD_FLUSH, 0, 512, 0, errno.EINVAL),
        (nbd.CMD_FLUSH, 0, 0, 512, errno.EINVAL),
        (5, 0, 0, 512, errno.EINVAL),
        (7, 0, 0, 512, errno.EINVAL),
        (0xFFFF, 0xFFFF, (1 << 64) - 1, (1 << 32) - 1, errno.EINVAL),
    ],
)
def test_what_is_not_sound_is_refused_and_the_next_is_done(
    world: World, command: int, flags: int, offset: int, length: int, error: int
) -> None:
    client = world.client(structured=True)
    data = bytes(length) if command == nbd.CMD_WRITE else b""
    client.send(request(command, offset, length, flags, cookie=1) + data)
    assert client.told() == [Told(1, error)]
    assert world.pair.asked == []
    client.ask(nbd.CMD_READ, 0, 512, cookie=2)
    assert client.told() == [Told(2, 0, bytes(512), 0)]


def test_fua_may_be_said_with_any_command_and_is_of_those_that_write(world: World) -> None:
    client = world.client(structured=True)
    client.ask(nbd.CMD_READ, 0, 512, flags=FUA, cookie=1)
    client.ask(nbd.CMD_FLUSH, flags=FUA, cookie=2)
    assert sorted(told.error for told in client.told()) == [0, 0]
    assert world.pair.operations().count(FLUSH) == 1


@pytest.mark.parametrize("command", [nbd.CMD_WRITE, nbd.CMD_TRIM, nbd.CMD_WRITE_ZEROES])
def test_a_disk_that_is_read_only_is_not_written(command: int) -> None:
    world = World(read_only=True)
    client = world.client()
    client.ask(command, 0, 512, bytes(512) if command == nbd.CMD_WRITE else b"", cookie=1)
    client.ask(nbd.CMD_FLUSH, cookie=2)
    assert sorted(client.told()) == [Told(1, errno.EPERM), Told(2)]
    assert world.pair.operations() == [FLUSH]
    assert world.export.head["flags"][0] & nbd.FLAG_READ_ONLY
    world.close()


def test_what_the_backend_cannot_do_is_not_offered() -> None:
    world = World(flush_cache=False, discard=False)
    flags = int(world.export.head["flags"][0])
    assert not flags & (nbd.FLAG_SEND_FLUSH | nbd.FLAG_SEND_FUA | nbd.FLAG_SEND_TRIM)
    client = world.client()
    client.ask(nbd.CMD_FLUSH, cookie=1)
    client.ask(nbd.CMD_TRIM, 0, 512, cookie=2)
    client.ask(nbd.CMD_WRITE, 0, data=bytes(512), flags=FUA, cookie=3)
    assert [each.error for each in client.told()] == [errno.EINVAL] * 3
    world.close()


def test_the_backends_errors_are_told(world: World, client: Client) -> None:
    world.pair.statuses = {WRITE: ERROR, READ: ERROR, FLUSH: ERROR, DISCARD: EOPNOTSUPP}
    client.ask(nbd.CMD_WRITE, 0, data=bytes(8192), cookie=1)
    client.ask(nbd.CMD_READ, 0, 8192, cookie=2)
    client.ask(nbd.CMD_FLUSH, cookie=3)
    client.ask(nbd.CMD_TRIM, 0, 512, cookie=4)
    errors = {each.cookie: each.error for each in client.told()}
    assert errors == {1: nbd.EIO, 2: nbd.EIO, 3: nbd.EIO, 4: nbd.ENOTSUP}
    world.pair.statuses = {}
    client.ask(nbd.CMD_READ, 0, 3 * SHARE_BYTES, cookie=5)
    assert sum(len(each.data) for each in client.told(3 * SHARE_BYTES)) == 3 * SHARE_BYTES


@pytest.mark.parametrize("structured", [False, True])
def test_a_read_that_fails_halfway_is_not_told_as_done(world: World, structured: bool) -> None:
    """A simple reply has begun, and has no place for an error: the connection ends."""
    client = world.client(structured)
    client.ask(nbd.CMD_READ, 0, 3 * SHARE_BYTES)
    world.holds = True
    world.go()
    world.holds = False
    world.pair.serve()
    world.pair.statuses[READ] = ERROR
    world.go()
    if structured:
        *some, last = client.told()
        assert some and not any(each.done or each.error for each in some)
        assert last == Told(7, nbd.EIO)
        world.pair.statuses = {}
        client.ask(nbd.CMD_READ, 0, 512)
        assert [each.error for each in client.told()] == [0]
    else:
        assert client.is_left()
        assert len(client.got) < 3 * SHARE_BYTES


def test_reads_that_fail_while_more_of_them_is_under_way_take_nothing_along(
    world: World, client: Client
) -> None:
    world.pair.slow.add(READ)  # piece by piece
    world.pair.statuses[READ] = ERROR
    for cookie in range(2 * IOS):
        client.ask(nbd.CMD_READ, 0, 4 * XEN_PAGE_SIZE, cookie=cookie)
    assert sorted(client.told()) == [Told(cookie, nbd.EIO) for cookie in range(2 * IOS)]
    c = world.export.connections[client.number]
    assert (c["free_ios"], c["free_requests"]) == (IOS, REQUESTS)
    world.pair.slow.clear()
    world.pair.statuses.clear()
    client.ask(nbd.CMD_READ, 0, SHARE_BYTES, cookie=1)
    assert sum(len(each.data) for each in client.told(SHARE_BYTES)) == SHARE_BYTES


# --- one hurts itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\0" * 28,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        request(nbd.CMD_WRITE, 0, nbd.PAYLOAD_MAX + 1),
        request(nbd.CMD_WRITE, 0, (1 << 32) - 1),
    ],
)
def test_what_is_no_request_loses_its_connection_alone(world: World, sent: bytes) -> None:
    honest, client = world.client(), world.client()
    client.send(sent)
    assert client.is_left() and client.got == b""
    assert is_over(world.export, client.number)
    honest.ask(nbd.CMD_READ, 0, 512)
    assert honest.told(512) == [Told(7, 0, bytes(512))]


def test_who_does_not_read_holds_up_itself_alone(world: World) -> None:
    honest, client = world.client(), world.client()
    for at in range(64):  # as much as goes in, and no more is looked at
        client.socket.send(request(nbd.CMD_READ, 0, DISK_BYTES // 2, cookie=at))
        world.go()
    for _ in range(3):
        honest.ask(nbd.CMD_WRITE, 0, data=noise(SHARE_BYTES))
        assert honest.told() == [Told(7)]
    world.memory[:512] = 9
    wanted = 64 * (SIMPLE.size + DISK_BYTES // 2)
    while len(client.got) < wanted:
        client.receive()
    assert [each.cookie for each in client.told(*[DISK_BYTES // 2] * 64)] == list(range(64))


def test_who_goes_with_much_under_way_is_waited_for(world: World) -> None:
    client = world.client()
    world.holds = True
    client.send(b"".join(request(nbd.CMD_WRITE, at * 512, 512) + b"y" * 512 for at in range(20)))
    client.send(request(nbd.CMD_WRITE, 1 << 16, 8192) + b"z" * 5000)  # and not the rest
    world.go()
    client.socket.close()
    world.go()
    assert world.export.connections["state"][client.number] == LOST
    assert not is_over(world.export, client.number)
    world.holds = False
    world.go()
    world.pair.serve()
    world.go()
    assert is_over(world.export, client.number)
    world.export.connections["state"][client.number] = FREE
    other = world.client()  # in its place
    assert other.number == client.number
    other.ask(nbd.CMD_READ, 512, 512)
    assert other.told(512) == [Told(7, 0, b"y" * 512)]


def test_a_farewell_comes_after_all_answers(world: World, client: Client) -> None:
    client.ask(nbd.CMD_WRITE, 0, data=noise(SHARE_BYTES * 2), cookie=1)
    client.ask(nbd.CMD_DISC)
    client.ask(nbd.CMD_READ, 0, 512, cookie=2)  # too late
    assert client.told() == [Told(1)]
    assert client.is_left()


@pytest.mark.parametrize("nbytes", [512, SHARE_BYTES * 2])
def test_the_end_of_its_sending_is_a_farewell(world: World, client: Client, nbytes: int) -> None:
    """Also where it is told of together with the last that was sent."""
    client.ask(nbd.CMD_READ, 0, nbytes)
    client.socket.shutdown(socket.SHUT_WR)
    assert sum(len(each.data) for each in client.told(nbytes)) == nbytes
    assert client.is_left()


def test_who_exports_leaves_cpus_to_the_clients_and_spins_as_before_after_it() -> None:
    world = World()
    spin, before = world.pair.spin, world.pair.driver._spun_alone
    assert {"patience_max_ns", "patience_ns", "nap_share"} == before.keys()
    assert not any(spin[name][0] for name in before)
    world.close()
    assert {name: spin[name][0] for name in before} == before
