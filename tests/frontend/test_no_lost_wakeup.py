"""Whenever a response comes, the guest that goes to sleep is notified of it, or does not sleep."""

import pytest

from backend import phases
from common.event_channel import clear_pending, set_pending
from common.spinning import new_spin
from frontend import blkfront, effects
from tests.interleaving import Moment, moments, run_with
from tests.pair import PORT, READ, Pair

STEPS = moments("load_acquire", "spin_until_changed", "rearm", "responses_waiting")


@pytest.mark.parametrize("moment", STEPS, ids=str)
@pytest.mark.parametrize("served", [0, 1])
@pytest.mark.parametrize("start", [0, (1 << 32) - 1])
def test_a_response_that_comes_at_any_moment_of_going_to_sleep_is_taken(
    moment: Moment, served: int, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair("backend-without-persistent", start=start)
    pair.spin = new_spin(adaptive=True)
    pair.spin["limit_ns"] = 0
    for io in range(served):  # taken while spinning: the event that is armed has passed
        pair.queue(io, READ, 0, 8)
        blkfront.submit(pair.front)
        blkfront.push(pair.front)
        assert list(pair.batch())[-1] == "push"
        assert blkfront.consume(pair.front) == 1
    pair.queue(served, READ, 0, 8)
    blkfront.submit(pair.front)
    blkfront.push(pair.front)
    batch = pair.batch()
    while next(batch) != "respond":
        pass

    def push() -> None:
        if phases.push(pair.back):
            set_pending(*pair.front_events, PORT)

    effect = run_with(
        monkeypatch,
        effects.idle,
        pair.front,
        (pair.spin,),
        (effects, blkfront),
        moment,
        push,
    )
    notified = clear_pending(pair.front_events[0], PORT)
    assert effect == effects.SLICE or notified, "it sleeps, and nobody will wake it"
    assert blkfront.consume(pair.front) == 1
