"""NBD URIs (`doc/uri.md` of NetworkBlockDevice/nbd), as far as there is no TLS.

Owns: the two forms, and what is said of a text that has neither.
"""

import re
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote_to_bytes, urlsplit

STRING_MAX: Final = 4096  # bytes of a name or a message, as the protocol has it
PORT: Final = 10809
SOCKET_PATH_MAX: Final = 107  # bytes in a `sockaddr_un`, less the NUL
FORMS: Final = "nbd+unix:///NAME?socket=PATH or nbd://HOST[:PORT]/NAME"


class NbdUri(NamedTuple):
    """name: of the export, may be empty; socket: a path (or "\\0" and an abstract name), or "" if
    it is host and port."""

    name: str
    socket: str
    host: str
    port: int


def parse_nbd_uri(text: str) -> NbdUri:
    """Raises ValueError, in one line, if it is none, or asks for what there is not."""
    try:
        split = urlsplit(text)
        if split.scheme in ("nbds", "nbds+unix"):
            raise ValueError(f"there is no TLS: {FORMS}")
        if split.scheme not in ("nbd", "nbd+unix"):
            raise ValueError(f"it is not {FORMS}")
        if split.fragment or re.search(r"[\s\x00]", text):
            raise ValueError("no # and no blanks: they are written %23 and %20")
        name = _decoded(split.path.removeprefix("/"), "the name of the export")
        if len(name.encode()) > STRING_MAX or "\0" in name:
            raise ValueError(f"the name of an export has at most {STRING_MAX} bytes and no NUL")
        return _of_socket(split, name) if split.scheme == "nbd+unix" else _of_host(split, name)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from error


def _of_socket(split: SplitResult, name: str) -> NbdUri:
    """`nbd+unix:///NAME?socket=PATH`."""
    if split.netloc:
        raise ValueError("a unix socket has no host: nbd+unix:///NAME?socket=PATH, three slashes")
    given = (
        parse_qsl(split.query, keep_blank_values=True, strict_parsing=True) if split.query else []
    )
    if [key for key, _ in given] != ["socket"]:
        raise ValueError("one parameter is needed, and no other: ?socket=PATH")
    # Not what parse_qsl made of it: it takes + for a blank, which URIs do not.
    path = _decoded(split.query.partition("=")[2], "the socket's path")
    if not 0 < len(path.encode()) <= SOCKET_PATH_MAX or "\0" in path[1:]:
        raise ValueError(f"a socket's path has 1 to {SOCKET_PATH_MAX} bytes")
    return NbdUri(name, path, "", 0)


def _of_host(split: SplitResult, name: str) -> NbdUri:
    """`nbd://HOST[:PORT]/NAME`."""
    if split.query:
        raise ValueError("parameters are for nbd+unix: nbd://HOST[:PORT]/NAME")
    if not split.hostname or "@" in split.netloc:
        raise ValueError("a host is needed, and no user: nbd://HOST[:PORT]/NAME")
    port = split.port  # raises ValueError
    if port == 0:
        raise ValueError("a port is 1 to 65535")
    return NbdUri(name, "", _decoded(split.hostname, "the host"), port or PORT)


def _decoded(text: str, what: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise ValueError(f"{what}: % is followed by two hex digits, or written %25")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8") from error
