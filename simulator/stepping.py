"""A simulated machine, one phase at a time: what each phase touches, and what it changes there.

Owns: who is next (everybody who can run, a phase each, in turns), and how a phase's access is seen:
the words that both ends share are compared before it and after it. The phases, their order and
their accesses are the real ones (`frontend/steps.py`, `backend/steps.py`). No time passes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from backend.blkback import BROKEN_REASONS as BACK_REASONS
from backend.doors import called_for
from backend.steps import PHASES as BACK_PHASES
from common import abi, effects
from common.event_channel import clear_pending
from common.faults import PeerFault
from common.steps import ANY_STEP, STEP, Phase
from common.xenbus import disk_name
from frontend.blkfront_info import BROKEN_REASONS as FRONT_REASONS
from frontend.blkfront_info import Blkfront
from frontend.steps import PHASES as FRONT_PHASES
from looking.grants import grant_table
from looking.ring_page import Slot, ring_page
from simulator.guests import Disk
from simulator.machine import Machine

CALLS: Final = {
    abi.GNTTABOP_MAP_GRANT_REF: "GNTTABOP_map_grant_ref",
    abi.GNTTABOP_UNMAP_GRANT_REF: "GNTTABOP_unmap_grant_ref",
    abi.GNTTABOP_COPY: "GNTTABOP_copy",
}
HEADER: Final = ("req_prod", "req_event", "rsp_prod", "rsp_event")


class Stepped(NamedTuple):
    """One phase that was done. who: of which end; disk: of which disk, where there are several;
    access: what of the peer's the phase touches, "" if nothing; changes: what is different in
    shared memory now; then: the effect that it ended with, "" if there was none.
    """

    number: int
    who: str
    disk: str
    phase: str
    access: str
    changes: tuple[str, ...]
    then: str

    def __str__(self) -> str:
        then = (f"=> {self.then}",) if self.then else ()
        whose = f"{self.who:<9}{f'{self.disk} ' if self.disk else ''}"
        line = f"{self.number:5d}  {whose}{self.phase:<13}{self.access or '-'}"
        indent = " " * (7 + len(whose))
        return "\n".join((line, *(f"{indent}{what}" for what in (*self.changes, *then))))


class _Shared:
    """What a guest and its backend share, as it was when last looked at."""

    def __init__(self, dev: Blkfront) -> None:
        self._dev = dev
        self._before = self._now()

    def _now(self) -> tuple[np.ndarray, np.ndarray, bool, bool]:
        dev = self._dev
        port = int(dev.events.port[0])
        pending = (dev.events.pending, dev.events.far_pending)
        own, far = (bool(int(words[port >> 6]) >> (port & 63) & 1) for words in pending)
        return dev.words.copy(), dev.grants.entries.copy(), own, far

    def changes(self) -> tuple[str, ...]:
        """What has changed since, in words."""
        (words, entries, own, far), self._before = self._before, self._now()
        words_now, entries_now, own_now, far_now = self._before
        found = [*_ring_changes(words, words_now), *_grant_changes(entries, entries_now)]
        for name, was, now in (("guest", own, own_now), ("dom0", far, far_now)):
            if was != now:
                found.append(f"{name}'s event {'set' if now else 'taken'}")
        return tuple(found)


def _ring_changes(before: np.ndarray, after: np.ndarray) -> Iterator[str]:
    for name, was, now in zip(HEADER, before, after, strict=False):
        if was != now:
            yield f"{name} {was} -> {now}"
    header = abi.SRING_HEADER_SIZE // 4
    changed = np.flatnonzero(before[header:] != after[header:])
    for number in np.unique(changed * 4 // abi.BLKIF_REQUEST.itemsize).tolist():
        yield _slot_text(after, number)


def _slot_text(words: np.ndarray, number: int) -> str:
    """What was just written into a slot: not published yet, so the indices are moved on by hand."""
    page = words.copy()
    producers = {name: int(page[at]) for at, name in enumerate(HEADER)}
    nr_ents = abi.blkif_ring_size(page.nbytes // abi.XEN_PAGE_SIZE)
    ahead = (number - producers["req_prod"]) % nr_ents
    unanswered = (producers["req_prod"] - producers["rsp_prod"]) % (1 << 32)
    writes_request = ahead < nr_ents - unanswered
    page[0 if writes_request else 2] += np.uint32(
        ahead + 1 if writes_request else (number - producers["rsp_prod"]) % nr_ents + 1
    )
    slot: Slot = ring_page(page.view(np.uint8)).slots[number]
    segments = "".join(f" {gref}[{first}-{last}]" for gref, first, last in slot.segments)
    detail = f"sector {slot.sector}{segments}" if slot.sector is not None else slot.status
    return f"slot {number}: {slot.what} {slot.id} {slot.operation} {detail}"


def _grant_changes(before: np.ndarray, after: np.ndarray) -> Iterator[str]:
    for gref in np.unique(np.flatnonzero(before != after) // 2).tolist():
        was, now = (_grant_text(entries, gref) for entries in (before, after))
        yield f"gref {gref}: {was} -> {now}"


def _grant_text(entries: np.ndarray, gref: int) -> str:
    found = grant_table(entries[2 * gref : 2 * gref + 2].view(np.uint8)).grants
    return "|".join(found[0].flags) if found else "invalid"


class _Runner:
    """One end of a ring. advance: does a phase; pending: our end's words, and the port."""

    def __init__(
        self,
        who: str,
        phases: Sequence[Phase],
        turn: np.ndarray,
        advance: Callable[[], int],
        pending: np.ndarray,
        port: int,
    ) -> None:
        self.who, self.phases, self.turn, self.advance = who, phases, turn, advance
        self._pending, self._port = pending, port
        self.asleep = False

    def can_run(self) -> bool:
        """Asleep, it needs an event, and takes it."""
        if self.asleep and clear_pending(self._pending, self._port):
            self.asleep = False
        return not self.asleep


