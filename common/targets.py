"""How a disk's target is written: `KIND:WHERE[,KEY=VALUE...]`; a comma of its own is doubled.

    ram:SIZE[,name=NAME]                zeroed memory; disks of one NAME are one store
    null:SIZE                           moves nothing
    file:PATH[,cache=none|writeback]    a file or a block device; {domid} in PATH is the guest's
    nbd+unix:///NAME?socket=PATH[,timeout=SECONDS]
    nbd://HOST[:PORT]/NAME[,timeout=SECONDS]
    volatile:TARGET[,seed=N]            a ram or file TARGET; what is not flushed is lost in a crash
Each may have `,sector-size=512|4096`. SIZE as fio has it: a number, and k, m or g for 1,024s.

Owns: the form, for the toolstack, which checks it before anything starts, and for dom0, which reads
it in the store. Raises ValueError, of one line that names what is wrong and what is allowed.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from common.abi import SECTOR_SIZE, XEN_PAGE_SIZE
from common.nbd_uri import parse_nbd_uri

UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
SIZE_MAX: Final = 64 << 30
RAM_GROWS: Final = 16  # times what a ram disk has at first it may have later
SECTOR_SIZES: Final = (SECTOR_SIZE, XEN_PAGE_SIZE)
CACHES: Final = ("writeback", "none")
TIMEOUT_DEFAULT_S: Final = 30.0
TIMEOUT_MAX_S: Final = 3600.0
SHOWN_MAX: Final = 40  # characters of what is wrong
NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
NBD: Final = ("nbd", "nbd+unix")
FORM: Final = (
    "ram:SIZE, null:SIZE, file:PATH, nbd://HOST[:PORT]/NAME, nbd+unix:///NAME?socket=PATH or"
    " volatile:TARGET"
)

# What a target of a kind may say besides: its options, all with defaults.
OPTIONS: Final = {
    "ram": ("name",),
    "null": (),
    "file": ("cache",),
    "nbd": ("timeout",),
}
EVERY: Final = "sector-size"


class Target(NamedTuple):
    """where: a path or a URI; nr_bytes: 0 if only who opens it knows; volatile: what is written is
    not there before it is flushed, and chance has `seed`.
    """

    kind: str  # ram, null, file, nbd
    where: str = ""
    nr_bytes: int = 0
    name: str = ""
    sector_size: int = SECTOR_SIZE
    cache: str = CACHES[0]
    timeout_s: float = TIMEOUT_DEFAULT_S
    volatile: bool = False
    seed: int = 1

    def path_of(self, domid: int) -> str:
        """A file's path, for that guest."""
        return self.where.replace("{domid}", str(domid))


def size_of(written: str) -> int | None:
    """Bytes of a size as fio has it: 512, 4k, 1m, 2G; None if it is none."""
    match = re.fullmatch(r"([0-9]{1,12})([kmg]?)", written.strip().lower())
    return int(match[1]) * UNITS[match[2]] if match else None


def ram_room(nr_bytes: int) -> int:
    """Bytes that a ram disk of so many may grow to."""
    return max(nr_bytes, min(RAM_GROWS * nr_bytes, SIZE_MAX))


def split_target(text: str) -> list[str]:
    """What stands between commas; two of them are one that belongs there."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def joined(parts: list[str]) -> str:
    """`split_target` undone."""
    return ",".join(part.replace(",", ",,") for part in parts)


def read_target(text: str) -> Target:
    """The whole of what `params` say."""
    where, *rest = split_target(text)
    pairs = dict(part.partition("=")[::2] for part in rest)
    if len(pairs) < len(rest):
        raise ValueError(f"{_short(text)} says something twice")
    return parse_target(where, pairs)


def parse_target(text: str, options: Mapping[str, str]) -> Target:
    """`text` without its options, and these by name."""
    kind, _, where = text.strip().partition(":")
    kind = kind.lower()
    volatile = kind == "volatile"
    if volatile:
        kind, _, where = where.partition(":")
        kind = kind.lower()
        if kind not in ("ram", "file"):
            raise ValueError(f"{_short(text)} is not volatile:ram:SIZE or volatile:file:PATH")
    if kind in NBD:
        where, kind = f"{kind}:{where}", "nbd"
    if kind not in OPTIONS or not where:
        raise ValueError(f"{_short(text)} is not {FORM}")
    allowed = (*OPTIONS[kind], EVERY, *(("seed",) if volatile else ()))
    for key in options:
        if key not in allowed:
            raise ValueError(
                f"{_short(key)[1:-1]}: {kind} has no such option; allowed are {', '.join(allowed)}"
            )
    target = Target(kind, where.strip(), volatile=volatile)._replace(
        sector_size=int(_one_of(EVERY, options, SECTOR_SIZES)),
        cache=_one_of("cache", options, CACHES),
        timeout_s=_timeout(options),
        seed=_seed(options),
        name=_name(options),
    )
    if kind in ("ram", "null"):
        return target._replace(where="", nr_bytes=_size(text, target))
    if kind == "nbd":
        parse_nbd_uri(target.where)
    elif "\0" in target.where:
        raise ValueError(f"{_short(text)} has a byte 0 in its path")
    return target


def _short(text: str) -> str:
    return repr(text) if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]!r}..."


def _size(text: str, target: Target) -> int:
    nr_bytes, sector = size_of(target.where), target.sector_size
    if nr_bytes is None:
        raise ValueError(f"{_short(text)} is not {target.kind}:SIZE, as in {target.kind}:64m")
    if not sector <= nr_bytes <= SIZE_MAX or nr_bytes % sector:
        limits = f"{sector}..{SIZE_MAX >> 30}g"
        raise ValueError(f"{_short(text)} has a size that is no multiple of {sector} in {limits}")
    return nr_bytes


def _one_of(key: str, options: Mapping[str, str], allowed: tuple[int | str, ...]) -> str:
    value = options.get(key, str(allowed[0]))
    if value not in map(str, allowed):
        raise ValueError(f"{key}: {_short(value)} is not one of {', '.join(map(str, allowed))}")
    return value


def _timeout(options: Mapping[str, str]) -> float:
    written = options.get("timeout", f"{TIMEOUT_DEFAULT_S:g}")
    value = float(written) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", written) else 0.0
    if not 0 < value <= TIMEOUT_MAX_S:
        raise ValueError(
            f"timeout: {_short(written)} is not above 0, at most {TIMEOUT_MAX_S:g} (seconds)"
        )
    return value


def _seed(options: Mapping[str, str]) -> int:
    written = options.get("seed", "1")
    if not re.fullmatch(r"[0-9]{1,18}", written):
        raise ValueError(f"seed: {_short(written)} is not a number of 1 to 18 digits")
    return int(written)


def _name(options: Mapping[str, str]) -> str:
    name = options.get("name", "")
    if "name" in options and not NAME.fullmatch(name):
        raise ValueError(f"name: {_short(name)} is not 1..32 letters, digits, '_', '.' or '-'")
    return name
