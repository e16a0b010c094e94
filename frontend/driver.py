"""The real runtime's hands for a guest's compiled loops: wake the backend, sleep, count.

Owns: what is done for each effect of `frontend/effects.py`, with a real event channel.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from common.event_channel import EventChannel
from common.faults import PeerFault
from common.spinning import slept
from frontend import effects
from frontend.blkfront_info import BROKEN_REASONS, Blkfront


class Driver:
    """Runs compiled loops on `dev`; `spin` is SPIN (1,)."""

    def __init__(self, dev: Blkfront, channel: EventChannel, spin: np.ndarray) -> None:
        self.dev = dev
        self.channel = channel
        self.spin = spin
        self.event_args = (channel.far_pending, channel.far_mask, channel.port)

    def run(
        self, loop: Callable[[], int], keep_going: Callable[[], None], others: Sequence[int]
    ) -> None:
        """Call `loop` until it is DONE, doing what its effects ask for.

        `keep_going` is called between slices and sleeps, and may raise to end it; a sleep ends when
        one of `others` (descriptors) becomes readable. Raises PeerFault.
        """
        while (effect := loop()) != effects.DONE:
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
        slept(self.spin, time.monotonic_ns() - began_ns)
