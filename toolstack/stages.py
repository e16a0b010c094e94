"""A load that runs on a machine, from what was counted before it to what was when it ended.

Owns: what of a run is the load's: not its ramp. Ctrl-C ends the load, not the measuring.
"""

from collections.abc import Generator
from contextlib import closing
from typing import NamedTuple, Protocol

from rich.console import Console

from toolstack.door import RunEnded
from toolstack.failures import GuestFailed
from toolstack.jobs import jobs_on
from toolstack.loadspec import LoadSpec
from toolstack.progress import Progress
from toolstack.snapshot import Snapshot
from toolstack.topology import Topology


class Loadable(Protocol):
    """A machine, or some disks of one."""

    def snapshot(self) -> Snapshot: ...

    def load(self, load: LoadSpec) -> Generator[Snapshot, None, None]: ...


class Stage(NamedTuple):
    """A load that has run, and what was counted when it began, its ramp over, and when it ended;
    ended: why that was early, if it was;
    topology: the machine's, as it was then."""

    topology: Topology
    spec: LoadSpec
    started: Snapshot
    finished: Snapshot
    ended: RunEnded | None


def run_stage(
    machine: Loadable, topology: Topology, spec: LoadSpec, console: Console, name: str = ""
) -> Stage:
    """One load. What is before the end of its ramp is not counted. name: what the progress is
    called."""
    load = machine.load(spec)
    started = finished = machine.snapshot()
    ramped_s, ramps = started.at_s + spec.lead_s, spec.lead_s > 0
    called = name or topology.mode
    progress = Progress(console, called, jobs_on(spec, topology.every_disk()), started)
    try:
        # However this is left, the loads are stopped before the machine is closed.
        with closing(load), progress:
            for finished in load:
                if ramps:
                    started = finished
                    progress.begin(finished)
                    ramps = finished.at_s < ramped_s
                progress.update(finished)
    except GuestFailed:
        finished = machine.snapshot()  # the machine remembers who, and how
    except RunEnded as signal:
        return Stage(topology, spec, started, machine.snapshot(), signal)
    return Stage(topology, spec, started, finished, None)
