"""What a disk holds, judged by what its journal says: after a crash, or at any time.

Owns: when a sector is within its bounds. A sector is what a device writes at once, so each is
judged by itself: it holds zeros (version 0), or a version from `flushed` to `issued`.
"""

from typing import Final, NamedTuple

import numpy as np

from common.arena import Arena
from common.compiled import whole
from frontend.pattern import NO_VERSION, UNKNOWN, version_of

NAMED_MAX: Final = 8  # sectors outside of their bounds, of each call

FOUND: Final = np.dtype([("checked", "<u8"), ("uncertain", "<u8"), ("outside", "<u8")])
OUTSIDE: Final = np.dtype(
    [("sector", "<u8"), ("found", "<i8"), ("flushed", "<u4"), ("issued", "<u4")]
)


class Judgement(NamedTuple):
    """found: FOUND (1,), of all sectors that were judged; outside: OUTSIDE (NAMED_MAX,), the first
    of them. Checked are also those that are uncertain: of which more than one version would do.
    """

    found: np.ndarray
    outside: np.ndarray


def new_judgement(arena: Arena) -> Judgement:
    """Of nothing yet."""
    return Judgement(arena.array(1, FOUND), arena.array(NAMED_MAX, OUTSIDE))


@whole
def judge(
    judgement: Judgement,
    address: int,
    disk: int,
    sector: int,
    nr_sectors: int,
    flushed: np.ndarray,
    issued: np.ndarray,
) -> None:
    """Judge the sectors of `disk` (`pattern.disk_name`) that were read to `address`. Those that
    were never written are not looked at, nor those that may hold anything.
    """
    found = judgement.found[0]
    for at in range(nr_sectors):
        low, high = np.int64(flushed[sector + at]), np.int64(issued[sector + at])
        if high == 0 or low == UNKNOWN:
            continue
        found.checked += np.uint64(1)
        found.uncertain += np.uint64(low != high)
        version = version_of(address + at * 512, disk, sector + at)
        if _lies_between(version, low, high):
            continue
        if found.outside < NAMED_MAX:
            named = judgement.outside[np.int64(found.outside)]
            named.sector, named.found = np.uint64(sector + at), version
            named.flushed, named.issued = np.uint32(low), np.uint32(high)
        found.outside += np.uint64(1)


@whole
def _lies_between(version: int, low: int, high: int) -> bool:
    """Versions go round: after the last comes 1 (`pattern.fill`)."""
    if version == NO_VERSION or (version == 0 and low != 0):
        return False
    if low == 0 or low <= high:
        return low <= version <= high
    return version >= low or version <= high
