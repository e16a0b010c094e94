"""A run that is traced is the run that it would have been, and its logs say what was done."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from backend import steps as back_steps
from backend.blkback import BLKBACK
from backend.traced import serve_traced
from backend.worker import serve
from common import effects
from common.ring import REQ
from common.trace_log import STATS_BYTES, Log, front_log, trace_bytes, trace_logs
from common.turns import ASLEEP, NOBODY, both_of, looked_at, new_turns, take_in
from frontend import steps as front_steps
from tests.pair import MODES, READ, WRITE, Pair, Raw, pairs

FOREVER = 1 << 62
IOS = 40
SECTORS = 512


def logs() -> tuple[Log, Log]:
    """A guest's, and one of dom0's."""
    front = front_log(np.zeros(STATS_BYTES, np.uint8))
    (back,) = trace_logs(np.zeros(trace_bytes(1), np.uint8), 1).backs
    return front, back


class Turning(Pair):
    """Both ends have turns, as their threads give them; traced, if there are logs that are on."""

    def __init__(self, mode: str, front: Log, back: Log, **options: Any) -> None:
        super().__init__(mode, **options)
        self.driver._log, self._log = front, back
        self._turns = new_turns(self.arena, 1, REQ, self.spin)
        take_in(self._turns, 0, looked_at(self.back))

    def serve(self) -> None:
        returned = NOBODY
        while returned != ASLEEP:
            given = self._turns, self.rings, NOBODY
            on = self._log.asks()()
            returned = int(serve_traced(*given, *self._log) if on else serve(*given))
            effect, _ = both_of(returned)
            if effect in (effects.HYPERCALL, effects.IO):
                self.do(effect)


def busy(mode: str, traced: bool, **options: Any) -> tuple[Turning, list[int], Log, Log]:
    """A pair that has done reads and writes of many sizes, several at once; in which order."""
    front, back = logs()
    for log in (front, back):
        log.head["until_ns"], log.head["limit"] = FOREVER * traced, len(log.entries)
    pair = Turning(mode, front, back, **options)
    done = []
    for round_ in range(3):
        for io in range(IOS):
            nr_sectors = 1 + (io * 7 + round_) % 80
            pair.buffer(io)[:] = io + round_
            pair.queue(io, WRITE if io % 3 else READ, (io * 11) % (SECTORS - 80), nr_sectors)
        done += pair.run()
    return pair, done, front, back


@pytest.mark.parametrize("gather_max", [1, 32])
@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_same_run(mode: str, gather_max: int) -> None:
    plain, order, *unwritten = busy(mode, traced=False, gather_max=gather_max)
    pair, traced_order, *written = busy(mode, traced=True, gather_max=gather_max)
    assert [int(log.head["written"][0]) for log in unwritten] == [0, 0]
    assert all(int(log.head["written"][0]) > 0 for log in written)
    assert traced_order == order
    assert pair.counts() == plain.counts() and pair.hypercalls == plain.hypercalls
    assert pair.ring_page.tobytes() == plain.ring_page.tobytes()
    assert pair.ram.tobytes() == plain.ram.tobytes()
    assert pair.store.memory is not None and plain.store.memory is not None
    assert pair.store.memory.tobytes() == plain.store.memory.tobytes()
    pair.check()


@pytest.mark.parametrize("mode", MODES)
def test_its_logs_name_each_request_on_its_way(mode: str) -> None:
    pair, _, front, back = busy(mode, traced=True)
    requests = int(pair.front.counters["requests"][0])
    there, here = (log.entries[: int(log.head["written"][0])] for log in (front, back))
    for rows in (there, here):
        assert np.all(np.diff(rows["at_ns"].astype(np.int64)) >= 0)
    put = there[there["step"] == front_steps.PUT]
    assert put["index"].tolist() == list(range(requests))
    taken = here[here["step"] == back_steps.TAKE]
    assert taken["index"].tolist() == list(range(requests))
    answered = here[here["step"] == back_steps.RESPOND]
    assert Counter(answered["ident"].tolist()) == Counter(put["ident"].tolist())
    for name in ("sector", "operation", "nr_segments"):
        assert sorted(answered[name].tolist()) == sorted(put[name].tolist())
    finished = there[there["step"] == front_steps.FINISH]
    assert set(finished["index"].tolist()) == set(range(requests))
    steps = Counter(here["step"].tolist())
    maps = sum(kind == "map" for kind, _ in pair.hypercalls)
    unmaps = sum(kind == "unmap" for kind, _ in pair.hypercalls)
    assert (steps[back_steps.MAP], steps[back_steps.UNMAP]) == (maps, unmaps)


def test_a_ring_has_no_longer_turns_than_it_would_have() -> None:
    """A full ring of large requests takes more looks than a turn has: another ring is between."""
    busy, other = found = pairs(2)
    rows = BLKBACK.rows(busy.arena, 2)
    turns = new_turns(busy.arena, 2, REQ, busy.spin)
    for ring in (1, 0):  # the turn after the first one's is the busy one's
        BLKBACK.write(rows[ring], found[ring].back)
        take_in(turns, ring, looked_at(found[ring].back))
    log = logs()[1]

    def serve_all() -> None:
        returned = NOBODY
        while returned != ASLEEP:
            returned = int(serve_traced(turns, rows, NOBODY, *log))
            effect, ring = both_of(returned)
            if effect == effects.HYPERCALL:
                found[ring].do(effect)

    large = Raw([(busy.grant(busy.buffer_frame + at), 0, 7) for at in range(11)])
    small = Raw([(other.grant(other.buffer_frame), 0, 7)])
    for pair, raw in ((busy, large), (other, small)):
        pair.push_raw(raw)
    serve_all()  # from now on all is mapped
    log.head["until_ns"], log.head["limit"] = FOREVER, len(log.entries)
    busy.push_raw(*[large] * 32)
    other.push_raw(small)
    serve_all()
    entries = log.entries[: int(log.head["written"][0])]
    answers = entries[entries["step"] == back_steps.RESPOND]["ring"].tolist()
    assert (answers.count(0), answers.count(1)) == (32, 1)
    assert 0 < answers.index(1) < 32


def test_a_log_that_is_full_stops_nobody() -> None:
    front, back = logs()
    front.head["until_ns"] = back.head["until_ns"] = FOREVER
    front.head["limit"] = back.head["limit"] = 5
    pair = Turning("persistent", front, back)
    for io in range(IOS):
        pair.queue(io, READ, 0, 8)
    assert len(pair.run()) == IOS
    assert (front.head["written"][0], back.head["written"][0]) == (5, 5)
    pair.check()
