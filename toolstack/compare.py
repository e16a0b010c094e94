"""`./run.sh compare`: the same seeded load on real processes and in the simulator, count by count.

Owns: the shape of load in which timing cannot matter, and which counts must then agree exactly.
Rule: one I/O in flight for each guest and every CPU in the mask (no CPU leaves it under `mask`,
`accessed` and `precise`). Then no count depends on who was faster, not even which page is reused.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.table import Table

from toolstack.cli import run_mode
from toolstack.door import RunEnded
from toolstack.loadspec import LoadSpec
from toolstack.results import COUNTERS, Run, faults
from toolstack.simulate import simulate_run
from toolstack.topology import MODES, Topology

IODEPTH: Final = 1
TIMELESS_POLICIES: Final = ("mask", "accessed", "precise")
TOTALS: Final = ("requests", "segments", "bytes_read", "bytes_written")
# Who happened to wait for whom: the one count that is about time.
COUNTS: Final = (*(name for name in COUNTERS if name != "flush_lock_waits"), "ipis_by_cpu")
PHASES: Final = ("setup", "teardown")


class Count(NamedTuple):
    """One count on both sides; `who` is a guest, a disk, or the whole machine."""

    mode: str
    who: str
    name: str
    real: Any
    simulated: Any


def topologies(**settings: Any) -> list[Topology]:
    """A machine for each mode. Raises ConfigError."""
    return [Topology(**{**settings, "spin": "off", **mode}) for mode in MODES.values()]


def load(**settings: Any) -> LoadSpec:
    """A load whose counts do not depend on time. Raises ConfigError."""
    return LoadSpec(**{**settings, "iodepth": IODEPTH, "runtime_s": None})


def both(topology: Topology, spec: LoadSpec) -> tuple[Run, Run]:
    """The RUN of real processes, and the simulator's."""
    (measured,) = run_mode(topology, [spec], Topology.start, Console(quiet=True), True)
    if measured.ended is not None:
        raise measured.ended
    if found := faults([measured.run], [measured.grants_left], [measured.failures]):
        raise RunEnded(found)
    return measured.run, simulate_run(topology, spec)[0]


def counts(real: Run, simulated: Run) -> Iterator[Count]:
    """Every count that must agree, of the machine, each guest and each disk, in each phase."""
    mode = real["config"]["mode"]
    pairs = [("all", real, simulated)]
    for ours, theirs in zip(real["guests"], simulated["guests"], strict=True):
        guest = f"guest {ours['domid']}"
        pairs.append((guest, ours, theirs))
        pairs += [
            (f"{guest} {disk['vdev']}", disk, other)
            for disk, other in zip(ours["disks"], theirs["disks"], strict=True)
        ]
    for who, ours, theirs in pairs:
        for name in TOTALS:
            yield Count(mode, who, name, ours["totals"][name], theirs["totals"][name])
        for name in COUNTS:
            yield Count(mode, who, name, ours["counters"][name], theirs["counters"][name])
            for phase in PHASES:
                one, other = (run["counters"][phase][name] for run in (ours, theirs))
                yield Count(mode, who, f"{phase} {name}", one, other)


def compare(machines: Sequence[Topology], spec: LoadSpec, console: Console) -> None:
    """Run each machine on both and print the counts. Raises RunEnded if any differ."""
    found: list[Count] = []
    for topology in machines:
        console.print(f"{topology.mode}: real processes, then the simulator")
        found += counts(*both(topology, spec))
    console.print(_table(found))
    differing = [count for count in found if count.real != count.simulated]
    for count in differing:
        console.print(f"{count.mode}, {count.who}, {count.name}: {count.real} {count.simulated}")
    if differing:
        raise RunEnded(f"{len(differing)} of {len(found)} counts differ")
    console.print(f"All {len(found)} counts agree, disk by disk, set-up and tear-down included.")


def _table(found: list[Count]) -> Table:
    table = Table(title=f"The load's counts, at depth {IODEPTH}: real = simulated")
    modes = list(dict.fromkeys(count.mode for count in found))
    for name in ("", *modes):
        table.add_column(name, justify="right" if name else "left")
    whole = {(count.name, count.mode): count for count in found if count.who == "all"}
    for name in (*TOTALS, *COUNTS[:-1]):
        cells = [whole[name, mode] for mode in modes]
        table.add_row(name, *(_shown(count.real, count.simulated) for count in cells))
    return table


def _shown(real: Any, simulated: Any) -> str:
    return f"{real:,}" if real == simulated else f"[red]{real:,} ≠ {simulated:,}[/red]"
