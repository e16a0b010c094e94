"""One attack on a running machine: what honest guests get beside it, and what it costs the others.

Owns: the order of one siege. The attackers come; the honest guests run a load beside them; another
guest comes and shakes hands, several times; the attackers go, and all is to be as it was. A
guest that its attack has ended is replaced by the next: then its births and deaths are the attack,
and the siege is not over before there has been one.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from bench.footprint import Footprint, footprints, highest
from hostile.attacks import ATTACKS
from toolstack.loadspec import LoadSpec
from toolstack.machine import Machine
from toolstack.snapshot import difference

ATTACKER: Final = 32  # domids: out of the way of the honest guests
NEWCOMER: Final = 48
LOOK_S: Final = 0.05
SETTLE_S: Final = 10.0
DEATH_S: Final = 20.0  # a CPU that others want may take it that long to do what it dies of
# What a heap and thread arenas keep for the next time, and neighbours that Linux has not merged.
MEMORY_SLACK: Final = 8 << 20
MAPPINGS_SLACK: Final = 64


class Siege(NamedTuple):
    """iops: of the honest guests, summed; strokes: of the attackers that are told of; suspect: an
    attacker's figures are not believed; handshakes_s: a newcomer's, each; deaths: how attackers
    died of what they did; before, most, after: by process.
    """

    iops: float
    strokes: int
    suspect: bool
    handshakes_s: list[float]
    deaths: list[str]
    before: dict[str, Footprint]
    most: dict[str, Footprint]
    after: dict[str, Footprint]

    def grown(self, name: str) -> int:
        """Bytes of memory of `name` at its most, beyond before."""
        return self.most[name].memory - self.before[name].memory

    @property
    def descriptors(self) -> int:
        """The most that any of the three had."""
        return max(most.descriptors for most in self.most.values())

    @property
    def left(self) -> list[str]:
        """What is not as it was before: nothing, if all is well."""
        return left_behind(self.before, self.after)


def left_behind(before: Mapping[str, Footprint], after: Mapping[str, Footprint]) -> list[str]:
    """In words, what `after` has beyond `before` and its slack."""
    found = []
    for name, (memory, descriptors, mappings) in after.items():
        if descriptors > before[name].descriptors:
            found.append(f"{name}: {descriptors - before[name].descriptors:+d} descriptors")
        if mappings > before[name].mappings + MAPPINGS_SLACK:
            found.append(f"{name}: {mappings - before[name].mappings:+d} mappings")
        if memory > before[name].memory + MEMORY_SLACK:
            found.append(f"{name}: {(memory - before[name].memory) >> 20:+d} MiB")
    return found


def bring_up_vcpus(machine: Machine) -> None:
    """Have every vCPU of dom0 serve a disk once: from the first on it has a thread and connections
    to the hypervisor, which are no attack's doing. Before anything is counted.
    """
    for _ in range(machine.topology.dom0_vcpus):
        machine.add_guest(NEWCOMER)
        machine.remove_guest(NEWCOMER)


class _Attackers:
    """So many guests that attack, replaced as they die of it."""

    def __init__(self, machine: Machine, attack: str, count: int) -> None:
        self._machine, self._attack = machine, attack
        self._fatal = ATTACKS[attack].fatal
        self._domids = range(ATTACKER, ATTACKER + count)
        self.strokes, self.suspect, self.deaths = 0, False, list[str]()
        self._dead: set[int] = set()
        for domid in self._domids:
            machine.add_guest(domid, attack)

    def look(self) -> None:
        """Have the dead replaced, if that is how they attack."""
        for domid in self._domids:
            if domid not in self._dead and self._machine.death_of(domid):
                self._bury(domid)
                if self._fatal:
                    self._machine.add_guest(domid, self._attack)
                else:
                    self._dead.add(domid)

    def _bury(self, domid: int) -> None:
        stats = self._machine.stats_of(domid)
        self.strokes += int(stats.read().counters["ios"][0])
        self.suspect = self.suspect or stats.suspect
        if death := self._machine.remove_guest(domid):
            self.deaths.append(death)

    def await_death(self, look: Callable[[], None]) -> None:
        """Until one has died of what it does, if that is what it is to do."""
        deadline = time.monotonic() + DEATH_S
        while self._fatal and not self.deaths and time.monotonic() < deadline:
            time.sleep(LOOK_S)
            look()

    def leave(self) -> None:
        """All of them, now."""
        for domid in self._domids:
            if domid not in self._dead:
                self._bury(domid)


def besiege(
    machine: Machine,
    before: Mapping[str, Footprint],
    attack: str,
    count: int,
    spec: LoadSpec,
    newcomers: int,
) -> Siege:
    """Let `count` guests attack while every honest guest runs `spec`, then while a newcomer's
    handshake is timed, `newcomers` times, from its creation to Connected.

    before: what the three held before any siege. Raises MachineError, and AssertionError where an
    honest guest read a wrong byte or had an error.
    """
    seen = {name: [each] for name, each in before.items()}

    def look() -> None:
        for name, each in footprints(machine.pids).items():
            seen[name].append(each)
        attackers.look()

    attackers = _Attackers(machine, attack, count)
    try:
        iops = _loaded(machine, spec, look)
        handshakes = list(_newcomers(machine, newcomers, look))
        attackers.await_death(look)
    finally:
        attackers.leave()
    most = {name: highest(each) for name, each in seen.items()}
    return Siege(
        iops,
        attackers.strokes,
        attackers.suspect,
        handshakes,
        attackers.deaths,
        dict(before),
        most,
        settled(machine, before),
    )


def _loaded(machine: Machine, spec: LoadSpec, look: Callable[[], None]) -> float:
    snapshots = [machine.snapshot()]
    for snapshot in machine.load(spec, every_s=LOOK_S):
        snapshots.append(snapshot)
        look()
    run = difference(snapshots[-1], snapshots[0])
    counts = list(run.frontend.values())
    for field in ("verify_errors", "io_errors"):
        assert not any(int(block[field][0]) for block in counts), field
    return sum(int(block["ios"][0]) for block in counts) / run.at_s


def _newcomers(machine: Machine, count: int, look: Callable[[], None]) -> Iterator[float]:
    for _ in range(count):
        began = time.monotonic()
        machine.add_guest(NEWCOMER)
        yield time.monotonic() - began
        look()
        machine.remove_guest(NEWCOMER)


def settled(machine: Machine, before: Mapping[str, Footprint]) -> dict[str, Footprint]:
    """What the three hold once that is as `before`, or the time for it is up."""
    deadline = time.monotonic() + SETTLE_S
    while left_behind(before, now := footprints(machine.pids)):
        if time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
    return now
