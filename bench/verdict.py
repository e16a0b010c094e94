"""The medians in words and tables: each figure beside what it is to be held against."""

from typing import Final

from rich.console import Console
from rich.table import Table

from bench.contest import DEPTHS, Sample

Results = dict[str, Sample]

US_A_SECOND: Final = 1e6


def find(results: Results, who: str, **wanted: object) -> Sample | None:
    """The case of `who` with these settings, or None if it was not measured."""
    for sample in results.values():
        if sample["who"] == who and all(sample.get(k) == v for k, v in wanted.items()):
            return sample
    return None


def print_verdict(console: Console, results: Results) -> None:
    """All cases, then the ratios that matter."""
    table = Table(title="Medians")
    for name in ("case", "IOPS", "of the limit", "p50 us", "p99 us", "CPU s a million"):
        table.add_column(name, justify="right" if name != "case" else "left")
    for case, sample in results.items():
        if "iops" in sample:
            table.add_row(
                case,
                f"{sample['iops']:,.0f}",
                f"{sample['of_limit']:.3f}",
                *(f"{sample[key]:,.1f}" if key in sample else "" for key in FIGURES),
            )
    console.print(table)
    for line in ratios(results):
        console.print(line)


FIGURES: Final = ("p50_us", "p99_us", "cpu_s_per_million")


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
