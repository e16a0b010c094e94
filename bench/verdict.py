"""The medians in words and tables: each figure beside what it is to be held against."""

from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from bench.contest import DEPTHS, Sample
from toolstack.loadspec import size_text

Results = dict[str, Sample]

US_A_SECOND: Final = 1e6
FIGURES: Final = ("p50_us", "p99_us", "cpu_s_per_million")
DECIMALS_BELOW: Final = 100


def find(results: Results, who: str, **wanted: object) -> Sample | None:
    """The case of `who` with these settings, or None if it was not measured."""
    for sample in results.values():
        if sample["who"] == who and all(sample.get(k) == v for k, v in wanted.items()):
            return sample
    return None


def print_verdict(console: Console, results: Results) -> None:
    """All cases, then the ratios that matter."""
    table = Table(title="Medians", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("case")
    for name in ("IOPS", "/ limit", "p50 us", "p99 us", "CPU s"):
        table.add_column(name, justify="right", no_wrap=True)
    for case, sample in results.items():
        if "iops" in sample:
            table.add_row(
                _by_units(case, sample),
                f"{sample['iops']:,.0f}",
                f"{sample['of_limit']:.3f}",
                *(short(sample[key]) if key in sample else "" for key in FIGURES),
            )
    console.print(table)
    console.print("/ limit: of what the copies alone allow. CPU s: for a million requests.")
    for line in ratios(results):
        console.print(line)


def short(value: float) -> str:
    """A figure in few characters; a decimal only where it says something."""
    return f"{value:,.1f}" if value < DECIMALS_BELOW else f"{value:,.0f}"


def _by_units(case: str, sample: Sample) -> str:
    """A case's name with its block size as people write it: 4k, not 4096."""
    words = case.split(" ")
    return " ".join(size_text(int(w)) if w == str(sample.get("bs")) else w for w in words)


def ratios(results: Results) -> list[str]:
    """The comparisons, a line each; those whose sides were not both measured are left out."""
    base = {"rw": "randrw", "bs": 4096, "iodepth": 32}
    lines = []
    one = find(results, "persistent", guests=1, **base)
    for guests in (8, 32):
        many = find(results, "persistent", guests=guests, **base)
        if one and many:
            cpu = many["cpu_s_per_million"] / one["cpu_s_per_million"]
            lines.append(
                f"{guests} guests: {many['iops'] / one['iops']:.2f} of one guest's IOPS,"
                f" {cpu:.2f} times its CPU a request"
            )
    for depth in DEPTHS:
        ours = find(results, "persistent", guests=1, rw="randrw", bs=4096, iodepth=depth)
        peer = find(results, "fio + nbdkit", iodepth=depth)
        if ours and peer:
            cpu = peer["cpu_s_per_million"] / ours["cpu_s_per_million"]
            lines.append(
                f"depth {depth}: {ours['iops'] / peer['iops']:.1f} times fio + nbdkit,"
                f" for {1 / cpu:.2f} of its CPU a request"
            )
    lines += _round_trips(results)
    memory = [s for s in results.values() if s["who"] == "memory" and s["mode"] == "persistent"]
    lines += [f"{s['guests']} guests: {s['mib']:.1f} MiB resident each (PSS)" for s in memory[-1:]]
    return lines


def _round_trips(results: Results) -> list[str]:
    lines = []
    for ours, bare, way in (
        (find(results, "grantlab, spin off"), find(results, "zeromq ping-pong"), "blocking"),
        (
            find(results, "persistent", guests=1, rw="randrw", bs=4096, iodepth=1),
            find(results, "shared-memory ping-pong"),
            "spinning",
        ),
    ):
        if ours and bare:
            trip_us = US_A_SECOND / ours["iops"]
            lines.append(
                f"depth 1, {way}: {trip_us:.1f} us a request, {trip_us / bare['us']:.1f} times a"
                f" bare {bare['who']} of {bare['us']:.2f} us"
            )
    return lines
