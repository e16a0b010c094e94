"""The real runtime's hands for a guest's compiled loop: wake the backend, sleep, count.

Owns: what is done for each effect of `frontend/stepper.py:run`, with a real event channel.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from common import effects
from common.arena import Arena
from common.compiled import direct
from common.event_channel import EventChannel
from common.faults import PeerFault
from common.spinning import slept
from frontend.blkfront_info import BLKFRONT, BROKEN_REASONS, Blkfront
from frontend.load import LOAD, Load
from frontend.stepper import LOOKS_PER_SLICE, run


class Driver:
    """Runs loads on `dev`."""

    def __init__(self, dev: Blkfront, channel: EventChannel) -> None:
        self.dev = dev
        self.channel = channel
        arena = Arena()
        self._rings, self._jobs = BLKFRONT.rows(arena, 1), LOAD.rows(arena, 1)
        BLKFRONT.write(self._rings[0], dev)

    def run(self, job: Load, keep_going: Callable[[], None], others: Sequence[int]) -> None:
        """Run `job` until it is DONE, doing what its effects ask for.

        `keep_going` is called between slices and sleeps, and may raise to end it; a sleep ends when
        one of `others` (descriptors) becomes readable. Raises PeerFault.
        """
        LOAD.write(self._jobs[0], job)
        rows = self._rings, self._jobs, 0
        run_job = direct(run, *rows, 0, 0)
        while (effect := run_job(*rows, LOOKS_PER_SLICE, 0)) != effects.DONE:
            if effect == effects.WAKE:
                self.channel.wake_far_end()
            elif effect == effects.WAIT:
                self._sleep(others)
                keep_going()
            elif effect == effects.BROKEN:
                raise PeerFault(BROKEN_REASONS[int(self.dev.front["broken"][0])])
            else:
                keep_going()

    def _sleep(self, others: Sequence[int]) -> None:
        """Block on the event channel; what else may happen is in `others`."""
        self.dev.counters["waits"] += np.uint64(1)
        began_ns = time.monotonic_ns()
        self.channel.wait(-1, others)
        slept(self.dev.spin, time.monotonic_ns() - began_ns)
