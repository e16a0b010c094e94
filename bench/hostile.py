"""`./run.sh bench hostile`: each attack on a machine with honest guests, held to four bars.

Owns: the machine, the reference, the order, the bars. What an attack leaves the honest guests is
held against what they have beside as many processes that only burn CPU as it may keep busy by
right (`hostile/attacks.py`), measured right before or after it, in turn.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from bench.footprint import ENDLESS, TOOLSTACK, footprints, limit_descriptors
from bench.siege import Siege, besiege, bring_up_vcpus
from hostile.attacks import ATTACKS, REFERENCE
from toolstack.loadspec import LoadSpec
from toolstack.machine import Machine
from toolstack.topology import Mode, Topology

HONEST: Final = 2
NEWCOMERS: Final = 3
KEPT_AIM: Final = 0.8
MEMORY_LIMIT: Final = 64 << 20
DESCRIPTORS_LIMIT: Final = 256
HANDSHAKE_LIMIT_S: Final = 0.5

# Small disks: what is written to one is dom0's memory, too.
MACHINE: Final[dict[str, Any]] = {
    "guests": HONEST, "events": "pipe", "disk_mib": 16, "dom0_vcpus": 24
}  # fmt: skip
LOAD: Final[dict[str, Any]] = {"rw": "randrw", "bs": 4096, "iodepth": 32, "verify": False}
FILL: Final[dict[str, Any]] = {**LOAD, "rw": "write", "bs": 1 << 16, "iodepth": 8, "ios": 512}


class Pair(NamedTuple):
    """An attack, and the same machine beside its reference."""

    attacked: Siege
    reference: Siege

    @property
    def kept(self) -> float:
        """Of the honest guests' IOPS beside the reference."""
        return self.attacked.iops / self.reference.iops


class Row(NamedTuple):
    """One attack over all rounds: kept is the median, all else the worst."""

    attack: str
    kept: float
    grown: dict[str, int]
    descriptors: int
    handshake_s: float
    beside_reference_s: float
    left: list[str]

    @property
    def missed(self) -> list[str]:
        """The bars that it misses."""
        bars = {
            f"kept {self.kept:.2f}": self.kept >= KEPT_AIM,
            f"handshake {self.handshake_s:.2f} s": self.handshake_s < HANDSHAKE_LIMIT_S,
            f"{self.descriptors} descriptors": self.descriptors < DESCRIPTORS_LIMIT,
            **{f"{n} {b / 2**20:+.0f} MiB": b <= MEMORY_LIMIT for n, b in self.grown.items()},
            **dict.fromkeys(self.left, False),
        }
        return [what for what, held in bars.items() if not held]


def machine_of(mode: Mode) -> Machine:
    """The machine to be attacked, its disks written once, its three limited in descriptors."""
    machine = Machine(Topology(**MACHINE).with_mode(mode)).start()
    for name in ENDLESS:
        limit_descriptors(machine.pids[name], DESCRIPTORS_LIMIT)
    bring_up_vcpus(machine)
    for _ in machine.load(LoadSpec(**FILL)):
        pass  # until it ends
    return machine


def run_round(
    machine: Machine, attacks: Sequence[str], number: int, seconds: float
) -> Iterator[tuple[str, Pair]]:
    """Each attack and its reference, which goes first every other round. Raises MachineError."""
    spec, before = LoadSpec(**{**LOAD, "runtime_s": seconds}), footprints(machine.pids)
    for name in attacks:
        turns = [(name, 1), (REFERENCE, ATTACKS[name].busy)]
        done = {
            who: besiege(machine, before, who, count, spec, NEWCOMERS)
            for who, count in (turns if number % 2 == 0 else turns[::-1])
        }
        yield name, Pair(done[name], done[REFERENCE])


def row_of(attack: str, pairs: Sequence[Pair]) -> Row:
    """What an attack came to."""
    sieges = [pair.attacked for pair in pairs]
    return Row(
        attack,
        median(pair.kept for pair in pairs),
        {name: max(siege.grown(name) for siege in sieges) for name in (*ENDLESS, TOOLSTACK)},
        max(siege.descriptors for siege in sieges),
        max(max(siege.handshakes_s) for siege in sieges),
        max(max(pair.reference.handshakes_s) for pair in pairs),
        sorted({what for siege in sieges for what in siege.left}),
    )


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """A table of 80 columns, and what was missed in words."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("attack")
    for name in ("kept", "hyp.", "dom0", "store", "tools", "fds", "hand", "after"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.attack,
            _marked(f"{row.kept:.2f}", row.kept >= KEPT_AIM),
            *(
                _marked(f"{row.grown[name] / 2**20:.1f}", row.grown[name] <= MEMORY_LIMIT)
                for name in ("hypervisor", "dom0", "xenstored", TOOLSTACK)
            ),
            _marked(str(row.descriptors), row.descriptors < DESCRIPTORS_LIMIT),
            _marked(f"{row.handshake_s:.2f}", row.handshake_s < HANDSHAKE_LIMIT_S),
            "left!" if row.left else "clean",
        )
    console.print(table)
    console.print(
        f"kept: of the IOPS beside as many that only burn CPU (aimed at {KEPT_AIM}). hyp., dom0,"
        f" store, tools: MiB grown (at most {MEMORY_LIMIT >> 20}). fds: the most of them, of"
        f" {DESCRIPTORS_LIMIT}. hand: a newcomer's slowest handshake, s (under"
        f" {HANDSHAKE_LIMIT_S}). after: left behind. !: missed"
    )
    for row in rows:
        if row.missed:
            console.print(f"{row.attack}: missed: {'; '.join(row.missed)}")


def _marked(figure: str, held: bool) -> str:
    return figure if held else f"{figure}!"


def write_json(path: Path, mode: Mode, done: dict[str, list[Pair]]) -> None:
    """Every siege, and the rows."""
    document = {
        "schema": 1,
        "mode": mode,
        "sieges": {
            name: [{who: _plain(siege) for who, siege in pair._asdict().items()} for pair in pairs]
            for name, pairs in done.items()
        },
        "rows": [row_of(name, pairs)._asdict() for name, pairs in done.items()],
    }
    path.write_text(json.dumps(document, indent=2) + "\n")


def _plain(siege: Siege) -> dict[str, Any]:
    by_process = {
        field: {name: each._asdict() for name, each in getattr(siege, field).items()}
        for field in ("before", "most", "after")
    }
    return {**siege._asdict(), **by_process}
