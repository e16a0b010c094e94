"""The real runtime's hands for a guest's compiled loops: wake the backend, sleep, count.

Owns: what is done for each effect of `frontend/effects.py`, with a real event channel.
"""

import time
from collections.abc import Callable
from typing import Final

import numpy as np

from common.event_channel import EventChannel
from common.spinning import slept
from frontend import effects
from frontend.blkfront import BROKEN_REASONS, Blkfront

SLEEP_MS: Final = 100  # then look at the outside world; an event ends the sleep at once


class DeviceBroken(Exception):
    """The backend broke the protocol, and the device with it; the text says how."""


class Driver:
    """Runs compiled loops on `dev`; `spin` is SPIN (1,)."""

    def __init__(self, dev: Blkfront, channel: EventChannel, spin: np.ndarray) -> None:
        self.dev = dev
        self.channel = channel
        self.spin = spin
        self.event_args = (channel.far_pending, channel.far_mask, channel.port)

    def run(self, loop: Callable[[], int], keep_going: Callable[[], None]) -> None:
        """Call `loop` until it is DONE, doing what its effects ask for.

        `keep_going` is called between slices and sleeps, and may raise to end it.
        Raises DeviceBroken.
        """
        while (effect := loop()) != effects.DONE:
            if effect == effects.WAKE:
                self.channel.wake_far_end()
            elif effect == effects.WAIT:
                self._sleep()
                keep_going()
            elif effect == effects.BROKEN:
                raise DeviceBroken(BROKEN_REASONS[int(self.dev.front["broken"][0])])
            else:
                keep_going()

    def _sleep(self) -> None:
        """Block on the event channel. A lost peer shows as time passing, so not for ever."""
        self.dev.counters["waits"] += np.uint64(1)
        began_ns = time.monotonic_ns()
        self.channel.wait(SLEEP_MS)
        slept(self.spin, time.monotonic_ns() - began_ns)
