"""Whose turn it is among the rings of one thread."""

import os
from typing import NamedTuple

import numpy as np
import pytest

from common import effects, notifying
from common.arena import Arena
from common.compiled import kernel
from common.event_channel import become_pending
from common.napping import FRONT_SHARE
from common.ring import REQ, RSP, new_half
from common.spinning import LIMIT_NS_MAX, LIMIT_NS_MIN, new_spin
from common.steps import AGAIN, COMPANY, ON, TURN_WORDS
from common.turns import (
    ASLEEP,
    HEARD,
    NOBODY,
    SLICE_OVER,
    End,
    Turns,
    any_pending,
    begin_slice,
    both_of,
    hear_of,
    leave_out,
    make_ready,
    new_turns,
    next_ring,
    note,
    rings_of,
    take_in,
    watches,
)

PORT = 70  # in the second word
FAR_AWAY_NS = 1 << 62


class Alone(NamedTuple):
    """What `notifying.watch` looks at of a ring's end."""

    words: np.ndarray
    half: np.ndarray
    turn: np.ndarray
    spin: np.ndarray


class Rings:
    """Turns for three rings; what `peer` produces on each is a word of its page."""

    def __init__(self, adaptive: bool = True, peer: int = REQ, count: int = 3) -> None:
        arena = Arena(1 << 20)
        self.spin = new_spin(adaptive)
        self.spin["limit_ns"], self.spin["patience_ns"] = LIMIT_NS_MIN, 0
        self.turns: Turns = new_turns(arena, 8, peer, self.spin)
        self.peer = peer
        self.ends = [
            End(
                arena.array(1024, np.uint32),
                new_half(arena, 32),
                arena.array(TURN_WORDS, np.int64),
                arena.array(64, np.uint64),
                np.full(1, PORT + ring),
                *(arena.array(1, np.uint32) for _ in range(3)),
            )
            for ring in range(count)
        ]
        for ring, end in enumerate(self.ends):
            take_in(self.turns, ring, end)
        self.turns.head["until_ns"] = FAR_AWAY_NS

    def produce(self, ring: int) -> None:
        self.ends[ring].words[self.peer] += 1

    def send(self, ring: int) -> None:
        become_pending(self.ends[ring].pending, PORT + ring)

    def turn(self, effect: int) -> int:
        """The next ring has its turn, which ends so."""
        ring = int(next_ring(self.turns))
        if ring >= 0:
            note(self.turns, ring, effect)
        return ring

    def all_do(self, effect: int) -> None:
        for ring in rings_of(self.turns):
            note(self.turns, ring, effect)


def test_rings_that_have_something_to_do_have_turns_in_a_round() -> None:
    rings = Rings()
    assert [rings.turn(effects.SLICE) for _ in range(7)] == [1, 2, 0, 1, 2, 0, 1]


def test_one_whose_peer_has_nothing_new_is_passed_over_until_it_has() -> None:
    rings = Rings()
    note(rings.turns, 1, effects.STOP)
    assert [rings.turn(effects.SLICE) for _ in range(4)] == [2, 0, 2, 0]
    rings.produce(1)
    assert [rings.turn(effects.SLICE) for _ in range(3)] == [1, 2, 0]


@pytest.mark.parametrize("peer", [REQ, RSP])
def test_the_producer_that_is_watched_is_the_peers(peer: int) -> None:
    rings = Rings(peer=peer)
    rings.all_do(effects.STOP)
    rings.ends[2].words[RSP if peer == REQ else REQ] += 1
    rings.produce(0)
    assert rings.turn(effects.STOP) == 0


def test_when_it_pays_no_longer_each_is_asked_to_arm_and_then_all_sleep() -> None:
    rings = Rings()
    rings.all_do(effects.STOP)
    assert sorted(rings.turn(effects.WAIT) for _ in range(3)) == [0, 1, 2]
    assert rings.turn(effects.WAIT) == ASLEEP


def test_while_they_are_asked_to_arm_another_may_find_something() -> None:
    rings = Rings()
    rings.all_do(effects.STOP)
    first = rings.turn(effects.WAIT)
    rings.produce(second := (first + 1) % 3)
    assert rings.turn(effects.SLICE) == second
    assert rings.turn(effects.WAIT) == (first + 2) % 3
    assert rings.turn(effects.STOP) == second


def test_who_sleeps_is_woken_by_its_event_which_is_taken() -> None:
    rings = Rings()
    rings.all_do(effects.WAIT)
    rings.produce(0)  # without an event: it has armed, so there will be one
    assert rings.turn(effects.WAIT) == ASLEEP
    rings.send(2)
    assert any_pending(rings.turns)
    assert rings.turn(effects.WAIT) == 2
    assert not any_pending(rings.turns) and not rings.ends[2].pending.any()
    assert rings.turn(effects.WAIT) == ASLEEP


def test_one_that_sleeps_is_woken_while_others_are_busy() -> None:
    rings = Rings()
    note(rings.turns, 2, effects.WAIT)
    rings.turn(effects.SLICE)
    rings.send(2)
    assert [rings.turn(effects.SLICE) for _ in range(3)] == [2, 0, 1]


