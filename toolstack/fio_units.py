"""How fio writes numbers: sizes, shares, times, truth, and lists of one for each direction.

Owns: the forms of its "Parameter types", with kb_base=1024: k is 1,024 and ki 1,000. Raises
ValueError of a few words that say what is wanted; who calls knows the option.
"""

import re
from typing import Final

PREFIXES: Final = "kmgtp"
NUMBER: Final = re.compile(r"(0x[0-9a-f]+|[0-9]+)\s*(?:([kmgtp])(i?))?b?")
TIME: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)")
TIMES: Final = {
    "us": 1e-6, "usec": 1e-6, "ms": 1e-3, "msec": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0,
    "h": 3600.0, "d": 86400.0,
}  # fmt: skip
TRUTH: Final = {"": True, "1": True, "true": True, "yes": True, "on": True,
                "0": False, "false": False, "no": False, "off": False}  # fmt: skip
SIZES_MAX: Final = 64  # of a bssplit, for reads and for the rest


def size_in_bytes(text: str) -> int:
    """4096, 4k, 4KiB (fio's 4,000), 0x1000."""
    match = NUMBER.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError("is no size: 512, 4k, 1m, 2g")
    number, prefix, thousands = match.groups()
    power = PREFIXES.index(prefix) + 1 if prefix else 0
    base = 1000 if thousands else 1024
    return int(number, 0 if number.startswith("0x") else 10) * base**power


def size_or_share(text: str) -> int | str:
    """The same, or a share of the disk: "20%"."""
    text = text.strip()
    if not text.endswith("%"):
        return size_in_bytes(text)
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?%", text) or not 0 <= float(text[:-1]) <= 100:
        raise ValueError("is no share: 0%..100%")
    return text


def seconds(text: str, unit: str = "s") -> float:
    """30, 500ms, 10m; unit: where there is none."""
    match = TIME.fullmatch(text.strip().lower())
    if match is None or (match[2] or unit) not in TIMES:
        raise ValueError(f"is no time: 10{unit}, 500ms, 5m")
    return float(match[1]) * TIMES[match[2] or unit]


def truth(text: str) -> bool:
    """What an option without a value is: true."""
    if text.strip().lower() not in TRUTH:
        raise ValueError("is neither 0 nor 1")
    return TRUTH[text.strip().lower()]


def whole(text: str) -> int:
    """A number, with a suffix if need be."""
    try:
        return size_in_bytes(text)
    except ValueError:
        raise ValueError("is no whole number") from None


def each_way(text: str) -> tuple[str, str]:
    """`READS,WRITES` or one for both; what is said of trims besides is as if it was not."""
    parts = text.split(",")
    if len(parts) > 3:
        raise ValueError("has more parts than reads, writes, trims")
    return (parts[0].strip(), parts[1 if len(parts) > 1 else 0].strip())


def block_sizes(text: str) -> tuple[tuple[tuple[int, float], ...], ...]:
    """A bssplit: for reads and for the rest, (bytes, percent) of each size; blank percents share
    what is left evenly."""
    return tuple(_sizes(part) for part in each_way(text))


def _sizes(text: str) -> tuple[tuple[int, float], ...]:
    said = [part.partition("/")[::2] for part in text.split(":")]
    if len(said) > SIZES_MAX:
        raise ValueError(f"has more than {SIZES_MAX} sizes")
    shares = [float(whole(share)) if share.strip() else None for _, share in said]
    given = sum(share for share in shares if share is not None)
    blank = shares.count(None)
    if given > 100 or (not blank and given != 100):
        raise ValueError(f"has shares of {given:g} % together, and not of 100")
    rest = (100 - given) / blank if blank else 0.0
    sizes = [size_in_bytes(size) for size, _ in said]
    found = zip(sizes, (rest if share is None else share for share in shares), strict=True)
    return tuple((size, share) for size, share in found if share > 0)
