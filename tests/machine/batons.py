"""The real runtime's drivers, a phase at a time: `Driver` and `VcpuThread` on threads of their own,
of which one runs until it passes a baton, between any two phases or where it would sleep.

Who runs next is a seed's choice, so that a run can be had again. Both asleep is a wake-up lost.
"""

import threading
from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, Final, cast

import numpy as np

from backend.ring_hands import RingHands
from backend.vcpu_thread import VcpuThread, _Served
from backend.worker import work
from common import effects
from common.event_channel import clear_pending
from common.steps import ANY_STEP
from common.turns import ASLEEP, RING_BITS
from frontend import driver
from frontend.load import Load
from tests.pair import LOOKS_MAX, PORT, Bed, Carrier, Pair

FRONT: Final = 0
BACK: Final = 1
PATIENCE_S: Final = 60


class Lost(AssertionError):
    """Both ends sleep, and nobody will wake them."""


class _Over(Exception):
    """The front has ended."""


class Batons:
    """Runs both ends of `pair` under real drivers. between: called between any two phases."""

    def __init__(self, pair: Pair, seed: int, between: Callable[[], None]) -> None:
        self._pair, self._random, self._between = pair, Random(seed), between
        self._turn = threading.Condition()
        self._holder, self._asleep, self._over = FRONT, [False, False], False
        self._failures: list[BaseException] = []

    def run(self, job: Load) -> None:
        """The load, from its first phase to its last."""
        pair = self._pair
        words = np.zeros(2, np.uint32)
        calls = cast(Any, _Hypercalls(pair))
        vcpu = VcpuThread(0, words[:1], words[1:], calls, pair.spin, "pipe", 1)
        hands = RingHands(pair.back, pair.store, cast(Any, _Channel(self, BACK)), calls)
        vcpu._add(0, _Served(hands, lambda _: None))
        served = self._stepped(BACK, lambda _: int(work(pair.rings, 0, LOOKS_MAX, ANY_STEP)))
        vcpu._serve = lambda *_: _returned(served(None))
        vcpu._sleep = lambda: self.sleep(BACK)  # type: ignore[method-assign]
        thread = threading.Thread(target=self._serve, args=(vcpu,))
        thread.start()
        pair.front_job = job
        stepped = self._stepped(FRONT, lambda _: pair.front_run(ANY_STEP))
        front = driver.Driver(pair.spin, _Bed(self))
        front.attach(0, pair.front, cast(Any, Carrier()))
        try:
            loop, real = lambda *_: stepped(None) << RING_BITS, driver.serving
            driver.serving = lambda *_: loop  # type: ignore[assignment]
            front.run_one(0, job, lambda: None)
        finally:
            driver.serving = real
            with self._turn:
                self._over = True
                self._turn.notify_all()
            thread.join(PATIENCE_S)
            vcpu.close()
        for failure in self._failures:
            raise failure

    def _serve(self, vcpu: VcpuThread) -> None:
        try:
            with self._turn:
                self._await(BACK)
            vcpu._main()
        except _Over:
            pass  # the load has ended, and dom0 with it
        except BaseException as failure:
            self._failures.append(failure)
        with self._turn:
            self._asleep[BACK], self._holder = True, FRONT
            self._turn.notify_all()

    def _stepped(self, end: int, phase: Callable[[Any], int]) -> Callable[..., int]:
        def stepped(dev: Any, *_: object) -> int:
            while True:
                effect = phase(dev)
                self._between()
                with self._turn:
                    self._pass(end, self._random.randrange(2))
                if effect != effects.STOP:
                    return effect

        return stepped

    def _pass(self, end: int, to: int) -> None:
        if to != end and self._can_run(to):
            self._holder = to
            self._turn.notify_all()
            self._await(end)

    def _await(self, end: int) -> None:
        if not self._turn.wait_for(lambda: self._holder == end or self._over, PATIENCE_S):
            raise Lost("the baton never came")
        if self._over and end == BACK:
            raise _Over

    def sleep(self, end: int) -> None:
        """Until its event is pending."""
        pair = self._pair
        pending = (pair.front_events, pair.back_events)[end][0]
        with self._turn:
            while not clear_pending(pending, PORT):
                self._asleep[end] = True
                if not self._can_run(1 - end):
                    raise Lost("both ends sleep for ever")
                self._pass(end, 1 - end)
                self._asleep[end] = False

    def _can_run(self, end: int) -> bool:
        return not self._asleep[end] or self._is_pending(end)

    def _is_pending(self, end: int) -> bool:
        pending = (self._pair.front_events, self._pair.back_events)[end][0]
        return bool(int(pending[PORT >> 6]) >> (PORT & 63) & 1)


def _returned(effect: int) -> int:
    """What `worker.serve` returns of ring 0, if there is no other."""
    return ASLEEP if effect == effects.WAIT else effect << RING_BITS


class _Channel:
    """An event channel whose waiter passes the baton."""

    carrier = SimpleNamespace(polled=None, hung_up=True)

    def __init__(self, batons: Batons, end: int) -> None:
        self._batons, self._end = batons, end

    def wake_far_end(self) -> None:
        """It looks at its bit."""

    def wait(self, _timeout_ms: int, _others: Sequence[int] = ()) -> bool:
        self._batons.sleep(self._end)
        return True


class _Bed(Bed):
    """Where the guest's thread sleeps: it passes the baton."""

    def __init__(self, batons: Batons) -> None:
        super().__init__([])
        self._batons = batons

    def poll(self, _timeout_ms: int | None) -> list[tuple[Any, int]]:
        self._batons.sleep(FRONT)
        return []


class _Hypercalls:
    """The real hypervisor, called at once."""

    def close(self) -> None:
        pass

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def call(self, number: int, cmd: int, ops: np.ndarray) -> int:
        payload = bytearray(ops.tobytes())
        rc = self._pair.hypervisor.hypercall(0, 0, number, cmd, payload, False)
        ops[:] = np.frombuffer(payload, ops.dtype)
        return rc
