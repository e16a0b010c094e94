"""Traces as others write them: fio's iolog, versions 2 and 3, and blktrace's as blkparse prints it.

Owns: the three forms, what is refused, and what is made of it: an array of TRACE
(`common/trace.py`) in which nothing is longer than an I/O may be, nor out of its order in time.
Rules: a trace is of one file or device. A line that is not understood is an error, with its number,
but for blkparse's summary, which begins at its first line that is no event. Of blktrace's events
those are taken that say when an I/O was queued (Q), or if there is none when it was issued (D).
"""

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from common.abi import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    SECTOR_SIZE,
)
from common.trace import ENTRIES_MAX, TRACE
from toolstack.load_fields import BS_MAX

BYTES_MAX: Final = 1 << 30  # of a file
LINE_MAX: Final = 4096
TIME_MAX_NS: Final = 1 << 62
OFFSET_MAX: Final = 1 << 50
LENGTH_MAX: Final = 1 << 40
WAIT_MIN_US: Final = 100  # "everything below 100 is discarded"

IOLOG: Final = re.compile(r"fio version ([0-9]+) iolog")
FILE_ACTIONS: Final = ("add", "open", "close")
ACTIONS: Final = {
    "read": BLKIF_OP_READ,
    "write": BLKIF_OP_WRITE,
    "trim": BLKIF_OP_DISCARD,
    "sync": BLKIF_OP_FLUSH_DISKCACHE,
    "datasync": BLKIF_OP_FLUSH_DISKCACHE,
}
# 8,0  3  1  0.000000000  697  Q  WS 223490 + 8 [kjournald]
EVENT: Final = re.compile(
    r"\s*([0-9]+,[0-9]+)\s+[0-9]+\s+[0-9]+\s+([0-9]+)\.([0-9]{9})\s+[0-9]+\s+([A-Z]+)\s+(\S*)(.*)"
)
EXTENT: Final = re.compile(r"\s*([0-9]+)\s*\+\s*([0-9]+)\b.*")
QUEUED: Final = "Q"
ISSUED: Final = "D"

Entry = tuple[int, int, int, int]  # at_ns, offset, length, operation


class TraceError(Exception):
    """A trace that cannot be used; the text is one line."""


class Trace(NamedTuple):
    """entries: TRACE; largest: bytes of its longest transfer."""

    entries: np.ndarray
    largest: int
    writes: bool
    trims: bool

    @property
    def reach(self) -> int:
        """Bytes that a disk must have for it."""
        return int((self.entries["sector"] + self.entries["nr_sectors"]).max()) * SECTOR_SIZE

    def unfit(self, sector_size: int, nr_bytes: int, disk: object) -> str:
        """Why it does not fit a disk of such sectors and so many bytes (0: not known); "" if it
        does."""
        where = self.entries["sector"] * SECTOR_SIZE, self.entries["nr_sectors"] * SECTOR_SIZE
        if any((each % sector_size).any() for each in where):
            return f"it has I/Os that are no multiples of {disk}'s sectors"
        if nr_bytes and self.reach > nr_bytes:
            return f"it reaches to {self.reach} bytes, and {disk} has {nr_bytes} for it"
        return ""


def read_trace(path: str) -> Trace:
    """What a file holds; read once as long as it does not change. Raises TraceError."""
    try:
        found = os.stat(path)
        if found.st_size > BYTES_MAX:
            raise TraceError(f"'{path}' has more than {BYTES_MAX >> 20} MiB")
        return _read(os.fspath(path), found.st_mtime_ns, found.st_size)
    except (OSError, TypeError) as error:
        why = getattr(error, "strerror", None) or "it is no path"
        raise TraceError(f"'{path}' cannot be read: {why}") from None


@lru_cache(maxsize=8)
def _read(path: str, _changed_ns: int, _nbytes: int) -> Trace:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            lines = enumerate(iter(lambda: file.readline(LINE_MAX), ""), 1)
            return _trace(_entries(lines))
    except _BadLine as error:
        raise TraceError(f"'{path}', line {error.number}: {error.why}") from None
    except TraceError as error:
        raise TraceError(f"'{path}': {error}") from None


class _BadLine(Exception):
    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number, self.why = number, why


Lines = Iterator[tuple[int, str]]


def _entries(lines: Lines) -> list[Entry]:
    number, first = next(lines, (1, ""))
    if match := IOLOG.fullmatch(first.strip()):
        if match[1] not in ("2", "3"):
            raise _BadLine(number, f"an iolog of version {match[1]}; 2 and 3 are known")
        return list(_of_iolog(lines, timestamps=match[1] == "3"))
    if EVENT.fullmatch(first.rstrip("\n")):
        return _of_blkparse(number, first, lines)
    raise _BadLine(number, "is neither 'fio version 2 iolog' (or 3) nor an event of blkparse's")


