"""`report`: a machine that stays, looked at for a while, as one HTML file that needs nothing else.

Owns: what is looked at, and what goes into the template (`toolstack/templates/machine.html.j2`).
The figures are those of `toolstack/results.py`, as if what was seen had been a load.
"""

import io
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from matplotlib.figure import Figure

from toolstack import live_pictures, report
from toolstack.attached import AttachedMachine
from toolstack.html import embedded, rendered
from toolstack.pictures import DPI
from toolstack.results import Run, build_run
from toolstack.settings import Settings
from toolstack.snapshot import Snapshot
from toolstack.words import number

SECTIONS: Final = ("Throughput", "Latency, microseconds", "For 1,000 requests", "TLB shootdowns")


class Seen(NamedTuple):
    """What a machine said of itself, and every counter from time to time; two at least."""

    name: str
    described: dict[str, Any]
    status: dict[str, Any]
    topology: Settings
    connected: Snapshot
    moments: list[Snapshot]


def watch(machine: AttachedMachine, seconds: float, every_s: float) -> Seen:
    """Look at `machine` for a while. Raises MachineError."""
    moments = list(_moments(machine, seconds, every_s))
    connected = machine.connected
    assert connected is not None
    said = (machine.described, machine.status(), machine.topology)
    return Seen(machine.name, *said, connected, moments)


def _moments(machine: AttachedMachine, seconds: float, every_s: float) -> Iterator[Snapshot]:
    begin, count = time.monotonic(), max(1, round(seconds / every_s))
    yield machine.snapshot()
    for nth in range(1, count + 1):
        time.sleep(max(0.0, begin + nth * seconds / count - time.monotonic()))
        yield machine.snapshot()


def page(seen: Seen) -> str:
    """The report's text."""
    run = _run(seen, seen.moments[0], seen.moments[-1])
    shares = {(its["domid"], disk["vdev"]): disk for its in run["guests"] for disk in its["disks"]}
    disks = [(disk, (disk["domid"], disk["vdev"])) for disk in seen.status["disks"]]
    return rendered(
        "machine",
        seen=seen,
        seconds=seen.moments[-1].at_s - seen.moments[0].at_s,
        domains=seen.status["domains"],
        disks=[_disk_row(disk, shares[key]) for disk, key in disks if key in shares],
        pictures=[
            {"caption": caption, "data": _encoded(picture)}
            for caption, picture in (
                ("I/Os a second, by disk.", live_pictures.throughput(seen.moments, _labels(seen))),
                ("What a request costs, on a scale of powers of ten.", _costs(seen)),
                ("IPIs a second that each of dom0's CPUs takes.", live_pictures.ipis(seen.moments)),
            )
        ],
        sections=[_section(title, run, _run(seen, seen.connected, seen.moments[-1]))
                  for title in SECTIONS],
        reading=report.reading([run]),
        caveat=report.caveat([run]),
    )  # fmt: skip


def _run(seen: Seen, before: Snapshot, after: Snapshot) -> Run:
    return build_run(
        seen.topology, None, booted=before, started=before, finished=after, closed=after
    )


def _labels(seen: Seen) -> dict[tuple[int, int], str]:
    """What each disk, by domid and number, is called."""
    return {
        (disk.domid, disk.number): f"{disk.domid}:{disk.vdev}"
        for disk in seen.topology.every_disk()
    }


def _costs(seen: Seen) -> Figure:
    return live_pictures.costs(seen.moments)


def _section(title: str, run: Run, since: Run) -> tuple[str, list[tuple[str, str, str]]]:
    rows = report.SECTIONS[title]
    return title, [(name, number(value(run)), number(value(since))) for name, value in rows]


def _disk_row(disk: dict[str, Any], share: dict[str, Any]) -> list[str]:
    """A disk's state, and its share of what was seen."""
    latency, totals = share["latency_us"], share["totals"]
    return [
        str(disk["domid"]),
        disk["vdev"],
        disk["target"] + (", read-only" if disk["access"] == "ro" else ""),
        disk["state"],
        number(disk["grants_kept"]),
        number(totals["iops"]),
        number(latency["p50"]),
        number(latency["p99"]),
        number(totals["verify_errors"] + totals["io_errors"]),
    ]


def _encoded(picture: Figure) -> str:
    image = io.BytesIO()
    picture.savefig(image, format="png", dpi=DPI, metadata={"Software": None})
    return embedded(image.getvalue())
