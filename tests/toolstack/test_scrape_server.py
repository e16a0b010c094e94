"""Metrics over HTTP: what a scraper gets, and how little anybody else can take."""

import asyncio
import http.client
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S, eventually
from toolstack import scrape_server
from toolstack.failures import MachineError
from toolstack.loadspec import ConfigError
from toolstack.scrape_server import CLIENTS_MAX, HEAD_MAX, ScrapeServer, listen_at, listen_on


class Served:
    """A server on a thread; what it tells is how often it has been asked."""

    def __init__(self) -> None:
        self.scrapes = 0
        self.error: Exception | None = None
        self.told = b""
        self.may_answer = threading.Event()
        self.may_answer.set()
        listener = listen_on(0)
        self.address: tuple[str, int] = listener.getsockname()
        self._loop = asyncio.new_event_loop()
        self._end = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(listener,))
        self._thread.start()

    def _run(self, listener: socket.socket) -> None:
        serving = ScrapeServer(self._scrape).serve(listener, self._end)
        asyncio.set_event_loop(self._loop)
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(serving)

    def _scrape(self) -> bytes:
        self.scrapes += 1
        assert self.may_answer.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return self.told or f"scrapes {self.scrapes}\n".encode()

    def end(self) -> None:
        self.may_answer.set()
        self._loop.call_soon_threadsafe(self._end.set_result, None)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def connection(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE_S)

    def has_room(self) -> bool:
        """For one more client?"""
        try:
            return self.ask()[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def ask(self, method: str = "GET", path: str = "/metrics") -> tuple[int, str, bytes]:
        client = http.client.HTTPConnection(*self.address, timeout=PATIENCE_S)
        client.request(method, path)
        response = client.getresponse()
        body = response.read()
        client.close()
        return response.status, response.headers["Content-Type"], body


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.end()


def rest_of(client: socket.socket) -> bytes:
    """All that still comes, until the other end closes."""
    parts = []
    try:
        while part := client.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:  # closed with something unread
        pass
    return b"".join(parts)


def test_a_scraper_gets_what_is_so_now(served: Served) -> None:
    kind = "text/plain; version=0.0.4; charset=utf-8"
    assert served.ask() == (200, kind, b"scrapes 1\n")
    assert served.ask(path="/metrics?name=x") == (200, kind, b"scrapes 2\n")
    assert served.ask("HEAD") == (200, kind, b"")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/metrics", 405)]
)
def test_there_is_nothing_else(method: str, path: str, status: int, served: Served) -> None:
    assert served.ask(method, path)[0] == status
    assert served.scrapes == 0


def test_while_the_machine_does_not_answer_the_reason_is_told(served: Served) -> None:
    served.error = MachineError("its keeper does not answer")
    assert served.ask()[::2] == (503, b"its keeper does not answer\n")
    served.error = None
    assert served.ask()[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x00\xff\x00\r\n\r\n", b"400"),
        (b"\r\n\r\n", b"400"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nX: " + bytes(2 * HEAD_MAX), b"431"),
    ],
)
def test_what_is_no_request_is_refused(sent: bytes, status: bytes, served: Served) -> None:
    with served.connection() as client:
        client.sendall(sent)
        assert rest_of(client).split(b" ")[1] == status
    assert served.ask()[0] == 200


def test_who_asks_slowly_is_left(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape_server, "HEAD_S", 0.1)
    monkeypatch.setattr(scrape_server, "CLIENT_S", 1000.0)
    with served.connection() as client:
        client.sendall(b"GET /metr")
        assert rest_of(client) == b""
    assert served.scrapes == 0


def test_who_does_not_read_is_left(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrape_server, "CLIENT_S", 0.3)
    monkeypatch.setattr(scrape_server, "CLIENTS_MAX", 1)
    served.told = bytes(16 << 20)  # more than a socket holds
    with served.connection() as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: served.scrapes == 1)
        served.told = b"x 1\n"
        eventually(served.has_room)


def test_more_clients_than_may_be_are_closed_unheard_and_room_is_made_again(
    served: Served,
) -> None:
    waiting = [served.connection() for _ in range(CLIENTS_MAX)]
    for client in waiting:
        client.sendall(b"GET")
    with served.connection() as one_more:
        one_more.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert rest_of(one_more) == b""
    for client in waiting:
        client.close()

    eventually(served.has_room)


def test_who_asks_at_the_same_time_is_told_the_same(served: Served) -> None:
    served.may_answer.clear()
    clients = [served.connection() for _ in range(4)]
    for client in clients:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    for _ in range(3):  # rounds of the loop, after which all four wait
        assert served.ask(path="/")[0] == 404
    clients.pop().close()  # who leaves takes nothing from the others
    served.may_answer.set()
    for client in clients:
        assert rest_of(client).endswith(b"\r\n\r\nscrapes 1\n")
    for client in clients:
        client.close()


def test_who_is_left_while_he_waits_takes_nothing_from_the_others(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.may_answer.clear()
    monkeypatch.setattr(scrape_server, "CLIENT_S", 0.2)
    with served.connection() as first, served.connection() as second:
        first.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        eventually(lambda: served.scrapes == 1)
        monkeypatch.setattr(scrape_server, "CLIENT_S", 1000.0)
        with served.connection() as third:
            third.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert rest_of(first) == rest_of(second) == b""
            served.may_answer.set()
            assert rest_of(third).endswith(b"\r\n\r\nscrapes 1\n")


# --- where it listens -----------------------------------------------------------------------------


def test_a_socket_is_the_user_s_alone_and_takes_the_place_of_a_dead_one(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listen_at(path).close()  # which leaves its name
    listener = listen_at(path)
    assert os.lstat(path).st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="is there already, and somebody listens"):
        listen_at(path)
    listener.close()


def test_no_file_is_lost_to_a_socket(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for path, said in {
        str(file): "is there already, and no socket",
        str(tmp_path / "no" / "s"): "cannot be made: No such file or directory",
        str(tmp_path / ("x" * 108)): "is longer than 107 bytes",
    }.items():
        with pytest.raises(ConfigError, match=said):
            listen_at(path)
    assert file.read_text() == "mine"


def test_a_port_that_is_taken_is_an_error_by_name() -> None:
    with listen_on(0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^port: {port} cannot be listened on: Address"):
            listen_on(port)