@pytest.mark.parametrize("rests", [effects.STOP, effects.WAIT])
@pytest.mark.parametrize("what", ["answers", "flags"])
def test_what_else_has_something_for_it_wakes_it_watched_or_asleep(what: str, rests: int) -> None:
    """While another is busy, too: its store would wait for that one's end."""
    rings = Rings()
    for ring in (1, 2):
        note(rings.turns, ring, rests)
    assert [rings.turn(effects.SLICE) for _ in range(2)] == [0, 0]
    getattr(rings.ends[2], what)[0] = 1
    assert [rings.turn(effects.SLICE) for _ in range(2)] == [2, 0]
    note(rings.turns, 2, rests)
    rings.ends[2].taken[0], rings.ends[2].flags[0] = rings.ends[2].answers[0], 0
    assert [rings.turn(effects.SLICE) for _ in range(2)] == [0, 0]


def test_a_slice_ends_by_the_clock_whoever_is_busy() -> None:
    rings = Rings()
    begin_slice(rings.turns)
    for _ in range(10_000_000):
        if rings.turn(effects.SLICE) == SLICE_OVER:
            break
    else:
        raise AssertionError("it never ends")
    begin_slice(rings.turns)
    assert rings.turn(effects.SLICE) >= 0


def test_a_driver_is_returned_to_for_what_it_has_to_do_only() -> None:
    rings = Rings()
    ours = {effects.SLICE, effects.STOP, effects.WAIT}
    for effect in range(len(effects.NAMES)):
        assert note(rings.turns, 0, effect) == (effect not in ours)


def test_who_is_told_that_there_are_others() -> None:
    rings = Rings(count=1)
    assert not watches(rings.turns) and rings.ends[0].turn[COMPANY] == 0
    other = rings.ends[0]._replace(turn=np.zeros(TURN_WORDS, np.int64))
    take_in(rings.turns, 5, other)
    assert watches(rings.turns)
    assert rings.ends[0].turn[COMPANY] == other.turn[COMPANY] == 1
    leave_out(rings.turns, 5)
    assert not watches(rings.turns) and rings.ends[0].turn[COMPANY] == 0


def test_who_never_spins_watches_nothing() -> None:
    assert not watches(Rings(adaptive=False).turns)


def test_who_is_left_out_has_no_turns_and_the_others_go_on() -> None:
    rings = Rings()
    leave_out(rings.turns, 1)
    assert [rings.turn(effects.SLICE) for _ in range(4)] == [2, 0, 2, 0]
    for ring in (0, 2):
        leave_out(rings.turns, ring)
    assert rings.turn(effects.SLICE) == NOBODY


def test_who_is_made_ready_has_a_turn_without_an_event() -> None:
    rings = Rings()
    rings.all_do(effects.WAIT)
    make_ready(rings.turns, 1)
    assert [rings.turn(effects.WAIT) for _ in range(2)] == [1, ASLEEP]


def test_what_serve_returns_is_an_effect_and_its_ring() -> None:
    assert both_of(effects.WAKE << 16 | 1023) == (effects.WAKE, 1023)


def will_nap(spin: np.ndarray) -> None:
    """It has seen much under way, and answers far apart."""
    spin["nap_share"], spin["windows"], spin["answers_ns"] = FRONT_SHARE, 1, 1
    spin["pace_ns"] = spin["spun_pace_ns"] = 20_000
    spin["limit_ns"] = LIMIT_NS_MAX


@kernel
def watch_answers(alone: Alone) -> int:
    return notifying.watch(alone, RSP)  # type: ignore[no-any-return]


def test_who_is_alone_with_its_ring_naps() -> None:
    rings = Rings(peer=RSP, count=1)
    will_nap(rings.spin)
    end = rings.ends[0]
    end.half["prod_pvt"] = 12
    alone = Alone(end.words, end.half, end.turn, rings.spin)
    assert watch_answers(alone) == ON
    assert rings.spin["most"][0] == 12
    end.words[RSP] = 1
    assert watch_answers(alone) == AGAIN


def test_in_company_nobody_naps_for_one_ring_while_another_may_have_something() -> None:
    rings = Rings(peer=RSP)
    will_nap(rings.spin)
    rings.spin["limit_ns"] = LIMIT_NS_MIN
    for end in rings.ends:
        end.half["prod_pvt"] = 12
        alone = Alone(end.words, end.half, end.turn, rings.spin)
        assert watch_answers(alone) == ON
    rings.all_do(effects.STOP)
    assert rings.turn(effects.STOP) in rings_of(rings.turns)
    assert rings.spin["most"][0] == 0, "it was not thought of"


def test_a_descriptor_is_looked_at_between_turns_and_while_it_spins() -> None:
    rings = Rings()
    read, write = os.pipe()
    try:
        hear_of(rings.turns, read)
        assert rings.turn(effects.SLICE) >= 0, "it has nothing"
        os.write(write, b"x")
        rings.turns.head["heard_ns"] = 0
        assert rings.turn(effects.SLICE) == HEARD, "though all rings have something to do"
        assert rings.turn(effects.SLICE) >= 0, "it is not asked all the time"
        rings.spin["limit_ns"] = LIMIT_NS_MAX
        rings.all_do(effects.STOP)
        assert rings.turn(effects.SLICE) == HEARD, "though others are spun for"
        os.read(read, 1)
        rings.spin["limit_ns"] = LIMIT_NS_MIN
        assert rings.turn(effects.SLICE) >= 0
        os.write(write, b"x")
        hear_of(rings.turns, -1)
        rings.turns.head["heard_ns"] = 0
        assert rings.turn(effects.SLICE) >= 0, "nobody is heard of"
    finally:
        os.close(read)
        os.close(write)
