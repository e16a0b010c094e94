"""Either end crashes before and after each thing it does or hears, and between any two messages of
its conversations with the store; and the world comes to rest.

A crash is a guest that dies, a backend's directory that is removed, or a dom0 that dies and is
started again with the disk plugged in anew. Each comes at each point of a disk's life.
"""

from collections.abc import Callable
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.xenbus import STATE_NAMES, SUSPEND, TABLE
from tests.simulator.crashes import House, Rest

NOTHING_LEFT = Rest("Closed", "none")
UNTOUCHED = Rest("Initialising", "none")  # it goes on waiting for a backend
BOTH_CLOSED = Rest("Closed", "Closed")
CONNECTED = Rest("Connected", "Connected", granted=1, mapped=1, ports=(1, 1))
DEAD = Rest("dead", "none")

# STATES[(front's, back's)] at the crash; in each, how a world comes to rest after it.
Outcomes = dict[tuple[str, str], set[Rest]]
STATES = (
    ("Initialising", "none"),
    ("Initialising", "Initialising"),
    ("Initialising", "InitWait"),
    ("Initialised", "InitWait"),
    ("Initialised", "Connected"),
    ("Connected", "Connected"),
    ("Closing", "Connected"),
    ("Closing", "Closing"),
    ("Closed", "Closing"),
    ("Closed", "Closed"),
)
CRASHES: dict[Callable[[House], None], Outcomes] = {
    # Only the toolstack remembers it, and cleans up.
    House.guest_dies: {states: {DEAD} for states in STATES},
    # A frontend that has seen InitWait publishes its ring, sees that nobody is there, and closes.
    House.directory_goes: {states: {NOTHING_LEFT} for states in STATES}
    | {states: {UNTOUCHED} for states in STATES[:2]}
    | {("Initialising", "InitWait"): {UNTOUCHED, NOTHING_LEFT}},
    # Who was about to use it connects to the new one; who was about to close closes.
    House.dom0_dies: {states: {CONNECTED} for states in STATES[:6]}
    | {states: {BOTH_CLOSED} for states in STATES[6:]},
    House.dom0_is_replaced: {states: {CONNECTED} for states in STATES[:6]}
    | {states: {BOTH_CLOSED} for states in STATES[6:]},
}


@cache
def points() -> int:
    """How many things the ends do and hear in a whole life."""
    return len(House().live().heard)


def test_a_whole_life_leaves_nothing_behind() -> None:
    house = House()
    house.plug()
    house.world.rest()
    assert house.at_rest() == CONNECTED
    assert House().live().at_rest() == BOTH_CLOSED


@pytest.mark.parametrize("crash", CRASHES, ids=lambda crash: crash.__name__)
def test_a_crash_anywhere_comes_to_rest_as_the_table_says(crash: Callable[[House], None]) -> None:
    met: Outcomes = {}
    for at in range(points()):
        house = House(at, crash).live()
        assert house.crashed is not None
        rest = house.at_rest()
        assert rest in CRASHES[crash][house.crashed], (house.heard[at], house.crashed)
        met.setdefault(house.crashed, set()).add(rest)
    assert met == CRASHES[crash]


def test_every_step_of_the_table_that_an_honest_life_takes_is_met() -> None:
    """So that no step is left out above by accident."""
    house = House().live()
    for role, states in TABLE.items():
        for steps in states.values():
            for step in set(steps.values()) - {SUSPEND}:
                announced = [what for what in house.heard if f"'state': {step.state}}}" in what]
                assert any(what.startswith(role) for what in announced), STATE_NAMES[step.state]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_events_late_repeated_or_coalesced_lead_to_the_same_rest(seed: int) -> None:
    house = House(disorder=Random(seed))
    house.plug()
    house.world.rest()
    assert house.at_rest() == CONNECTED
    assert House(disorder=Random(seed)).live().at_rest() == BOTH_CLOSED


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), at=st.integers(0, 250), crash=st.sampled_from([*CRASHES]))
def test_so_does_a_crash_among_them(seed: int, at: int, crash: Callable[[House], None]) -> None:
    house = House(at, crash, Random(seed)).live()
    allowed = set().union(*CRASHES[crash].values()) if house.crashed else {BOTH_CLOSED}
    assert house.at_rest() in allowed
