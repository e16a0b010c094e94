"""`./run.sh trace`: what a machine that is up does with its requests, as a timeline in a file.

Owns: its flags, and when the machine is looked at: for a moment again and again, so that what is
measured costs little of what it measures.
"""

import json
import time
from typing import TYPE_CHECKING, Final

import click

from toolstack.attached import AttachedMachine, attach
from toolstack.door import FAILED, Command, RunEnded, Within
from toolstack.failures import MachineError
from toolstack.flags import OUTPUT, Flag, machine_name
from toolstack.loadspec import ConfigError

if TYPE_CHECKING:
    from toolstack.timeline import Window

ANSWER_S: Final = 10.0
Device = tuple[int, int]
Named = tuple[int, str]

MS: Final = 1000  # of a second
WINDOW_MS: Final = 50.0
EVERY: Final = 20  # windows' lengths from one's begin to the next one's
BYTES_MAX: Final = 64 << 20  # of logs: then it ends early
SETTLE_S: Final = 0.01  # a slice that has begun in a window is written to its end


def _trace(name: str, seconds: float, out: str, window: float) -> None:
    from toolstack.timeline import timeline  # noqa: PLC0415

    with attach(name, ANSWER_S) as machine:
        try:
            file = open(out, "w", encoding="utf-8")  # noqa: SIM115 - now, not at the end
        except OSError as error:
            raise ConfigError(f"output: '{out}' cannot be written: {error.strerror}") from None
        with file:
            windows, disks, ended = list["Window"](), dict[Device, Named](), ""
            status = FAILED
            try:
                disks |= _disks(machine)
                _look(machine, windows, seconds, window / MS)
                disks |= _disks(machine)  # those that have come meanwhile
            except MachineError as error:  # what has been seen until then is worth a file
                ended = f"machine {name!r}: {error}"
            except RunEnded as signal:
                what = str(signal).partition(";")[0]
                ended, status = f"{what}; {name} stays", signal.status
            made = timeline(windows, disks, machine.topology.dom0_vcpus)
            json.dump(made, file)
    told = made["otherData"]
    full = "; it ended early: there was much" if _bytes_of(windows) >= BYTES_MAX else ""
    click.echo(
        f"{out}: {told['requests']} requests in {told['windows']} moments of {window:g} ms"
        f" ({told['requests_cut']} cut by a moment's edge){full}"
    )
    if ended:
        raise RunEnded(ended, status)


def _look(
    machine: AttachedMachine, windows: "list[Window]", seconds: float, length_s: float
) -> None:
    """Add a window, and another, until it is time."""
    end_s = time.monotonic() + seconds
    while not windows or (time.monotonic() < end_s and _bytes_of(windows) < BYTES_MAX):
        began_s = time.monotonic()
        windows.append(_window(machine, length_s))
        left = min(end_s, began_s + EVERY * length_s) - time.monotonic()
        time.sleep(max(0.0, left))


def _disks(machine: AttachedMachine) -> dict[Device, Named]:
    """Its disks' numbers and names, by domid and device."""
    return {
        (disk["domid"], disk["device"]): (disk["number"], disk["vdev"])
        for disk in machine.status()["disks"]
    }


def _bytes_of(windows: "list[Window]") -> int:
    return sum(len(log[-1]) for window in windows for log in window.taken["logs"])


def _window(machine: AttachedMachine, seconds: float) -> "Window":
    from toolstack.timeline import Window  # noqa: PLC0415

    begin_ns = time.monotonic_ns()
    until_ns = machine.open_trace(seconds)
    time.sleep(seconds + SETTLE_S)
    return Window(begin_ns, until_ns, machine.take_trace())


trace = Command(
    "trace",
    callback=_trace,
    params=[
        machine_name(),
        Flag(
            OUTPUT,
            "--seconds",
            "seconds",
            type=Within(float, 0, 3600, above=True),
            default=5.0,
            metavar="S",
            help="How long (default: 5).",
        ),
        Flag(OUTPUT, "-o", "--output", "out", required=True, metavar="FILE", help="Write there."),
        Flag(
            OUTPUT,
            "--window",
            "window",
            type=Within(float, 1, 1000),
            default=WINDOW_MS,
            metavar="MS",
            help=f"Of each {EVERY} times as long, so long is traced (default: {WINDOW_MS:g}).",
        ),
    ],
    help="Write a timeline for Perfetto of what a machine that is up does: its requests through"
    " guest and dom0, hypercalls, flushes, and IPIs by CPU, a moment of every second.",
    short_help="A timeline of requests, for Perfetto.",
)
