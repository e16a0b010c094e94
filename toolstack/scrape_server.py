"""Metrics over HTTP/1.1, on a unix socket or a loopback port: GET /metrics, and nothing else.

Owns: the listening socket, and how little a client may take: of bytes, of time, of connections. A
client is anybody on this host who reaches the socket, and is believed nothing.
Rules
1. One request a connection, whose head is HEAD_MAX at most and here within HEAD_S; all of it is
   over within CLIENT_S. CLIENTS_MAX at once: more are closed unheard.
2. Clients that ask at the same time are told the same: the machine is looked at once.
"""

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Final

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from toolstack.failures import MachineError
from toolstack.loadspec import ConfigError
from toolstack.names import SOCKET_PATH_MAX

PATH: Final = "/metrics"
LOOPBACK: Final = "127.0.0.1"
HEAD_MAX: Final = 8 << 10
HEAD_S: Final = 5.0
CLIENT_S: Final = 30.0
CLIENTS_MAX: Final = 32
OWNERS_ONLY: Final = 0o177

Answer = tuple[HTTPStatus, bytes]


def listen_at(path: str) -> socket.socket:
    """A listening socket of the user's alone at `path`, in place of one that nobody listens at.

    Raises ConfigError.
    """
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise ConfigError(f"socket: '{path}' is longer than {SOCKET_PATH_MAX} bytes")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(OWNERS_ONLY)
    try:
        _remove_stale(path)
        listener.bind(path)
        listener.listen(CLIENTS_MAX)
    except OSError as error:
        listener.close()
        raise ConfigError(f"socket: '{path}' cannot be made: {error.strerror}") from None
    except ConfigError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"socket: '{path}' is there already, and no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise ConfigError(f"socket: '{path}' is there already, and somebody listens")


def listen_on(port: int) -> socket.socket:
    """A listening socket on a port of loopback; 0: any that is free. Raises ConfigError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen(CLIENTS_MAX)
    except OSError as error:
        listener.close()
        raise ConfigError(f"port: {port} cannot be listened on: {error.strerror}") from None
    return listener


class ScrapeServer:
    """scrape: what is told, had anew for each; it may wait, and raise MachineError, ConfigError,
    for which clients are told that there is nothing now."""

    def __init__(self, scrape: Callable[[], bytes]) -> None:
        self._scrape = scrape
        self._clients = 0
        self._scraping: asyncio.Task[Answer] | None = None

    async def serve(self, listener: socket.socket, end: Awaitable[object]) -> None:
        """Serve until `end` comes."""
        server = await asyncio.start_server(self._meet, sock=listener, limit=HEAD_MAX)
        try:
            await end
        finally:
            server.close()  # whose last clients go with the loop

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._clients >= CLIENTS_MAX:
            writer.transport.abort()
            return
        self._clients += 1
        try:
            # Gone, or slow: it is the client's loss alone.
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(CLIENT_S):
                    writer.write(await self._answer(reader))
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()
            self._clients -= 1

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(HEAD_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        method, target, version = (*head.split(b"\r\n")[0].split(b" "), b"", b"", b"")[:3]
        if not version.startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST)
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED)
        if target.split(b"?")[0] != PATH.encode():
            return _response(HTTPStatus.NOT_FOUND, f"it is at {PATH}\n".encode())
        return _response(*await self._told(), bodiless=method == b"HEAD")

    async def _told(self) -> Answer:
        if self._scraping is None or self._scraping.done():
            self._scraping = asyncio.create_task(self._look())
        return await asyncio.shield(self._scraping)  # who leaves does not take it from others

    async def _look(self) -> Answer:
        try:
            return HTTPStatus.OK, await asyncio.to_thread(self._scrape)
        except (MachineError, ConfigError) as error:
            return HTTPStatus.SERVICE_UNAVAILABLE, f"{error}\n".encode()


def _response(status: HTTPStatus, body: bytes = b"", bodiless: bool = False) -> bytes:
    content = body or f"{status.phrase}\n".encode()
    kind = CONTENT_TYPE_PLAIN_0_0_4 if status == HTTPStatus.OK else "text/plain; charset=utf-8"
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(content)}",
        "Connection: close",
        *(["Allow: GET, HEAD"] if status == HTTPStatus.METHOD_NOT_ALLOWED else []),
    ]
    return "\r\n".join([*head, "", ""]).encode() + (b"" if bodiless else content)
