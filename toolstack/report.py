"""The tables at the end of a run, for people: modes side by side, then a reading of them.

Owns: how the numbers of `toolstack/results.py` are laid out and put into words. It computes only
rates of them (a request, a thousand requests, a ratio), and takes nothing from anywhere else.
Rules: reads well from 80 columns on, and in a file; words are plain ASCII, as a file may be.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from toolstack.disk_report import disk_table, worth_a_table
from toolstack.loadspec import size_text
from toolstack.results import Run
from toolstack.words import MB, Value, new_table, number, ratio

Row = tuple[str, Callable[[Run], Value]]

BLOCKS: Final = "\u00b7\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # a dot for none at all
DIGITS: Final = "0123456789"
CPUS_A_LINE: Final = 64  # half of it on a console that is not WIDE
WIDE: Final = 112
KIB: Final = 1024


def print_report(
    console: Console, runs: Sequence[Run], grants_left: Sequence[int] | None = None
) -> None:
    """Print everything about `runs`; grants_left: still mapped after each one's tear-down, None if
    there was none."""
    console.print()
    _print_words(console, _headline(runs[0]))
    console.print(_main_table(runs))
    for run in runs:
        if worth_a_table(run):
            console.print(disk_table(run))
    if grants_left is not None:
        console.print(_phase_table(runs, grants_left))
    if any(run["counters"]["ipis"] for run in runs):
        console.print(_cpu_table(runs, console))
    _print_words(console, reading(runs))
    notes = caveat(runs)
    if notes:
        _print_words(console, notes)


def _headline(run: Run) -> str:
    config = run["config"]
    disks = sum(len(guest["disks"]) for guest in run["guests"])
    loads = " and, at once, ".join(map(_load, config["job"] or [config]))
    return (
        f"{config['guests']} guest{'s' * (config['guests'] > 1)},"
        + (f" {disks} disks," if disks > config["guests"] else "")
        + f" dom0 with {config['dom0_vcpus']} vCPU{'s' * (config['dom0_vcpus'] > 1)};"
        f" {loads}; preset {config['preset']}: flush policy {config['flush_policy']},"
        f" batching {config['batching']}, {config['max_persistent_grants']} grants kept at most;"
        f" seed {config['seed']}."
    )


def _load(settings: dict[str, Any]) -> str:
    """A load, or one of its jobs, in words."""
    mix = "" if settings["rw"] not in ("rw", "randrw") else f" {settings['rwmixread']} % reads,"
    ends = []
    if settings["ios"] is not None:
        ends.append(f"{number(settings['ios'])} I/Os a disk")
    if settings["runtime_s"] is not None:
        ends.append(f"{settings['runtime_s']:g} s")
    if not settings["time_based"] and (settings["size"] or settings["loops"]):
        region = settings["size"] if settings["size"] is not None else "all"
        region = size_text(region) if isinstance(region, int) else region
        ends.append(f"{region} {number(settings['loops'] or 1)} times")
    if settings["replay"] and not ends:
        ends.append("once")
    where = [*settings["vdev"], *(f"guest {domid}" for domid in settings["domid"])]
    on = f", on {', '.join(where)}" if where else ""
    name = f"{settings['name']}: " if settings["name"] else ""
    what = f"{settings['rw']},{mix} {_sizes(settings)}"
    if settings["replay"]:
        what = f"the trace {settings['replay']}"
    how = "".join(f", {words}" for words in _shape(settings))
    return f"{name}{what}, depth {settings['iodepth']}{how}, {' or '.join(ends)}{on}"


def _sizes(settings: dict[str, Any]) -> str:
    split = settings["bssplit"]
    if not split:
        return f"{size_text(settings['bs'])} blocks"
    ways = ["/".join(size_text(size) for size, _ in way) for way in split]
    return f"{' and '.join(dict.fromkeys(ways))} blocks"


def _shape(settings: dict[str, Any]) -> list[str]:
    """What is not so with every load."""
    words = []
    if settings["random_distribution"] != "random":
        words.append(settings["random_distribution"])
    if any(settings["rate_iops"]):
        rates = "/".join(str(rate or "any") for rate in dict.fromkeys(settings["rate_iops"]))
        words.append(f"{rates} IOPS each way")
    if settings["thinktime"]:
        words.append(f"{number(settings['thinktime'])} us to think")
    if settings["fsync"]:
        words.append(f"a flush each {number(settings['fsync'])} writes")
    if settings["ramp_time_s"]:
        words.append(f"after {settings['ramp_time_s']:g} s")
    return words


def _total(name: str) -> Callable[[Run], Value]:
    return lambda run: run["totals"][name]


def _latency(name: str) -> Callable[[Run], Value]:
    return lambda run: run["latency_us"][name]


def _count(name: str) -> Callable[[Run], Value]:
    return lambda run: run["counters"][name]


def _per_thousand(name: str, unit: int = 1) -> Callable[[Run], Value]:
    return lambda run: ratio(1000 * run["counters"][name] / unit, run["totals"]["requests"])


def _megabytes_a_second(run: Run) -> Value:
    totals = run["totals"]
    return ratio((totals["bytes_read"] + totals["bytes_written"]) / MB, totals["seconds"])


def _cpu_seconds_a_million(run: Run) -> Value:
    return ratio(1e6 * run["totals"]["cpu_seconds"], run["totals"]["requests"])


SECTIONS: Final[dict[str, list[Row]]] = {
    "Throughput": [
        ("IOPS", _total("iops")),
        ("MB/s", _megabytes_a_second),
        ("CPU seconds a million requests", _cpu_seconds_a_million),
    ],
    "Latency, microseconds": [
        ("p50", _latency("p50")),
        ("p95", _latency("p95")),
        ("p99", _latency("p99")),
        ("p99.9", _latency("p99_9")),
        ("max", _latency("max")),
    ],
    "For 1,000 requests": [
        ("grants issued", _per_thousand("grants_issued")),
        ("grants ended", _per_thousand("grants_ended")),
        ("map operations", _per_thousand("map_ops")),
        ("unmap operations", _per_thousand("unmap_ops")),
        ("copy operations", _per_thousand("copy_ops")),
        ("grant-table hypercalls", _per_thousand("hypercalls")),
        ("TLB flushes", _per_thousand("flushes")),
        ("entries flushed", _per_thousand("flush_entries")),
        ("IPIs", _per_thousand("ipis")),
        ("notifications to the back", _per_thousand("notify_to_back")),
        ("notifications to the front", _per_thousand("notify_to_front")),
        ("KiB copied by the guest", _per_thousand("bytes_copied_by_guest", KIB)),
    ],
    "In all": [
        ("requests", _total("requests")),
        ("largest persistent tree", _count("persistent_max")),
        ("overflow segments", _count("overflow_segments")),
        ("bad requests", _count("bad_requests")),
        ("verify errors", _total("verify_errors")),
        ("I/O errors", _total("io_errors")),
    ],
    "TLB shootdowns": [
        ("simulated flushes", _count("flushes")),
        ("simulated IPIs", _count("ipis")),
        ("host's own shootdowns *", _count("host_tlb_shootdowns")),
    ],
}


HOST_NOTE: Final = (
    "* this machine's kernel really made so many while the load ran, for everything on it"
)

PHASE_ROWS: Final = (("maps", "map_ops"), ("unmaps", "unmap_ops"), ("flushes", "flushes"))


def _side_by_side(title: str, runs: Sequence[Run]) -> Table:
    table = new_table(title)
    table.add_column("", no_wrap=True)
    for run in runs:
        heading = _mode(run).replace("backend-without-", "backend-\nwithout-\n")
        if len(runs) > 2:  # on 80 columns
            heading = heading.replace("non-", "non-\n").replace("grant-", "grant-\n")
        table.add_column(heading, justify="right")
    return table


def _main_table(runs: Sequence[Run]) -> Table:
    table = _side_by_side("The load", runs)
    for title, rows in SECTIONS.items():
        table.add_row(Text(title, style="bold"))
        for name, value in rows:
            table.add_row(f"  {name}", *(number(value(run)) for run in runs))
    if any(run["counters"]["host_tlb_shootdowns"] is not None for run in runs):
        table.caption, table.caption_justify = HOST_NOTE, "left"
    return table


def _phase_table(runs: Sequence[Run], grants_left: Sequence[int]) -> Table:
    table = _side_by_side("Set-up and tear-down, not in the numbers above", runs)
    for title, phase in (("Set-up", "setup"), ("Tear-down", "teardown")):
        table.add_row(Text(title, style="bold"))
        for name, counter in PHASE_ROWS:
            cells = (number(run["counters"][phase][counter]) for run in runs)
            table.add_row(f"  {name}", *cells)
    left = (Text(number(count), style="bold red" if count else "") for count in grants_left)
    table.add_row("  grants left mapped (must be 0)", *left)
    return table


def _cpu_table(runs: Sequence[Run], console: Console) -> Table:
    characters = _bar_characters(console)
    a_line = CPUS_A_LINE if console.width >= WIDE else CPUS_A_LINE // 2
    most = max(count for run in runs for count in run["counters"]["ipis_by_cpu"])
    table = new_table("Simulated IPIs that each of dom0's CPUs received")
    for name in ("", "min", "median", "max"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_column(f"CPU 0 first; {characters[-1]} is {number(most)}", no_wrap=True)
    for run in runs:
        counts = run["counters"]["ipis_by_cpu"]
        figures = (min(counts), median(counts), max(counts))
        bar = bars(counts, most, characters, a_line) if any(counts) else "none"
        table.add_row(_short_mode(run), *map(number, figures), bar)
    return table


def bars(counts: Sequence[int], most: int, characters: str, a_line: int) -> str:
    """A character for each count, `a_line` of them a line; the first character is for 0 only."""
    top = len(characters) - 1
    drawn = "".join(
        characters[0 if count == 0 else max(1, round(top * count / most))] for count in counts
    )
    return "\n".join(drawn[at : at + a_line] for at in range(0, len(drawn), a_line))


def _bar_characters(console: Console) -> str:
    return BLOCKS if console.encoding.lower().startswith("utf") else DIGITS


def reading(runs: Sequence[Run]) -> str:
    """One sentence on what a request cost in each mode, and on how the modes compare."""
    costs = []
    for run in runs:
        requests = run["totals"]["requests"]
        if not requests:
            costs.append(f"{_mode(run)} did none")
            continue
        maps, flushes, ipis = (
            number(ratio(run["counters"][name], requests))
            for name in ("map_ops", "flushes", "ipis")
        )
        costs.append(f"{maps} maps, {flushes} flushes and {ipis} IPIs in {_mode(run)} mode")
    sentence = f"A request cost {'; '.join(costs)}"
    first = runs[0]
    for other in runs[1:]:
        times = ratio(other["totals"]["iops"], first["totals"]["iops"])
        if times is not None:
            sentence += f"; {_mode(other)} did {number(times)} times the IOPS of {_mode(first)}"
    return f"{sentence}."


def caveat(runs: Sequence[Run]) -> str:
    """What must be said beside wall-clock figures of modes that map for every request."""
    real = [run for run in runs if run["config"]["runtime"] == "real"]
    modes = [_mode(run) for run in real if _mode(run) != "persistent"]
    if not modes:
        return ""
    return (
        "A hypercall here is a message between processes and not a trap, so the wall-clock IOPS of"
        f" {' and '.join(modes)} are lower than on Xen; the counts are not touched by that."
    )


def _mode(run: Run) -> str:
    return str(run["config"]["mode"])


def _short_mode(run: Run) -> str:
    return _mode(run).replace("backend-without-persistent", "backend-without")


def _print_words(console: Console, words: str) -> None:
    console.print(Text(words), highlight=False)
