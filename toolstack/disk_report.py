"""The table of disks at the end of a run, for people: where guests have several, or unlike ones.

Owns: which disks share a line, and what is said of each. A machine of few disks has a line for
each; one of many has one for those that are alike: one vdev of several guests, target and load.
Rule: reads well on 80 columns.
"""

from typing import Any, Final

from rich.table import Table

from toolstack.loadspec import size_text
from toolstack.results import Run
from toolstack.words import new_table, number, ratio

LINES_MAX: Final = 16  # with one for each disk
TARGET_MAX: Final = 12  # characters
CAPTION: Final = (
    "p50, p99: microseconds, of a line's slowest; maps: for 1,000 requests; verified: no where"
    " nobody knows what is to be read"
)

Disks = list[dict[str, Any]]


def worth_a_table(run: Run) -> bool:
    """Have guests several disks, or unlike ones?"""
    disks = [disk for guest in run["guests"] for disk in guest["disks"]]
    return len(disks) > len(run["guests"]) or len({_kind(disk) for disk in disks}) > 1


def disk_table(run: Run) -> Table:
    """A line for each disk, or for each lot of disks that are alike."""
    table = new_table(f"The disks, {run['config']['mode']}")
    table.padding = 0  # a blank between columns is the box's
    for name in ("", "target", "load"):
        table.add_column(name, no_wrap=name != "load")
    for name in ("IOPS", "p50", "p99", "maps", "verified"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, disks in _lines(run):
        table.add_row(name, *_words(disks[0]), *_figures(disks))
    table.caption, table.caption_justify = CAPTION, "left"
    return table


def _kind(disk: dict[str, Any]) -> tuple[str, ...]:
    return disk["vdev"], *_words(disk)


def _lines(run: Run) -> list[tuple[str, Disks]]:
    each = [(guest["domid"], disk) for guest in run["guests"] for disk in guest["disks"]]
    if len(each) <= LINES_MAX:
        return [(f"guest-{domid} {disk['vdev']}", [disk]) for domid, disk in each]
    lots: dict[tuple[str, ...], Disks] = {}
    for _, disk in each:
        lots.setdefault(_kind(disk), []).append(disk)
    return [(f"{disks[0]['vdev']} of {len(disks)}", disks) for disks in lots.values()]


def _words(disk: dict[str, Any]) -> tuple[str, str]:
    """Target and load, short."""
    target = disk["target"]
    if len(target) > TARGET_MAX - 3 * (disk["access"] == "ro"):
        target = f"{target[: TARGET_MAX - 3 * (disk['access'] == 'ro') - 1]}~"
    load = disk["load"]
    return (
        f"{target} ro" if disk["access"] == "ro" else target,
        f"{load['rw']} {size_text(load['bs'])}" if load else "none",
    )


def _figures(disks: Disks) -> list[str]:
    def total(name: str) -> float:
        return sum(disk["totals"][name] for disk in disks)

    def slowest(name: str) -> float | None:
        found = [disk["latency_us"][name] for disk in disks]
        return max((value for value in found if value is not None), default=None)

    maps = sum(disk["counters"]["map_ops"] for disk in disks)
    wrong = total("verify_errors")
    checked = "-" if not disks[0]["load"] else "yes" if disks[0]["verified"] else "no"
    return [
        _short(total("iops")),
        _short(slowest("p50")),
        _short(slowest("p99")),
        number(ratio(1000 * maps, total("requests"))),
        f"{number(wrong)} bad" if wrong else checked,
    ]


def _short(value: float | None) -> str:
    return f"{value / 1e6:.2f}M" if value is not None and value >= 1e6 else number(value)
