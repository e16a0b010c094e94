"""A traced run as a timeline: requests across guest, dom0 and hypervisor, put together from logs.

Owns: which entry is of which request, and what is believed of a guest's. Format: Chrome's trace
events, as Perfetto reads them.
A request is a disk's and its place in the ring's free-running order, which both ends number alike.
Rules: a guest's entries count if they lie in their window; a request is shown if each of its times
is known and none comes before its cause: what a window's edge cuts is counted, and not shown.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np

from backend import steps as back_steps
from common.abi import GNTTABOP_MAP_GRANT_REF, GNTTABOP_UNMAP_GRANT_REF
from common.trace_log import CALL_ENTRY, RING_NAME, STEP_ENTRY
from frontend import steps as front_steps
from looking.ring_page import OPERATIONS

US: Final = 1000  # nanoseconds
DOM0, HYPERVISOR, CPUS = 100_000, 100_001, 100_002  # processes of the timeline, behind all domids
CALLS: Final = {GNTTABOP_MAP_GRANT_REF: "map", GNTTABOP_UNMAP_GRANT_REF: "unmap"}
WITHIN_NS: Final = 50_000_000  # a slice may go on behind its window's end

Disks = Mapping[tuple[int, int], tuple[int, str]]  # by domid and device: number, vdev
Event = dict[str, Any]


@dataclass
class Request:
    """Times in nanoseconds, 0: not known."""

    domid: int
    number: int
    index: int
    ident: int
    sector: int
    operation: int
    put: int
    published: int = 0
    taken: int = 0
    responds: int = 0
    answered: int = 0
    finished: int = 0

    @property
    def is_whole(self) -> bool:
        """Is every time known, and in order?"""
        times = (self.put, self.published, self.taken, self.responds, self.answered, self.finished)
        return 0 not in times and list(times) == sorted(times)


@dataclass
class Window:
    """One moment in which logs were on: `begin_ns` to `until_ns`."""

    begin_ns: int
    until_ns: int
    taken: dict[str, Any]
    logs: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind, number, _, raw in self.taken["logs"]:
            entries = np.frombuffer(raw, CALL_ENTRY if kind == "calls" else STEP_ENTRY)
            at_ns = entries["at_ns"].astype(np.int64)
            sound = (at_ns >= self.begin_ns) & (at_ns <= self.until_ns + WITHIN_NS)
            self.logs[kind, number] = entries[sound]

    @property
    def full(self) -> int:
        """How many logs had no room left."""
        return sum(full for _, _, full, _ in self.taken["logs"])


def requests(window: Window, disks: Disks) -> list[Request]:
    """All that its guests have put, with what is known of each."""
    found: dict[tuple[int, int, int], Request] = {}
    for (kind, domid), entries in window.logs.items():
        if kind == "front":
            _take_front(found, domid, entries)
    names = np.frombuffer(window.taken["rings"], RING_NAME)
    by_ident: dict[tuple[int, int, int], Request] = {}
    for (kind, _), entries in window.logs.items():
        if kind == "back":
            _take_back(found, by_ident, entries, names, disks)
    return list(found.values())


def _take_front(
    found: dict[tuple[int, int, int], Request], domid: int, entries: np.ndarray
) -> None:
    unpublished: dict[int, list[Request]] = {}
    for entry in entries.tolist():
        at_ns, sector, index, ident, number, step, operation, *_ = entry
        if step == front_steps.PUT:
            request = Request(domid, number, index, ident, sector, operation, at_ns)
            found[domid, number, index] = request
            unpublished.setdefault(number, []).append(request)
        elif step == front_steps.PUBLISH:
            for request in unpublished.pop(number, ()):
                request.published = at_ns
        elif step == front_steps.FINISH and (domid, number, index) in found:
            found[domid, number, index].finished = at_ns  # the last is that of its end


def _take_back(
    found: Mapping[tuple[int, int, int], Request],
    by_ident: dict[tuple[int, int, int], Request],
    entries: np.ndarray,
    names: np.ndarray,
    disks: Disks,
) -> None:
    unpublished: dict[int, list[Request]] = {}
    for entry in entries.tolist():
        at_ns, _, index, ident, ring, step, *_ = entry
        domid, device = names[ring].tolist() if ring < len(names) else (0, 0)
        if (domid, device) not in disks:
            continue
        number, _ = disks[domid, device]
        if step == back_steps.TAKE and (request := found.get((domid, number, index))) is not None:
            request.taken = at_ns
            by_ident[domid, number, request.ident] = request
        elif step == back_steps.RESPOND:
            answers = by_ident.pop((domid, number, ident), None)
            if answers is not None:
                answers.responds = at_ns
                unpublished.setdefault(ring, []).append(answers)
        elif step == back_steps.PUBLISH:
            for request in unpublished.pop(ring, ()):
                request.answered = at_ns


def timeline(windows: list[Window], disks: Disks, nr_cpus: int) -> dict[str, Any]:
    """The file's contents."""
    start_ns = windows[0].begin_ns if windows else 0
    vdevs = {(domid, number): vdev for (domid, _), (number, vdev) in disks.items()}
    events: list[Event] = list(_names(sorted({domid for domid, _ in disks}), nr_cpus))
    whole = cut = 0
    for window in windows:
        for request in requests(window, disks):
            whole, cut = whole + request.is_whole, cut + (not request.is_whole)
            if request.is_whole:
                vdev = vdevs.get((request.domid, request.number), "?")
                events += _request_events(request, vdev, start_ns)
        for (kind, number), entries in window.logs.items():
            if kind == "back":
                events += _phases(entries, number, start_ns)
            elif kind == "calls":
                events += _calls(entries, start_ns)
    other = {
        "windows": len(windows), "requests": whole, "requests_cut": cut,
        "logs_full": sum(window.full for window in windows),
    }  # fmt: skip
    return {"displayTimeUnit": "ns", "otherData": other, "traceEvents": events}


