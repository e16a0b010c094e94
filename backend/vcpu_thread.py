"""One of dom0's vCPUs: a thread that serves all of its rings in turn.

Owns: which rings have turns, when the thread sleeps, and what its CPU looks like to the hypervisor.
Whose turn it is, is `common/turns.py`'s; what a ring's loop asks for is done by its `RingHands`.
All it spends time in is compiled code without the GIL, or blocked.
Rules
1. What is done for one ring's effect is that ring's: the others wait for no more than that.
2. Rings come and go by orders of the main thread, which are looked at after every effect and every
   slice. A ring that is to end stops between two requests and unmaps what it keeps in its turns.
3. A store that answers later is heard of in the same sleep, or some 50 us later (`HEAR_NS`).
4. Events that bring no request, and wake-ups that bring no event, cost their sender time (XSA-332),
   and nobody else: its ring has no turns for as long.
"""

import heapq
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from backend.blkback import BLKBACK, BROKEN_REASONS, begin_close
from backend.ring_hands import RingHands
from backend.steps import CLEAR, LOOK
from backend.store_queue import ends_of
from backend.store_watch import StoreWatch
from backend.traced import serving
from backend.worker import FRUITLESS_MAX
from common import effects
from common.arena import Arena
from common.atomics import store_release
from common.hypercall import Hypercalls
from common.process import name_thread, sleep_to_the_point
from common.ring import REQ
from common.spinning import slept
from common.steps import STEP
from common.trace_log import Log
from common.turns import (
    ASLEEP,
    HEARD,
    NOBODY,
    SLICE_NS,
    both_of,
    hear_of,
    leave_out,
    looked_at,
    make_ready,
    new_turns,
    rings_of,
    take_in,
)
from common.wakeups import Events, new_poller

NAP_DOUBLINGS_MAX: Final = 4  # from 1 ms on


@dataclass
class _Served:
    """One ring. on_end: told why it has ended; on_stall: see `StoreWatch.add`; reason: why, once it
    is known."""

    hands: RingHands
    on_end: Callable[[str], None]
    on_stall: Callable[[int], None] = lambda _: None
    reason: str = ""
    closing: bool = False


