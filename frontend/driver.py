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
from common.spinning import be_impatient, slept
from common.trace_log import Log
from common.turns import (
    any_pending,
    both_of,
    hear_of,
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
from frontend.nbd_export import EXPORTS, Export
from frontend.nbd_loop import HEAR_NS, hear, listen_to, new_ears
from frontend.nbd_loop import serve as serve_exports
from frontend.room import abandon
from frontend.traced import serving

ARENA_BYTES: Final = 1 << 20
MS: Final = 1_000_000  # nanoseconds
IDLE_MS: Final = 1_000  # a sleep, while disks are exported: their clients may ask for nothing
SUSPENDED_MS: Final = 20  # a sleep, while a disk waits for another ring: its far end shows no event


class Driver:
    """Runs loads on a guest's rings, which have one waiter, `spin`.

    poller: `new_poller`'s, on what else ends a sleep; rings: rows of BLKFRONT; failed: rings whose
    jobs have failed, and why, until another begins there; log: its trace's.
    """

    def __init__(self, spin: np.ndarray, poller: Any, log: Log | None = None) -> None:
        arena = Arena(ARENA_BYTES)
        self.rings, self._jobs = BLKFRONT.rows(arena, DISKS_MAX), LOAD.rows(arena, DISKS_MAX)
        self._turns = new_turns(arena, DISKS_MAX, RSP, spin)
        self._ends: dict[int, tuple[Blkfront, EventChannel]] = {}
        self._polled: dict[Any, Carrier] = {}
        self._suspended = set[int]()  # rings whose jobs wait for another ring
        self.failed: dict[int, str] = {}
        self.nap_ms: int | None = None  # a sleep at most, while its guest waits for something else
        self._fruitless = 0  # sleeps in a row that no event has ended
        self._shaped: dict[int, np.ndarray] = {}  # of jobs that may wait for a time
        self._poller = poller
        self._serve: Callable[..., int] | None = None
        self._log = log
        self._serve_exports: Callable[..., int] | None = None
        self._exports, self._ears = EXPORTS.rows(arena, DISKS_MAX), new_ears(arena)
        self._spun_alone: dict[str, int] = {}  # how it spun before that
        self._epoll: select.epoll | None = None  # of the sockets of all exports, while there are

    def attach(self, ring: int, dev: Blkfront, channel: EventChannel) -> None:
        """From now on `ring` is this device's, on that channel; whatever was there is not used."""
        BLKFRONT.write(self.rings[ring], dev)
        self._ends[ring] = dev, channel

    def detach(self, ring: int) -> None:
        """The device of `ring`, whose job has ended, is gone."""
        assert ring not in self.running
        self._ends.pop(ring, None)
        self.failed.pop(ring, None)

    def dev(self, ring: int) -> Blkfront:
        """The device."""
        return self._ends[ring][0]

    @property
    def running(self) -> list[int]:
        """The rings whose jobs run, or wait."""
        return [*rings_of(self._turns), *self._suspended]

    def begin(self, ring: int, job: Load) -> None:
        """Have the job of `ring`, which runs none, done by the turns to come."""
        assert ring not in self.running
        self.failed.pop(ring, None)
        LOAD.write(self._jobs[ring], job)
        if job.load["shaped"][0]:
            self._shaped[ring] = job.load
        self._take_in(ring)

    def begin_export(self, ring: int, job: Load, export: Export) -> None:
        """The same, of a job whose I/Os are an export's: until its `stop` is set."""
        EXPORTS.write(self._exports[ring], export)
        if self._epoll is None:
            self._epoll = select.epoll()
            self._ears.head["epoll"] = self._epoll.fileno()
            hear_of(self._turns, self._epoll.fileno(), HEAR_NS)
            self._poller.register(self._epoll.fileno(), select.POLLIN)
            self._spun_alone = be_impatient(self._turns.spin)  # clients want CPUs, too
        self._ears.head["rings"] |= np.uint64(1 << ring)
        self.begin(ring, job)

    def add_connection(self, ring: int, connection: int, fd: int) -> None:
        """A socket is one of an export's connections; it is heard until it is closed."""
        assert self._epoll is not None
        listen_to(self._ears, fd, ring, connection)
        self.stir(ring)

    def stir(self, ring: int) -> None:
        """Its job is to have a turn, though nothing has come."""
        if ring in rings_of(self._turns):
            make_ready(self._turns, ring)

    def end_export(self, ring: int) -> None:
        """The export is over: its job is done, or has failed, and its sockets are closed."""
        assert ring not in self.running
        self._ears.head["rings"] &= ~np.uint64(1 << ring)
        if self._epoll is not None and not self._ears.head["rings"][0]:
            hear_of(self._turns, -1)
            for name, value in self._spun_alone.items():
                self._turns.spin[name] = value
            self._poller.unregister(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def turn(self, keep_going: Callable[[], None]) -> None:
        """A slice of all that run, or a sleep of all.

        `keep_going` is called after each and when a job has failed; it may `begin` and `fail` jobs,
        and may raise to end them.
        """
        try:
            if self._shaped:
                self._stir_those_due()
            if rings_of(self._turns):
                self._do(*both_of(self._serve_all()), keep_going)
            else:
                self._sleep()
                if self._epoll is not None:  # else it would be told of the same again
                    hear(self._exports, self._ears, self._turns)
                keep_going()
        except BaseException:
            for ring in self.running:
                self.suspend(ring)
            self._suspended.clear()
            self._shaped.clear()
            raise

    def _serve_all(self) -> int:
        """The compiled loop: where nothing is exported, one that knows of no sockets."""
        if self._epoll is None:
            alone = self.rings, self._jobs, self._turns
            if self._serve is None:
                self._serve = serving(*alone, self._log)
            return self._serve(*alone)
        given = self.rings, self._jobs, self._exports, self._ears, self._turns
        if self._serve_exports is None:
            self._serve_exports = direct(serve_exports, *given)
        return self._serve_exports(*given)

    def run(self, jobs: Mapping[int, Load], keep_going: Callable[[], None]) -> dict[int, str]:
        """Run the job of each ring, all at once, until the last is DONE; those that failed, and
        why. Others that run go on meanwhile."""
        for ring, job in jobs.items():
            self.begin(ring, job)
        while jobs.keys() & set(self.running):
            self.turn(keep_going)
        return {ring: self.failed.pop(ring) for ring in jobs if ring in self.failed}

    def run_one(self, ring: int, job: Load, keep_going: Callable[[], None]) -> None:
        """`run`, of one job. Raises PeerFault if it fails."""
        failed = self.run({ring: job}, keep_going)
        if failed:
            raise PeerFault(failed[ring])

    def suspend(self, ring: int) -> None:
        """The device has no ring, for now or for good: its job, if one runs, waits for `go_on`."""
        if ring in rings_of(self._turns):
            self._leave_out(ring)
            self._suspended.add(ring)

    def go_on(self, ring: int, channel: EventChannel) -> None:
        """The device has another ring, on that channel."""
        self._ends[ring] = self.dev(ring), channel
        if ring in self._suspended:
            self._suspended.remove(ring)
            self._take_in(ring)

    def fail(self, ring: int, why: str) -> None:
        """The device can be used no more: its job has failed."""
        self.failed[ring] = why
        self.suspend(ring)
        self._suspended.remove(ring)
        self._shaped.pop(ring, None)
        abandon(self.dev(ring))
        for other in rings_of(self._turns):  # it may wait for what this one had in flight
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
            self._shaped.pop(ring, None)
            return
        if effect == effects.BROKEN:
            self.fail(ring, BROKEN_REASONS[int(self.dev(ring).front["broken"][0])])
        elif effect == effects.WAIT:
            self._sleep()
        keep_going()

    def _stir_those_due(self) -> None:
        """A job that waits for a time has a turn when that has come, or when it is to stop."""
        for ring, due_ns in self._due().items():
            if due_ns <= time.monotonic_ns() or self._shaped[ring]["stop"][0]:
                make_ready(self._turns, ring)

    def _due(self) -> dict[int, int]:
        """When jobs that wait for a time can go on, by ring."""
        due = {ring: int(load["due_ns"][0]) for ring, load in self._shaped.items()}
        turning = rings_of(self._turns)
        return {ring: due_ns for ring, due_ns in due.items() if due_ns and ring in turning}

    def _poll(self, due_ns: int) -> list[tuple[Any, int]]:
        """What is ready, once something is, or it is time for a job (0: for none).

        poll(2) knows milliseconds only: what is left of one is slept, if no answer is awaited.
        """
        if not due_ns:
            idle_ms = self.nap_ms
            if self._epoll is not None:
                idle_ms = min(IDLE_MS, IDLE_MS if idle_ms is None else idle_ms)
            return list(self._poller.poll(SUSPENDED_MS if self._suspended else idle_ms))
        left_ns = max(0, due_ns - time.monotonic_ns())
        if self.nap_ms is not None:
            left_ns = min(left_ns, self.nap_ms * MS)
        if self._any_under_way():
            left_ns += MS - 1
        elif left_ns < MS:
            time.sleep(left_ns / 1e9)
        return list(self._poller.poll(left_ns // MS))

    def _any_under_way(self) -> bool:
        return any(self.dev(ring).front["outstanding"][0] for ring in self.running)

    def _sleep(self) -> None:
        """Block until a backend wakes us, or there is something else to see to."""
        if self._fruitless > FRUITLESS_MAX:  # who sends them without an event pays with its latency
            time.sleep(FRUITLESS_NAP_S)
        for ring in rings_of(self._turns):
            self.dev(ring).counters["waits"] += np.uint64(1)
        began_ns = time.monotonic_ns()
        due_ns = min(self._due().values(), default=0) if self._shaped else 0
        ready = self._poll(due_ns)
        if not due_ns:  # else it says nothing of the peers
            slept(self._turns.spin, time.monotonic_ns() - began_ns)
        woken = [self._polled[polled] for polled, _ in ready if polled in self._polled]
        for carrier in woken:
            carrier.drain()
            if carrier.hung_up:
                self._poll_no_more(carrier)
        fruitless = woken and not any_pending(self._turns)
        self._fruitless = self._fruitless + 1 if fruitless else 0
