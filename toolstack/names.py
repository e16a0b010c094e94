"""Machines by name: where one that stays lives, whether it does, and who may talk to it.

Owns: the form of a name, the directory kept under it, and how its control socket is reached.
Rules
1. Who makes a machine's directory has the name; while its keeper lives it holds a lock on it
   (flock), which no death can leave behind. A directory that nobody has locked is what a `kill -9`
   left, and goes when the name is asked for next.
2. Both ends look who the other is (SO_PEERCRED): a machine is its user's alone.
"""

import fcntl
import os
import re
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from toolstack.failures import MachineError
from toolstack.janitor import remove
from toolstack.loadspec import ConfigError, shown

DEFAULT: Final = "default"
FORM: Final = "1..32 letters, digits, dots, dashes and underscores, a letter or digit first"
PREFIX: Final = "grantlab."
CONTROL: Final = "control"
LOG: Final = "log"
SOCKET_PATH_MAX: Final = 107  # sun_path, less its final zero
SOCKET_NAME_MAX: Final = len("/events-32752/4095")
CONNECT_TIMEOUT_S: Final = 10.0
BACKLOG: Final = 64
TRIES: Final = 100

_UCRED: Final = struct.Struct("3i")  # pid, uid, gid
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


class NoSuchMachine(ConfigError):
    """There is none of this name; the text says so, and which there are."""


def checked_name(name: str) -> str:
    """`name`, if a machine can be called so. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name: {shown(name)} is not {FORM}")
    return name


def run_path(ending: str) -> str:
    """Where a machine's run directory is that ends like this: in the user's runtime directory, or
    in /tmp where that is too long for a socket's name."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    path = os.path.join(base, ending)
    if len(path) + SOCKET_NAME_MAX > SOCKET_PATH_MAX:
        path = os.path.join("/tmp", ending)
    return path


def directory_of(name: str) -> str:
    """The run directory of the machine of that name."""
    return run_path(PREFIX + checked_name(name))


def machine_names() -> list[str]:
    """The names of this user's machines that live."""
    places = {os.path.dirname(directory_of("x" * length)) for length in (1, 32)}
    found = {path.name for place in places for path in Path(place).glob(f"{PREFIX}*")}
    mine = [name.removeprefix(PREFIX) for name in sorted(found)]
    return [name for name in mine if _NAME.fullmatch(name) and _is_mine(name) and lives(name)]


def _is_mine(name: str) -> bool:
    try:
        return os.lstat(directory_of(name)).st_uid == own_uid()
    except OSError:
        return False


def lives(name: str) -> bool:
    """Does its keeper? Raises ConfigError if it is another user's."""
    path = directory_of(name)
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return False
    if owner != own_uid():
        raise ConfigError(f"machine {name!r} is another user's (uid {owner})")
    with _locked(path) as ours:
        return not ours


@contextmanager
def _locked(path: str) -> Iterator[bool]:
    """Has nobody else the directory locked? Then it is ours meanwhile."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        yield True
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(fd)


def take_name(name: str) -> int:
    """Make the directory of `name`, which is ours as long as the descriptor returned is open.

    Raises MachineError if there is such a machine already, and where it cannot be made.
    """
    path, why = directory_of(name), ""
    for _ in range(TRIES):  # somebody else may want the same name at this moment
        if lives(name):
            raise MachineError(f"machine {name!r} is up already; `down {name}` puts it down")
        remove(path)  # of one that was killed
        try:
            os.mkdir(path, 0o700)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            why = error.strerror or ""
            continue
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.lstat(path)):
                return fd
        os.close(fd)
    raise MachineError(f"cannot make the run directory {path}: {why}")


def listen(directory: str) -> socket.socket:
    """The control socket of the machine whose directory this is."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(os.path.join(directory, CONTROL))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def connect_to(name: str) -> socket.socket:
    """A connection to the keeper of `name`, with CONNECT_TIMEOUT_S for what it says first. Raises
    NoSuchMachine, ConfigError, MachineError."""
    path = directory_of(name)
    if not lives(name):
        there = ", ".join(machine_names()) or "none"
        was_killed = os.path.lexists(path)
        remove(path)
        how = "is gone: its keeper was killed, and what it left is removed" if was_killed else ""
        raise NoSuchMachine(f"machine {name!r} {how or 'is not up'}; machines that are: {there}")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(CONNECT_TIMEOUT_S)
    try:
        connection.connect(os.path.join(path, CONTROL))
    except OSError as error:
        connection.close()
        if isinstance(error, FileNotFoundError):
            raise MachineError(f"machine {name!r} is not up yet, or going down") from None
        raise MachineError(f"machine {name!r} does not answer: {error.strerror}") from None
    if (uid := peer_of(connection)[1]) != own_uid():
        connection.close()
        raise ConfigError(f"machine {name!r} is another user's (uid {uid})")
    return connection


def own_uid() -> int:
    """Whose machines are ours."""
    return os.geteuid()


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """The process id and the user id at the other end."""
    pid, uid, _ = _UCRED.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    )
    return pid, uid
