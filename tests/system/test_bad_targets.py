"""Disks that cannot be: each is one line, status 2, and nothing is left."""

import gc
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from toolstack.cli import cli

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the targets below name."""
    root = tmp_path_factory.mktemp("disks")
    for name, size in (("short", 511), ("odd", 4096 + 512), ("bytes", 4097), ("good", 1 << 20)):
        (root / name).write_bytes(b"")
        os.truncate(root / name, size)
    (root / "directory").mkdir()
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as nobody:
        silent.bind(str(root / "silent"))
        silent.listen()
        nobody.bind(str(root / "nobody"))
        yield root


BAD = {
    "nothing": ("", "':' is not ram:SIZE, null:SIZE, file:PATH"),
    "a kind that is none": ("cow:x", "'cow:x' is not ram:SIZE"),
    "a path alone": ("/dev/null", "is not ram:SIZE"),
    "no path": ("file:", "'file:' is not ram:SIZE"),
    "no file": ("file:{root}/none", "/none: No such file or directory"),
    "a directory": ("file:{root}/directory", "is a directory"),
    "a pipe": ("file:{root}/pipe", "is a pipe"),
    "a character device": ("file:/dev/null", "/dev/null is a character device"),
    "less than a sector": ("file:{root}/short", "has 511 bytes: at least a sector of 512"),
    "no whole sectors": ("file:{root}/bytes", "has 4097 bytes: a multiple of its sectors of 512"),
    "no whole large ones": (
        "file:{root}/odd,sector-size=4096",
        "has 4608 bytes: a multiple of its sectors of 4096",
    ),
    "a sector size": ("ram:1m,sector-size=1024", "sector-size: '1024' is not one of 512, 4096"),
    "a cache": ("file:{root}/good,cache=unsafe", "cache: 'unsafe' is not one of writeback, none"),
    "a cache of memory": ("ram:1m,cache=none", "cache: ram has no such option"),
    "two writers": ("file:{root}/good", "is written by guest 1's xvda and guest 2's xvda"),
    "no socket": ("nbd+unix:///?socket={root}/none", "No such file or directory"),
    "nobody at a socket": ("nbd+unix:///?socket={root}/nobody", "refused"),
    "a server that says nothing": ("nbd+unix:///?socket={root}/silent,timeout=0.2", "silent"),
    "no server": ("nbd://127.0.0.1:1/x", "127.0.0.1:1"),
    "no URI": ("nbd+unix:///x", "?socket=PATH"),
    "a time": ("nbd://h/x,timeout=0", "timeout: '0' is not above 0"),
    "TLS": ("nbds://h/x", "is not ram:SIZE"),
    "volatile nothing": ("volatile:nbd://h/x", "is not volatile:ram:SIZE or volatile:file:PATH"),
    "twice": ("ram:1m,name=a,name=b", "is not TARGET"),
}


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["--ios", "1", "--persistent", *arguments])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_target_is_one_line(name: str, there: Path) -> None:
    target, why = BAD[name]
    gc.collect()  # what other tests have left to it is not closed meanwhile
    before, open_files, shared = children(), os.listdir("/proc/self/fd"), os.listdir("/dev/shm")
    guests = "2" if name == "two writers" else "1"
    result = run("--guests", guests, "--disk", target.replace("{root}", str(there)))
    assert result.exit_code == 2, result.output
    assert result.output.startswith("grantlab: error: disk: ") and why in result.output
    assert result.output.count("\n") == 1
    assert len(result.output) < 500
    assert children() == before and os.listdir("/dev/shm") == shared
    assert len(os.listdir("/proc/self/fd")) == len(open_files)


def test_a_file_that_another_has_locked(there: Path) -> None:
    import fcntl
    import struct

    lock = struct.pack("=hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with open(there / "good", "r+b") as other:
        fcntl.fcntl(other, fcntl.F_OFD_SETLK, lock)
        result = run("--guests", "1", "--disk", f"file:{there}/good")
    assert result.exit_code == 2 and "is locked by another" in result.output
    assert result.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--bs", "512"), "bs: 512 is no multiple of guest 1's xvda's sector-size, 4096"),
        (("--rw", "trim"), "rw: trim discards, and guest 1's xvda is ram, which cannot"),
    ],
)
def test_a_load_that_its_disk_cannot_carry(arguments: tuple[str, ...], why: str) -> None:
    result = run("--disk", "ram:1m,sector-size=4096", *arguments)
    assert result.exit_code == 2 and why in result.output and result.output.count("\n") == 1