def _of_iolog(lines: Lines, timestamps: bool) -> Iterator[Entry]:
    clock_us, names = 0, set[str]()
    for number, line in lines:
        words = line.split()
        if not words:
            continue
        if timestamps:
            clock_us = max(clock_us, _number(number, words.pop(0), TIME_MAX_NS // 1000))
        name, action, *rest = [*words, "", ""] if len(words) < 2 else words
        if action in FILE_ACTIONS and not rest:
            names.add(name)
        elif action == "wait" and len(rest) >= 1 and not timestamps:
            wait_us = _number(number, rest[0], TIME_MAX_NS // 1000)
            clock_us += wait_us if wait_us >= WAIT_MIN_US else 0
        elif action in ACTIONS and (len(rest) == 2 or ACTIONS[action] == BLKIF_OP_FLUSH_DISKCACHE):
            if name not in names:
                raise _BadLine(number, f"'{name[:40]}' was not added and opened before")
            offset, length = (_number(number, word, OFFSET_MAX) for word in [*rest, "0", "0"][:2])
            yield clock_us * 1000, offset, length, ACTIONS[action]
        else:
            raise _BadLine(number, f"'{line.strip()[:40]}' is no action of an iolog")
        if len(names) > 1:
            raise _BadLine(number, "a second file; a trace is of one")


def _number(number: int, word: str, most: int) -> int:
    if not word.isdigit() or not word.isascii() or len(word) > 20 or int(word) > most:
        raise _BadLine(number, f"'{word[:40]}' is no number in 0..{most}")
    return int(word)


def _of_blkparse(number: int, line: str, lines: Lines) -> list[Entry]:
    events: dict[str, list[Entry]] = {QUEUED: [], ISSUED: []}
    device = ""
    while match := EVENT.fullmatch(line.rstrip("\n")):
        its_device, seconds, nanoseconds, action, kind, rest = match.groups()
        if action in events:
            if device not in ("", its_device):
                raise _BadLine(number, f"device {its_device} beside {device}; a trace is of one")
            device = its_device
            at_ns = _number(number, seconds, TIME_MAX_NS // 10**9) * 10**9 + int(nanoseconds)
            events[action] += _of_event(number, at_ns, kind, rest)
        number, line = next(lines, (number, ""))
        if not line:
            break
    for number, line in lines:
        if EVENT.fullmatch(line.rstrip("\n")):
            raise _BadLine(number, "an event after the summary")
    found = sorted(events[QUEUED] or events[ISSUED], key=lambda entry: entry[0])
    begun_ns = found[0][0] if found else 0
    return [(at_ns - begun_ns, *rest) for at_ns, *rest in found]  # type: ignore[misc]


def _of_event(number: int, at_ns: int, kind: str, rest: str) -> Iterator[Entry]:
    """RWBS: a flush before, what is done, a flush after it as FUA, and what we do not heed."""
    if kind.startswith("F"):
        yield at_ns, 0, 0, BLKIF_OP_FLUSH_DISKCACHE
    known = {"R": BLKIF_OP_READ, "W": BLKIF_OP_WRITE, "D": BLKIF_OP_DISCARD}
    for letter, operation in known.items():
        if letter in kind:
            match = EXTENT.fullmatch(rest)
            if match is None:
                raise _BadLine(number, f"'{rest.strip()[:40]}' is no SECTOR + SECTORS")
            sectors = [_number(number, word, OFFSET_MAX // SECTOR_SIZE) for word in match.groups()]
            if sectors[1]:
                yield at_ns, sectors[0] * SECTOR_SIZE, sectors[1] * SECTOR_SIZE, operation
            return


def _trace(found: list[Entry]) -> Trace:
    """Checked, and in pieces that an I/O can be."""
    pieces = list[tuple[int, int, int, int]]()
    for at_ns, offset, length, operation in found:
        if operation == BLKIF_OP_FLUSH_DISKCACHE:
            pieces.append((at_ns, 0, 0, operation))
            continue
        if offset % SECTOR_SIZE or length % SECTOR_SIZE or not 0 < length <= LENGTH_MAX:
            raise TraceError(f"an I/O of {length} bytes at {offset} is not of whole sectors")
        if len(pieces) + length // BS_MAX >= ENTRIES_MAX:
            raise TraceError(f"it has more than {ENTRIES_MAX} I/Os of 1m at most")
        for at in range(0, length, BS_MAX):
            sectors = min(BS_MAX, length - at) // SECTOR_SIZE
            pieces.append((at_ns, (offset + at) // SECTOR_SIZE, sectors, operation))
    entries = np.array(pieces, TRACE)
    moves = np.isin(entries["operation"], (BLKIF_OP_READ, BLKIF_OP_WRITE))
    if not (entries["operation"] != BLKIF_OP_FLUSH_DISKCACHE).any():
        raise TraceError("there is no I/O in it")
    largest = int(entries["nr_sectors"][moves].max(initial=1)) * SECTOR_SIZE
    writes = bool((entries["operation"] != BLKIF_OP_READ).any())
    return Trace(entries, largest, writes, bool((entries["operation"] == BLKIF_OP_DISCARD).any()))
