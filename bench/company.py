"""`./run.sh bench company`: what is left of a machine's speed beside strangers that burn CPU.

Owns: the busy loops, the conditions and their order, the two ratios. Each condition is measured
once a round, and every other round backwards, so that a slow moment falls on all; of the rounds the
medians count, and the ratios are of these: a ratio to the better of two, taken in each round, would
be below one by the noise alone.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, Final, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from bench.figure import Figure
from bench.sampling import Cell, people
from toolstack import ConfigError
from toolstack.topology import Mode

SPINS: Final = ("adaptive", "off")
OF_BETTER_AIM: Final = 0.9
OF_ALONE_AIM: Final = 0.3
CROWD: Final = 4  # guests from which the second aim holds: fewer have an idle CPU to lose

# Looks now and then whether we are gone, `kill -9` included: a stray one would burn for ever.
BUSY: Final = """\
import os, sys
while os.getppid() == int(sys.argv[1]):
    for _ in range(1 << 18):
        pass
"""


class Condition(NamedTuple):
    """A machine, and beside how many busy loops."""

    cell: Cell
    loops: int


Measure = Callable[[Cell], Figure]
Rounds = list[dict[Condition, Figure]]


def conditions(mode: Mode, guests: Sequence[int], loops: int) -> list[Condition]:
    """Both waiters, alone and beside the loops; those to be compared next to each other."""
    return [
        Condition(Cell(mode, count, spin), beside)
        for count in guests
        for beside in (0, loops)
        for spin in SPINS
    ]


def in_order(plan: list[Condition], number: int) -> list[Condition]:
    """The conditions of round `number`, counted from 0."""
    return plan if number % 2 == 0 else plan[::-1]


def run_round(plan: list[Condition], number: int, measure: Measure) -> dict[Condition, Figure]:
    """Measure every condition once."""
    figures = {}
    for condition in in_order(plan, number):
        with busy_loops(condition.loops):
            figures[condition] = measure(condition.cell)
    return figures


@contextmanager
def busy_loops(count: int) -> Iterator[list[int]]:
    """So many processes that only burn CPU; gone afterwards, however this is left. Their pids."""
    command = [sys.executable, "-I", "-S", "-c", BUSY, str(os.getpid())]
    none, loops = subprocess.DEVNULL, list[subprocess.Popen[bytes]]()
    try:
        for _ in range(count):
            loops.append(subprocess.Popen(command, stdin=none, stdout=none, stderr=none))
        yield [loop.pid for loop in loops]
    finally:
        for loop in loops:
            loop.kill()
        for loop in loops:
            loop.wait()


@contextmanager
def only_on(cpus: Sequence[int] | None) -> Iterator[None]:
    """Everything started meanwhile runs on these CPUs only. Raises ConfigError."""
    before = os.sched_getaffinity(0)
    if absent := sorted(set(cpus or ()) - before):
        allowed = ", ".join(map(str, sorted(before)))
        raise ConfigError(f"cpus: {absent[0]} is not one of {allowed}")
    try:
        os.sched_setaffinity(0, cpus or before)
        yield
    finally:
        os.sched_setaffinity(0, before)


class Verdict(NamedTuple):
    """Of one number of guests: the default beside the loops, by the better, and by alone."""

    guests: int
    of_better: float
    of_alone: float

    def __str__(self) -> str:
        better = _aimed(self.of_better, OF_BETTER_AIM)
        alone = f"{self.of_alone:.2f}"
        if self.guests >= CROWD:
            alone = _aimed(self.of_alone, OF_ALONE_AIM)
        return (
            f"{people(self.guests)}: the default does {better} of the better"
            f" beside the loops, {alone} of what it does alone"
        )


def _aimed(ratio: float, aim: float) -> str:
    return f"{ratio:.2f} (aimed at {aim:g}{'' if ratio >= aim else ': MISSED'})"


def medians(rounds: Rounds) -> dict[Condition, float]:
    """IOPS of each condition: the median of the rounds."""
    return {each: median(done[each].iops for done in rounds) for each in rounds[0]}


def verdicts(iops: dict[Condition, float]) -> list[Verdict]:
    """The two ratios for each number of guests."""
    found = list[Verdict]()
    for (cell, loops), beside in iops.items():
        if loops and cell.spin == SPINS[0]:
            off = iops[Condition(cell._replace(spin=SPINS[1]), loops)]
            alone = iops[Condition(cell, 0)]
            found.append(Verdict(cell.guests, beside / max(beside, off), beside / alone))
    return sorted(found)


def as_json(rounds: Rounds) -> dict[str, Any]:
    """Every sample of every round, and what they come to."""
    return {
        "schema": 1,
        "rounds": [
            [
                {**cell._asdict(), "loops": loops, **figure._asdict()}
                for (cell, loops), figure in done.items()
            ]
            for done in rounds
        ],
        "verdicts": [verdict._asdict() for verdict in verdicts(medians(rounds))],
    }


def print_company(console: Console, rounds: Rounds) -> None:
    """Medians in a table, the ratios in words."""
    iops = medians(rounds)
    loops = max(condition.loops for condition in iops)
    table = Table(
        title=f"IOPS, medians of {len(rounds)} rounds", box=box.SIMPLE_HEAD, show_edge=False
    )
    for name in ("guests", "spin", "alone", f"beside {loops} loops", "beside / alone"):
        table.add_column(name, justify="right")
    for cell, beside in sorted(iops):
        if not beside:
            alone, crowded = iops[Condition(cell, 0)], iops[Condition(cell, loops)]
            row = (f"{alone:,.0f}", f"{crowded:,.0f}", f"{crowded / alone:.3f}")
            table.add_row(str(cell.guests), cell.spin, *row)
    console.print(table)
    for verdict in verdicts(iops):
        console.print(str(verdict))