def _names(domids: list[int], nr_cpus: int) -> Iterator[Event]:
    named = {domid: f"guest-{domid}" for domid in domids}
    named |= {DOM0: "dom0", HYPERVISOR: "hypervisor", CPUS: "worker CPUs"}
    for order, (pid, name) in enumerate(named.items()):
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": order}}
    for cpu in range(nr_cpus):
        for pid, name in ((DOM0, f"vCPU {cpu}"), (CPUS, f"CPU {cpu}")):
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": cpu, "args": {"name": name}}
    calls = {"args": {"name": "grant-table hypercalls"}}
    yield {"ph": "M", "name": "thread_name", "pid": HYPERVISOR, "tid": 0, **calls}


def _request_events(request: Request, vdev: str, start_ns: int) -> Iterator[Event]:
    """A span in the guest, in it when it was published; and one in dom0."""
    what = OPERATIONS.get(request.operation, "?")
    name, ident = f"{request.domid}:{vdev} {what}", f"{request.domid}:{vdev}:{request.put}"
    args = {"ring index": request.index, "id": request.ident, "sector": request.sector}
    common = {"cat": "request", "id": ident, "name": name}
    for pid, begin, end in (
        (request.domid, request.put, request.finished),
        (DOM0, request.taken, request.answered),
    ):
        own = {**common, "pid": pid, "tid": 0}
        yield {**own, "ph": "b", "ts": (begin - start_ns) / US, "args": args}
        if pid != DOM0:
            yield {**own, "ph": "n", "ts": (request.published - start_ns) / US, "name": "published"}
        yield {**own, "ph": "e", "ts": (end - start_ns) / US}


BETWEEN: Final = {  # a phase, and the one that follows it: what is done meanwhile
    (back_steps.TAKE, back_steps.MAP): "take",
    (back_steps.TAKE, back_steps.RELEASE): "take and move",
    (back_steps.TAKE, back_steps.TAKE): "take",
    (back_steps.MAP, back_steps.MAPPED): "map",
    (back_steps.MAPPED, back_steps.MAP): "mapped",
    (back_steps.MAPPED, back_steps.RELEASE): "move",
    (back_steps.RELEASE, back_steps.UNMAP): "release",
    (back_steps.RELEASE, back_steps.RESPOND): "release",
    (back_steps.UNMAP, back_steps.UNMAPPED): "unmap",
    (back_steps.UNMAPPED, back_steps.RESPOND): "unmapped",
    (back_steps.RESPOND, back_steps.PUBLISH): "respond",
    (back_steps.RESPOND, back_steps.RESPOND): "respond",
}


def _phases(entries: np.ndarray, vcpu: int, start_ns: int) -> Iterator[Event]:
    """What a vCPU did, one thing after the other."""
    rows = entries.tolist()
    for one, other in pairwise(rows):
        name = BETWEEN.get((one[5], other[5]))
        if name is not None and one[4] == other[4]:  # of one ring
            begin, ns = one[0] - start_ns, other[0] - one[0]
            yield {
                "ph": "X", "name": name, "pid": DOM0, "tid": vcpu, "ts": begin / US, "dur": ns / US
            }  # fmt: skip


def _calls(entries: np.ndarray, start_ns: int) -> Iterator[Event]:
    """Hypercalls, the flushes in them, and the CPUs that each interrupted."""
    for at_ns, end_ns, vcpu, cmd, flushes, ipis, interrupted in entries.tolist():
        end = {"ts": (end_ns - start_ns) / US, "tid": 0}
        yield {
            "ph": "X", "name": CALLS.get(cmd, f"command {cmd}"), "pid": HYPERVISOR, "tid": 0,
            "ts": (at_ns - start_ns) / US, "dur": (end_ns - at_ns) / US,
            "args": {"vCPU": vcpu, "flushes": flushes, "IPIs": ipis},
        }  # fmt: skip
        if flushes:
            name = f"flush, {ipis} IPIs"
            yield {"ph": "i", "s": "t", "name": name, "pid": HYPERVISOR, **end}
        for cpu in _cpus_of(interrupted):
            yield {"ph": "i", "s": "t", "name": "IPI", "pid": CPUS, **end, "tid": cpu}


def _cpus_of(words: np.ndarray) -> list[int]:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return [int(cpu) for cpu in np.flatnonzero(bits)]
