"""What fields of a load may be that are more than a number: how each is written and checked.

Owns: their types, for `toolstack/loadspec.py`. Raises ValueError, which pydantic takes.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from common.abi import SECTOR_SIZE
from common.targets import size_of
from toolstack.fio_units import block_sizes, each_way, size_or_share, whole

VDEVS: Final = tuple(f"xvd{letter}" for letter in "abcdefghijklmnop")
BS_MAX: Final = 1 << 20
IOPS_MAX: Final = 10**9
SKEWS: Final = {"zipf": 10.0, "pareto": 1.0}  # below which it must be
SKEW: Final = re.compile(r"[0-9]{1,2}(\.[0-9]{1,9})?|\.[0-9]{1,9}")


def _is_size(value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and SECTOR_SIZE <= value <= BS_MAX and value % SECTOR_SIZE == 0


def _block_size(value: Any) -> int:
    if isinstance(value, str):
        value = size_of(value)
    if not _is_size(value):
        raise ValueError(f"is not a multiple of {SECTOR_SIZE} in {SECTOR_SIZE}..1m")
    return int(value)


def split(value: Any) -> Any:
    """A bssplit: sizes and percents, of reads and of the rest."""
    found = block_sizes(value) if isinstance(value, str) and value else value or ()
    if found and not all(_is_size(size) for way in found for size, _ in way):
        raise ValueError(f"has a size that is not a multiple of {SECTOR_SIZE} up to 1m")
    return found


def _region(value: Any) -> Any:
    if isinstance(value, str):
        value = size_or_share(value)
    if isinstance(value, int) and (value < 0 or value % SECTOR_SIZE):
        raise ValueError(f"is not a multiple of {SECTOR_SIZE}")
    return value


def _size(value: Any) -> Any:
    value = _region(value)
    if value == 0 or (isinstance(value, str) and float(value[:-1]) == 0):
        raise ValueError("is nothing")
    return value


def _rates(value: Any) -> Any:
    if isinstance(value, str):
        value = tuple(whole(part or "0") for part in each_way(value))
    found = (value, value) if type(value) is int else value
    if not isinstance(found, (tuple, list)) or not all(
        type(rate) is int and 0 <= rate <= IOPS_MAX for rate in found
    ):
        raise ValueError("is not I/Os a second, or those of reads and of writes")
    return found


def _distribution(value: Any) -> Any:
    name, _, skew = value.partition(":") if isinstance(value, str) else ("", "", "")
    if value == "random":
        return value
    if name not in SKEWS or not SKEW.fullmatch(skew) or not 0 < float(skew) < SKEWS[name]:
        raise ValueError("is not random, zipf:0..10 or pareto:0..1")
    return value


BlockSize = Annotated[int, BeforeValidator(_block_size)]
Split = Annotated[tuple[tuple[tuple[int, float], ...], ...], BeforeValidator(split)]
Offset = Annotated[int | str, BeforeValidator(_region)]
Size = Annotated[int | str | None, BeforeValidator(_size)]
Rates = Annotated[tuple[int, int], BeforeValidator(_rates)]
Distribution = Annotated[str, BeforeValidator(_distribution)]


def largest(settings: Mapping[str, Any]) -> int | None:
    """The largest size of a load's bssplit, if it has one that is sound."""
    try:
        sizes = split(settings.get("bssplit"))
    except ValueError:
        return None  # which is told when it is looked at by itself
    return max((size for way in sizes for size, _ in way), default=None)
