"""Attacks by what it shares: its grant table, and the figures that the toolstack reads."""

from collections.abc import Iterator

import numpy as np

from hostile.attacker import Attacker
from hostile.hypercall_door import RANDOM_SEED
from hostile.ring_door import Pump


def grants_garbage(me: Attacker) -> Iterator[None]:
    """Its whole grant table of chance, all the time, while it asks dom0 to map what is in it."""
    for vbd in me.connected():
        pump, entries = Pump(me, vbd), me.grant.view(np.uint32)
        requests = pump.requests(np.arange(8, 8 + 352, dtype=np.uint32).reshape(32, 11))
        sound = entries.copy()
        sound[0::2], sound[1::2] = 1, np.arange(len(entries) // 2) % 500
        while me.wanted() and not pump.broken:
            for _ in range(8):
                entries[:] = pump.rng.integers(0, 1 << 32, len(entries), dtype=np.uint32)
                pump.fill(requests)
                entries[:] = sound
                pump.fill(requests)
            yield


def stats_garbage(me: Attacker) -> Iterator[None]:
    """Chance in every counter and the whole histogram."""
    rng = np.random.default_rng(RANDOM_SEED)
    words = me.stats.view(np.uint64)
    while True:
        words[:] = rng.integers(0, 1 << 64, len(words), dtype=np.uint64)
        yield
