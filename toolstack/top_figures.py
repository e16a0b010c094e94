"""What `top` shows, as numbers: a machine's figures between two looks at it.

Owns: which counter each figure is of. It has no clock and no screen.
Rules: what has come since the first look counts from nothing, what went is not shown, and a count
that has shrunk is another disk's or guest's and counts from nothing, too. None is not known: the
hypervisor counts flushes and IPIs by guest, and not by disk.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from common.histogram import BUCKETS, value_at
from toolstack.seen import Seen
from toolstack.words import ratio

US: Final = 1000  # nanoseconds


class Figures(NamedTuple):
    """Of a part of a machine, a second each; latencies in microseconds; maps, flushes and IPIs a
    request besides."""

    iops: float
    mb: float
    p50_us: float | None
    p99_us: float | None
    notify_to_back: float
    notify_to_front: float
    maps: float
    unmaps: float
    flushes: float | None
    ipis: float | None
    maps_a_request: float | None
    flushes_a_request: float | None
    ipis_a_request: float | None


class DiskFigures(NamedTuple):
    """used, slots: of its ring, 0 where none is shared; tree: grants that dom0 keeps mapped."""

    domid: int
    vdev: str
    state: str
    used: int
    slots: int
    tree: int
    figures: Figures


class GuestFigures(NamedTuple):
    """failure: how it died, or ""; mapped: grants that dom0 has mapped now."""

    domid: int
    name: str
    state: str
    failure: str
    mapped: int
    figures: Figures


class Figured(NamedTuple):
    """ipis_by_cpu: received, a second."""

    seconds: float
    loads: int
    total: Figures
    guests: list[GuestFigures]
    disks: list[DiskFigures]
    ipis_by_cpu: list[float]


def figured(before: Seen, after: Seen) -> Figured:
    """Of the machine from `before` to `after`."""
    seconds = after.snapshot.at_s - before.snapshot.at_s
    disks = after.status["disks"]
    changes = [_Change.of_disk(before, after, disk) for disk in disks]
    shown = [_disk(disk, change, seconds) for disk, change in zip(disks, changes, strict=True)]
    guests, of_guests = [], []
    for domain in after.status["domains"]:
        own = [c for d, c in zip(disks, changes, strict=True) if d["domid"] == domain["domid"]]
        of_guests.append(_sum(own)._replace(hypervisor=_hypervisor(before, after, domain["domid"])))
        guests.append(_guest(domain, of_guests[-1], seconds))
    cpus = _rows_grown(before.snapshot.cpus, after.snapshot.cpus)
    return Figured(
        seconds,
        after.status["loads"],
        _figures(_sum(of_guests), seconds),
        guests,
        shown,
        [_rate(cpu["ipis_received"], seconds) for cpu in cpus],
    )


Counts = Mapping[str, int]


class _Change(NamedTuple):
    """What was counted; hypervisor: {} of a part that it does not count."""

    frontend: Counts
    backend: Counts
    hypervisor: Counts
    latency: np.ndarray

    @classmethod
    def of_disk(cls, before: Seen, after: Seen, disk: Mapping[str, Any]) -> "_Change":
        """Of a disk of `after`."""
        was = {(d["domid"], d["number"]): d for d in before.status["disks"]}
        earlier = was.get((disk["domid"], disk["number"]))
        the_same = earlier is not None and earlier["vdev"] == disk["vdev"]

        def grown(block: str) -> np.ndarray | None:
            now, then = after.row(block, disk), before.row(block, disk) if the_same else None
            return now if now is None or then is None else _grown(then, now)

        latency = grown("latency")
        return cls(
            _counts(grown("frontend")),
            _counts(grown("backend")),
            {},
            np.zeros(BUCKETS, np.uint64) if latency is None else latency.sum(axis=0),
        )


def _sum(changes: Sequence[_Change]) -> _Change:
    nothing = np.zeros(BUCKETS, np.uint64)
    return _Change(
        _added([change.frontend for change in changes]),
        _added([change.backend for change in changes]),
        _added([change.hypervisor for change in changes]),
        np.sum([change.latency for change in changes], axis=0) if changes else nothing,
    )


def _added(counts: Sequence[Counts]) -> Counts:
    names = {name for each in counts for name in each}
    return {name: sum(each.get(name, 0) for each in counts) for name in names}


def _hypervisor(before: Seen, after: Seen, domid: int) -> Counts:
    now, then = (seen.snapshot.hypervisor.get(domid) for seen in (after, before))
    if now is None:
        return {}
    return _counts(now[0] if then is None else _grown(then[0], now[0]))


def _rows_grown(before: np.ndarray, after: np.ndarray) -> list[Counts]:
    return [_counts(_grown(then, now)) for then, now in zip(before, after, strict=False)]


def _grown(before: Any, after: Any) -> Any:
    """By how much every word has; words that have shrunk, from nothing."""
    if getattr(after.dtype, "names", None) is None:
        return np.where(after >= before, after - before, after)
    grown = after.copy()
    for name in after.dtype.names:
        now, then = int(after[name]), int(before[name])
        grown[name] = now - then if now >= then else now
    return grown


def _counts(row: Any) -> Counts:
    return {} if row is None else {name: int(row[name]) for name in row.dtype.names}


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _figures(change: _Change, seconds: float) -> Figures:
    front, back, hypervisor = change.frontend, change.backend, change.hypervisor
    # The hypervisor's has the ring page's own in it; of a disk there is the backend's alone.
    maps, unmaps = ((hypervisor or back).get(name, 0) for name in ("map_ops", "unmap_ops"))
    flushes, ipis = hypervisor.get("flushes"), hypervisor.get("ipis")
    requests = front.get("requests", 0)
    p50, p99 = (_latency(change.latency, percentile) for percentile in (50, 99))
    return Figures(
        iops=_rate(front.get("ios", 0), seconds),
        mb=_rate(sum(front.get(name, 0) for name in ("bytes_read", "bytes_written")), seconds)
        / 1e6,
        p50_us=p50,
        p99_us=p99,
        notify_to_back=_rate(front.get("notify_to_back", 0), seconds),
        notify_to_front=_rate(back.get("notify_to_front", 0), seconds),
        maps=_rate(maps, seconds),
        unmaps=_rate(unmaps, seconds),
        flushes=None if flushes is None else _rate(flushes, seconds),
        ipis=None if ipis is None else _rate(ipis, seconds),
        maps_a_request=ratio(maps, requests),
        flushes_a_request=ratio(flushes, requests),
        ipis_a_request=ratio(ipis, requests),
    )


def _latency(counts: np.ndarray, percentile: float) -> float | None:
    return value_at(counts, percentile) / US if counts.any() else None


def _disk(disk: Mapping[str, Any], change: _Change, seconds: float) -> DiskFigures:
    ring = disk["ring"] or {"used": 0, "slots": 0}
    return DiskFigures(
        disk["domid"],
        disk["vdev"],
        disk["state"],
        ring["used"],
        ring["slots"],
        disk["grants_kept"],
        _figures(change, seconds),
    )


def _guest(domain: Mapping[str, Any], change: _Change, seconds: float) -> GuestFigures:
    return GuestFigures(
        domain["domid"],
        domain["name"],
        domain["state"],
        domain["failure"],
        domain["grants_mapped"],
        _figures(change, seconds),
    )