class VcpuThread:
    """dom0's vCPU `cpu`; its thread begins with its first ring.

    running, dirty: the machine's u32 words by CPU; hypercalls: the thread's, this vCPU's; spin: the
    thread's, and its rings'; log: its trace's. A ring's number, below `rings_max`, is its caller's.
    """

    def __init__(
        self,
        cpu: int,
        running: np.ndarray,
        dirty: np.ndarray,
        hypercalls: Hypercalls,
        spin: np.ndarray,
        events: Events,
        rings_max: int,
        log: Log | None = None,
    ) -> None:
        self.cpu, self.hypercalls, self.spin = cpu, hypercalls, spin
        self._running, self._dirty = running, dirty
        arena = Arena()
        self._rows = BLKBACK.rows(arena, rings_max)
        self._turns = new_turns(arena, rings_max, REQ, spin)
        self._serve = serving(self._turns, self._rows, log)
        self._served: dict[int, _Served] = {}
        self._ending = NOBODY  # this ring is to stop between two requests
        self._naps: list[tuple[int, int]] = []  # until when (ns), which ring: a heap
        self._poller = new_poller(events)
        self._stores, self._heard_ns = StoreWatch(self._poller), 0
        self._ring_of: dict[object, int] = {}  # by what is polled
        self._orders: deque[Callable[[], None]] = deque()
        self._stopping, self._ordered = False, os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller.register(self._ordered, select.POLLIN)
        self._thread = threading.Thread(target=self._main, name=f"blkback-{cpu}", daemon=True)
        self.run()  # booting a domain runs each of its vCPUs once
        self.idle()

    # --- for the main thread ----------------------------------------------------------------

    def add(
        self,
        ring: int,
        hands: RingHands,
        on_end: Callable[[str], None],
        on_stall: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Serve a ring from now on. on_stall: see `StoreWatch.add`.

        on_end: called from the thread once the ring has ended, with everything unmapped: with why,
        if the frontend broke it, else with "". Raises RuntimeError if no thread can be started.
        """
        if self._thread.ident is None:
            self._thread.start()
        self._order(partial(self._add, ring, _Served(hands, on_end, on_stall)))

    def end(self, ring: int) -> None:
        """Stop serving a ring once the requests that have been taken are answered."""
        self._order(partial(self._end, ring))

    def close(self) -> None:
        """End the thread, whose rings have ended; wait for that."""
        self._stopping = True
        self._order(lambda: None)
        if self._thread.ident is not None:
            self._thread.join()
        self.hypercalls.close()
        self._stores.close()
        os.close(self._ordered)

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.append(order)
        os.eventfd_write(self._ordered, 1)

    # --- what the hypervisor sees -----------------------------------------------------------

    def run(self) -> None:
        """It starts to run: its CPU may hold dom0's translations from now on.

        In that order: who takes the bit away looks whether the vCPU runs (`hypervisor/cpus.py`).
        """
        store_release(self._running, self.cpu, np.uint32(1))
        store_release(self._dirty, self.cpu, np.uint32(1))

    def idle(self) -> None:
        """It goes to sleep."""
        store_release(self._running, self.cpu, np.uint32(0))

    # --- the thread -------------------------------------------------------------------------

    def _main(self) -> None:
        name_thread(self._thread.name)
        sleep_to_the_point()
        self.run()
        try:
            while self._goes_on():
                self._heed(int(self._serve(self._turns, self._rows, self._ending)))
        finally:
            self.idle()

    def _goes_on(self) -> bool:
        """Take what the main thread has ordered, one ring's end at a time; and whose nap is over.

        False if that was the last there is to do.
        """
        while self._orders and self._ending == NOBODY:
            self._orders.popleft()()
        if time.monotonic_ns() - self._heard_ns >= SLICE_NS:  # whatever the rings ask for
            self._hear_stores()
        while self._naps and self._naps[0][0] <= time.monotonic_ns():
            self._wake_up(heapq.heappop(self._naps)[1])
        return bool(self._served) or not self._stopping

    def _heed(self, returned: int) -> None:
        """What `serve` has returned."""
        if returned == HEARD:
            self._heard_ns = 0  # the stores are asked at once
        elif returned in (ASLEEP, NOBODY):
            self._sleep()
        if returned < 0:
            return
        effect, ring = both_of(returned)
        served = self._served[ring]
        served.hands.do(effect)
        if effect == effects.IO:
            hear_of(self._turns, self._stores.heard_of)
        if effect == effects.BROKEN:
            self._close(ring, BROKEN_REASONS[int(served.hands.dev.back["broken"][0])])
        elif effect == effects.DONE:
            self._forget(ring)
        elif effect == effects.WAIT and ring != self._ending:
            self._nap(ring)
        elif ring == self._ending and served.hands.dev.turn[STEP] in (CLEAR, LOOK):
            self._close(ring, "")

    def _sleep(self) -> None:
        """Until there is an event, an answer of a store, an order, or the end of a nap."""
        self.idle()
        began_ns = time.monotonic_ns()
        ready = self._poller.poll(self._timeout_ms(began_ns))
        slept(self.spin, time.monotonic_ns() - began_ns)
        self.run()
        for polled, _ in ready:
            if polled == self._ordered:
                os.eventfd_read(self._ordered)
            elif (ring := self._ring_of.get(polled)) is not None:
                self._wake(ring)
        self._hear_stores(slept=True)

    def _timeout_ms(self, now_ns: int) -> int:
        """How long it may sleep; -1: for ever."""
        ends = [until_ns - now_ns for until_ns, _ in self._naps[:1]]
        if (stores := self._stores.timeout_ns(now_ns, rings_of(self._turns))) is not None:
            ends.append(stores)
        return max(0, -(-min(ends) // 1_000_000)) if ends else -1

    def _hear_stores(self, *, slept: bool = False) -> None:
        self._heard_ns = time.monotonic_ns()
        hear_of(self._turns, self._stores.heard_of)
        for ring in self._stores.look(self._heard_ns, slept=slept):
            make_ready(self._turns, ring)

    def _wake(self, ring: int) -> None:
        """A wake-up has come. If it has brought no event the ring is looked at all the same, so
        that whoever sends such is found out as one whose events bring no request."""
        channel = self._served[ring].hands.channel
        channel.carrier.drain()
        if channel.carrier.hung_up:
            self._poller.unregister(channel.carrier.polled)
        if not channel.is_pending():
            make_ready(self._turns, ring)

    # --- rings come, rest and go ------------------------------------------------------------

    def _add(self, ring: int, served: _Served) -> None:
        self._served[ring] = served
        BLKBACK.write(self._rows[ring], served.hands.dev)
        self._ring_of[served.hands.channel.carrier.polled] = ring
        self._stores.add(ring, served.hands, served.on_stall, time.monotonic_ns())
        self._wake_up(ring)

    def _wake_up(self, ring: int) -> None:
        """A ring is to have turns: it is new, or its nap is over."""
        if (served := self._served.get(ring)) is None or ring in rings_of(self._turns):
            return
        dev, carrier = served.hands.dev, served.hands.channel.carrier
        take_in(self._turns, ring, looked_at(dev, ends_of(dev.queue)))
        if not carrier.hung_up:
            self._poller.register(carrier.polled, select.POLLIN)

    def _lay_down(self, ring: int) -> None:
        """It is to have none."""
        leave_out(self._turns, ring)
        carrier = self._served[ring].hands.channel.carrier
        if not carrier.hung_up:
            self._poller.unregister(carrier.polled)

    def _nap(self, ring: int) -> None:
        """Events without requests have come, one after the other."""
        again = int(self._served[ring].hands.dev.back["fruitless"][0]) - FRUITLESS_MAX
        until_ns = time.monotonic_ns() + (1_000_000 << min(again, NAP_DOUBLINGS_MAX))
        self._lay_down(ring)
        heapq.heappush(self._naps, (until_ns, ring))

    def _end(self, ring: int) -> None:
        """If it has not ended by itself."""
        if (served := self._served.get(ring)) is not None and not served.closing:
            self._wake_up(ring)
            make_ready(self._turns, ring)
            self._ending = ring

    def _close(self, ring: int, reason: str) -> None:
        """It is between two requests: what it keeps is unmapped in its turns."""
        served = self._served[ring]
        served.reason, served.closing = reason, True
        if ring == self._ending:
            self._ending = NOBODY
        served.hands.closing()
        begin_close(served.hands.dev)
        make_ready(self._turns, ring)

    def _forget(self, ring: int) -> None:
        self._lay_down(ring)
        served = self._served.pop(ring)
        self._stores.forget(ring)
        del self._ring_of[served.hands.channel.carrier.polled]
        served.on_end(served.reason)
