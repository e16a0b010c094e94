"""Whenever a request comes, the worker that goes to sleep is notified of it, or does not sleep."""

import pytest

from backend import phases, worker
from common.event_channel import clear_pending, set_pending
from common.hypercall_gate import no_gate
from common.spinning import new_spin
from frontend import blkfront
from tests.interleaving import Moment, moments, run_with
from tests.pair import PORT, READ, Pair

STEPS = moments("load_acquire", "spin_until_changed", "rearm", "requests_waiting")


@pytest.mark.parametrize("moment", STEPS, ids=str)
@pytest.mark.parametrize("served", [0, 1])
@pytest.mark.parametrize("start", [0, (1 << 32) - 1])
def test_a_request_that_comes_at_any_moment_of_going_to_sleep_is_served(
    moment: Moment, served: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(start=start)
    pair.spin = new_spin(adaptive=True)
    pair.spin["limit_ns"] = 0
    for io in range(served):  # found by spinning: the event that is armed has passed
        pair.queue(io, READ, 0, 8)
        blkfront.submit(pair.front)
        blkfront.push(pair.front)
        assert list(pair.batch())[-1] == "push"
    pair.queue(served, READ, 0, 8)
    assert blkfront.submit(pair.front) == 1

    def push() -> None:
        if blkfront.push(pair.front):
            set_pending(*pair.back_events, PORT)

    goes_on = run_with(
        monkeypatch,
        worker._idle,
        pair.back,
        (pair.spin,),
        (worker, phases),
        moment,
        push,
    )
    notified = clear_pending(pair.back_events[0], PORT)
    assert goes_on or notified, "it sleeps, and nobody will wake it"
    args = (*pair.front_events, PORT, pair.spin, 100, no_gate(), -1)
    while (effect := worker.work(pair.back, pair.cursor, *args)) != worker.WAIT:
        if effect == worker.MAP:
            pair.map_pages()
    assert pair.counts()["back_requests"] == served + 1
