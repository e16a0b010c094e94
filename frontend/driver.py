"""The real runtime's hands for a guest's compiled loop: wake backends, sleep, count.

Owns: a guest's rings by number (a disk's), and what is done for each effect of
`frontend/stepper.py:serve`, with real event channels. One thread.
"""

import select
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from common import effects
from common.arena import Arena
from common.compiled import direct
from common.event_channel import FRUITLESS_MAX, FRUITLESS_NAP_S, EventChannel
from common.faults import PeerFault
from common.machine_memory import DISKS_MAX
from common.ring import RSP
from common.spinning import slept
from common.turns import (
    any_pending,
    both_of,
    leave_out,
    looked_at,
    make_ready,
    new_turns,
    rings_of,
    take_in,
)
from common.wakeups import Carrier
from frontend.blkfront_info import BLKFRONT, BROKEN_REASONS, Blkfront
from frontend.load import LOAD, Load
from frontend.room import abandon
from frontend.stepper import serve

ARENA_BYTES: Final = 1 << 20


class Driver:
    """Runs loads on a guest's rings, which have one waiter, `spin`.

    poller: `new_poller`'s, on what else ends a sleep; rings: rows of BLKFRONT; failed: rings whose
    jobs have failed in this run, and why.
    """

    def __init__(self, spin: np.ndarray, poller: Any) -> None:
        arena = Arena(ARENA_BYTES)
        self.rings, self._jobs = BLKFRONT.rows(arena, DISKS_MAX), LOAD.rows(arena, DISKS_MAX)
        self._turns = new_turns(arena, DISKS_MAX, RSP, spin)
        self._ends: dict[int, tuple[Blkfront, EventChannel]] = {}
        self._polled: dict[Any, Carrier] = {}
        self.failed: dict[int, str] = {}
        self._fruitless = 0  # sleeps in a row that no event has ended
        self._poller = poller

    def attach(self, ring: int, dev: Blkfront, channel: EventChannel) -> None:
        """From now on `ring` is this device's, on that channel; whatever was there is not used."""
        BLKFRONT.write(self.rings[ring], dev)
        self._ends[ring] = dev, channel

    def dev(self, ring: int) -> Blkfront:
        """The device."""
        return self._ends[ring][0]

    @property
    def running(self) -> list[int]:
        """The rings whose jobs run."""
        return rings_of(self._turns)

    def run_one(self, ring: int, job: Load, keep_going: Callable[[], None]) -> None:
        """`run`, of one job. Raises PeerFault if it fails."""
        failed = self.run({ring: job}, keep_going)
        if failed:
            raise PeerFault(failed[ring])

    def run(self, jobs: Mapping[int, Load], keep_going: Callable[[], None]) -> dict[int, str]:
        """Run the job of each ring, all at once, until the last is DONE; those that failed, and
        why.

        `keep_going` is called between slices and sleeps and when a job has failed; it may `fail`
        others, and may raise to end all.
        """
        self.failed = {}
        try:
            for ring, job in jobs.items():
                LOAD.write(self._jobs[ring], job)
                self._take_in(ring)
            given = self.rings, self._jobs, self._turns
            serve_some = direct(serve, *given)
            while self.running:
                self._do(*both_of(serve_some(*given)), keep_going)
        finally:
            for ring in self.running:
                self._leave_out(ring)
        return self.failed

    def fail(self, ring: int, why: str) -> None:
        """The device can be used no more: its job has failed."""
        self.failed[ring] = why
        self._leave_out(ring)
        abandon(self.dev(ring))
        for other in self.running:  # it may wait for what this one had in flight
            make_ready(self._turns, other)

    def _take_in(self, ring: int) -> None:
        dev, channel = self._ends[ring]
        take_in(self._turns, ring, looked_at(dev))
        self._poller.register(channel.carrier.polled, select.POLLIN)
        self._polled[channel.carrier.polled] = channel.carrier

    def _leave_out(self, ring: int) -> None:
        leave_out(self._turns, ring)
        self._poll_no_more(self._ends[ring][1].carrier)

    def _poll_no_more(self, carrier: Carrier) -> None:
        if self._polled.pop(carrier.polled, None) is not None:
            self._poller.unregister(carrier.polled)

    def _do(self, effect: int, ring: int, keep_going: Callable[[], None]) -> None:
        if effect == effects.WAKE:
            self._ends[ring][1].wake_far_end()
            return
        if effect == effects.DONE:
            self._leave_out(ring)
            return
        if effect == effects.BROKEN:
            self.fail(ring, BROKEN_REASONS[int(self.dev(ring).front["broken"][0])])
        elif effect == effects.WAIT:
            self._sleep()
        keep_going()

    def _sleep(self) -> None:
        """Block until a backend wakes us, or there is something else to see to."""
        if self._fruitless > FRUITLESS_MAX:  # who sends them without an event pays with its latency
            time.sleep(FRUITLESS_NAP_S)
        for ring in self.running:
            self.dev(ring).counters["waits"] += np.uint64(1)
        began_ns = time.monotonic_ns()
        ready = self._poller.poll(None)
        slept(self._turns.spin, time.monotonic_ns() - began_ns)
        woken = [self._polled[polled] for polled, _ in ready if polled in self._polled]
        for carrier in woken:
            carrier.drain()
            if carrier.hung_up:
                self._poll_no_more(carrier)
        fruitless = woken and not any_pending(self._turns)
        self._fruitless = self._fruitless + 1 if fruitless else 0