def step_through(machine: Machine) -> Iterator[Stepped]:
    """Run `machine`'s load phase by phase, until every guest's is over. Raises PeerFault."""
    number = 0
    lives = [_Life(machine, disk) for disk in machine.disks if disk.loaded]
    while any(not life.over for life in lives):
        before = number
        for life in lives:
            for stepped in life.round():
                number += 1
                yield stepped._replace(number=number)
        assert number > before, "a wake-up was lost: everybody sleeps for ever"


class _Life:
    """Both ends of one disk."""

    def __init__(self, machine: Machine, disk: Disk) -> None:
        self._machine, self.over = machine, False
        domid, device = disk.key
        several = len(machine.guests[domid].disks) > 1
        self._disk = disk_name(device) if several else ""
        self._guest, self._thread = disk.guest, disk.thread
        front, back = self._guest.dev, self._thread.dev
        port = int(front.events.port[0])
        self._shared = _Shared(front)
        guest = (lambda: self._guest.loop(ANY_STEP), front.events.pending, port)
        dom0 = (lambda: self._thread.loop(ANY_STEP), front.events.far_pending, port)
        self._runners = (
            _Runner(f"guest-{domid}", FRONT_PHASES, front.turn, *guest),
            _Runner("dom0", BACK_PHASES, back.turn, *dom0),
        )

    def round(self) -> Iterator[Stepped]:
        """A phase of each end that can run."""
        for runner in self._runners:
            if not self.over and runner.can_run():
                yield from self._step(runner)

    def _step(self, runner: _Runner) -> Iterator[Stepped]:
        phase = runner.phases[runner.turn[STEP]]
        effect = runner.advance()
        then = "" if effect in (effects.STOP, effects.SLICE) else effects.NAMES[effect]
        yield Stepped(
            0, runner.who, self._disk, phase.name, phase.access, self._shared.changes(), then
        )
        if effect == effects.HYPERCALL:
            yield self._hypercall()
        elif effect == effects.BROKEN:
            reasons = {**FRONT_REASONS} if runner is self._runners[0] else {**BACK_REASONS}
            end = self._guest.dev.front if runner is self._runners[0] else self._thread.dev.back
            raise PeerFault(reasons[int(end["broken"][0])])
        runner.asleep = effect == effects.WAIT
        self.over = self.over or effect == effects.DONE

    def _hypercall(self) -> Stepped:
        thread = self._thread
        cmd, ops = called_for(thread.dev)
        self._machine.grant_table_op(thread.cpu.number, cmd, ops, False)
        text = f"{len(ops)} operation{'s' if len(ops) > 1 else ''}"
        changes = (text, *self._shared.changes())
        return Stepped(0, "Xen", self._disk, "hypercall", CALLS[cmd], changes, "")
