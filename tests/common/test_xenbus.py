"""The handshake's table: driven from both ends, in any order, and against what Linux wrote."""

import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.xenbus import (
    CLOSED,
    CLOSING,
    CONNECTED,
    INIT_WAIT,
    INITIALISED,
    INITIALISING,
    STATE_NAMES,
    TABLE,
    UNKNOWN,
    Step,
    backend_path,
    diagram,
    disk_name,
    frontend_path,
    next_step,
    parse_number,
    parse_state,
    shown,
)

WRITES = Path(__file__).parents[1] / "golden/handshake-writes.txt"
OTHER = {"frontend": "backend", "backend": "frontend"}
ORDERS = st.lists(st.sampled_from(["frontend", "backend"]), max_size=30)

States = dict[str, int]
Write = tuple[str, int]


def look(role: str, states: States, written: list[Write]) -> bool:
    """Let one end look at the other once; False if it has nothing to do."""
    step = next_step(role, states[role], states[OTHER[role]])
    if step is None:
        return False
    states[role] = step.state
    written.append((role, step.state))
    return True


def settle(states: States, order: list[str] | None = None) -> list[Write]:
    """Let the ends look in `order`, then in turn until both wait; what they wrote."""
    written: list[Write] = []
    for role in order or []:
        look(role, states, written)
    while look("frontend", states, written) or look("backend", states, written):
        assert len(written) < 100, f"they never come to rest: {written[-8:]}"
    return written


def golden_states() -> list[Write]:
    """The kernels' writes of a state, in order, after the toolstack's."""
    found = []
    for line in WRITES.read_text().splitlines():
        match = re.fullmatch(r"\s*\d+ kernel\s+(backend|device)/\S+/state = (\d)", line)
        if match:
            found.append(({"device": "frontend"}.get(match[1], match[1]), int(match[2])))
    return found


# --- the handshake ----------------------------------------------------------------------------


def test_the_golden_order_is_what_we_take_it_for() -> None:
    assert golden_states() == [("backend", 2), ("frontend", 3), ("backend", 4), ("frontend", 4)]


@given(ORDERS)
def test_both_ends_connect_in_the_golden_order_whoever_looks_first(order: list[str]) -> None:
    states = {"frontend": INITIALISING, "backend": INITIALISING}
    assert settle(states, order) == golden_states()
    assert states == {"frontend": CONNECTED, "backend": CONNECTED}


@given(ORDERS)
def test_a_frontend_that_closes_goes_as_linux_does(order: list[str]) -> None:
    states = {"frontend": CLOSING, "backend": CONNECTED}
    assert settle(states, order) == [("backend", 5), ("frontend", 6), ("backend", 6)]


@given(ORDERS)
def test_a_backend_that_closes_takes_the_frontend_with_it(order: list[str]) -> None:
    states = {"frontend": CONNECTED, "backend": CLOSING}
    settle(states, order)
    assert states == {"frontend": CLOSED, "backend": CLOSED}


@given(ORDERS)
def test_a_frontend_that_begins_again_is_connected_again(order: list[str]) -> None:
    states = {"frontend": INITIALISING, "backend": CLOSED}
    assert settle(states, order) == golden_states()


@given(ORDERS, st.sampled_from([INITIALISING, INIT_WAIT]))
def test_a_frontend_that_writes_4_and_never_3_is_connected_to(order: list[str], back: int) -> None:
    """MirageOS and mini-os, whether the backend has looked before or not."""
    states = {"frontend": CONNECTED, "backend": back}
    if back == INITIALISING:  # ours would begin again: theirs only waits
        while look("backend", states, []):
            pass
    else:
        assert next_step("backend", back, CONNECTED) == Step("connect", CONNECTED)
        look("backend", states, [])
    assert states == {"frontend": CONNECTED, "backend": CONNECTED}


@pytest.mark.parametrize("seen", [(CLOSING, CLOSED), (CLOSED,), (CLOSING,), ()])
@pytest.mark.parametrize("back", [INITIALISING, INIT_WAIT])
def test_a_frontend_that_closes_before_it_was_connected_may_come_back(
    seen: tuple[int, ...], back: int
) -> None:
    """Windows; whichever of its states the backend is awake to see."""
    states = {"frontend": INITIALISING, "backend": back}
    for front in (*seen, INITIALISING):
        states["frontend"] = front
        while look("backend", states, []):
            pass
        if front != INITIALISING:
            assert states["backend"] == front
    assert states["backend"] == INIT_WAIT
    assert settle(states)[-1] == ("frontend", CONNECTED)


@pytest.mark.parametrize("own", [INITIALISED, CONNECTED, CLOSING])
@pytest.mark.parametrize("back", [UNKNOWN, CLOSING, CLOSED])
def test_a_frontend_lets_go_of_a_backend_that_is_gone(own: int, back: int) -> None:
    assert next_step("frontend", own, back) == Step("close", CLOSED)


@given(ORDERS, st.sampled_from([INITIALISED, CONNECTED]))
def test_a_frontend_begins_again_with_a_backend_that_does(order: list[str], own: int) -> None:
    """Both were told to: see `toolstack/recovery.py`."""
    states = {"frontend": own, "backend": INITIALISING}
    look("frontend", states, [])
    assert states["frontend"] == INITIALISING
    assert settle(states, order) == golden_states()


def test_a_frontend_that_was_connected_begins_again_though_it_saw_nothing_in_between() -> None:
    states = {"frontend": CONNECTED, "backend": INIT_WAIT}
    look("frontend", states, [])
    assert settle(states) == golden_states()[1:]


def test_what_was_closed_begins_again_at_initialising_only() -> None:
    for other in STATE_NAMES:
        step = next_step("backend", CLOSED, other)
        assert (step is not None) == (other == INITIALISING)


@pytest.mark.parametrize("role", ["frontend", "backend"])
def test_an_end_whose_peer_vanishes_when_connected_closes(role: str) -> None:
    states = {role: CONNECTED, OTHER[role]: UNKNOWN}
    look(role, states, [])
    assert states[role] == CLOSED


@pytest.mark.parametrize(("front", "back"), list(product(STATE_NAMES, STATE_NAMES)))
def test_from_any_pair_of_states_both_ends_come_to_rest(front: int, back: int) -> None:
    states = {"frontend": front, "backend": back}
    settle(states)
    assert next_step("frontend", states["frontend"], states["backend"]) is None
    assert next_step("backend", states["backend"], states["frontend"]) is None


@pytest.mark.parametrize("role", ["frontend", "backend"])
@given(seen=st.lists(st.integers(0, 12), max_size=40))
def test_nothing_a_peer_announces_is_an_error_of_ours(role: str, seen: list[int]) -> None:
    own = INITIALISING
    for other in seen:
        step = next_step(role, own, other)
        own = own if step is None else step.state
        assert own in STATE_NAMES


# --- the table --------------------------------------------------------------------------------

STEPS = [
    (role, own, other, step)
    for role, states in TABLE.items()
    for own, others in states.items()
    for other, step in others.items()
]


def test_there_are_two_roles() -> None:
    assert set(TABLE) == {"frontend", "backend"}


@pytest.mark.parametrize(("role", "own", "other", "step"), STEPS)
def test_a_step_leads_from_a_state_to_another(role: str, own: int, other: int, step: Step) -> None:
    assert {own, other, step.state} <= set(STATE_NAMES)
    assert step.state != own
    assert next_step(role, own, other) == step


def test_each_action_announces_what_it_has_done() -> None:
    announced: dict[tuple[str, str], set[int]] = {}
    for role, _, _, step in STEPS:
        announced.setdefault((role, step.action), set()).add(step.state)
    assert announced == {
        ("frontend", "publish_ring"): {INITIALISED},
        ("frontend", "read_disk"): {CONNECTED},
        ("frontend", "close"): {CLOSED},
        ("frontend", "suspend"): {INITIALISING},
        ("backend", "announce"): {INIT_WAIT},
        ("backend", "connect"): {CONNECTED},
        ("backend", "disconnect"): {CLOSING, CLOSED},
    }


def test_only_a_ring_that_is_published_is_connected_to() -> None:
    connecting = [(own, other) for _, own, other, step in STEPS if step.action == "connect"]
    assert connecting == [(INIT_WAIT, INITIALISED), (INIT_WAIT, CONNECTED)]


def test_a_pair_that_is_not_in_the_table_asks_for_nothing() -> None:
    there = {(role, own, other) for role, own, other, _ in STEPS}
    for role, own, other in product(TABLE, range(-1, 10), range(-1, 10)):
        assert (next_step(role, own, other) is not None) == ((role, own, other) in there)


def test_the_diagram_has_every_step_of_the_table() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    drawn = []
    for line in lines[1:]:
        match = re.fullmatch(r" {4}(\w+)_(\w+) --> \1_(\w+): (\w+) \(other is (.*)\)", line)
        assert match, line
        role, own, state, action, others = match.groups()
        drawn += [(role, own, other, action, state) for other in others.split(" or ")]
    assert sorted(drawn) == sorted(
        (role, STATE_NAMES[own], STATE_NAMES[other], step.action, STATE_NAMES[step.state])
        for role, own, other, step in STEPS
    )


# --- what is in the store ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "state"),
    [
        (b"0", UNKNOWN),
        (b"1", INITIALISING),
        (b"2", INIT_WAIT),
        (b"3", INITIALISED),
        (b"4", CONNECTED),
        (b"5", CLOSING),
        (b"6", CLOSED),
    ],
)
def test_a_state_is_a_number(value: bytes, state: int) -> None:
    assert parse_state(value) == state


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b"x",
        b"-1",
        b"+4",
        b" 4",
        b"4 ",
        b"4\n",
        b"4\0",
        b"\x004",
        b"4.0",
        b"0x4",
        b"4_",
        b"99",
        b"4294967300",
        "\u0664".encode(),
        "\u00b2".encode("latin-1"),
        b"\xff\xfe",
        b"9" * 4000,
        b"Connected",
    ],
)
def test_anything_else_is_unknown(value: bytes | None) -> None:
    assert parse_state(value) == UNKNOWN


@given(st.binary(max_size=12))
def test_whatever_bytes_a_peer_writes_are_some_state(value: bytes) -> None:
    state = parse_state(value)
    assert state in STATE_NAMES
    assert state == UNKNOWN or value.lstrip(b"0") == str(state).encode()


@pytest.mark.parametrize(
    ("value", "number"),
    [(b"0", 0), (b"42", 42), (b"0042", 42), (b"99", 99), (b"100", None), (b"", None)],
)
def test_a_number_is_digits_and_has_a_limit(value: bytes, number: int | None) -> None:
    assert parse_number(value, 99) == number


@pytest.mark.parametrize(
    "value",
    [None, b"-1", b"+1", b" 1", b"1\n", b"1_0", b"0x1", b"1e3", b"\xb2", b"0" * 21, b"9" * 4096],
)
def test_what_is_no_number_is_none(value: bytes | None) -> None:
    assert parse_number(value, 1 << 64) is None


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (51712, "xvda"),
        (51713, "xvda1"),
        (51728, "xvdb"),
        (51952, "xvdp"),
        ((1 << 28) | (16 << 8), "xvdq"),
        ((1 << 28) | (26 << 8) | 3, "xvdaa3"),
        (768, "vbd 768"),
    ],
)
def test_a_disk_has_the_name_people_know(device: int, name: str) -> None:
    assert disk_name(device) == name


def test_what_is_shown_of_a_value_is_short() -> None:
    assert shown(b"x") == "b'x'"
    assert len(shown(b"\xff" * 4096)) < 70


def test_the_paths_are_xens() -> None:
    assert frontend_path(3, 51712) == "/local/domain/3/device/vbd/51712"
    assert backend_path(3, 51712) == "/local/domain/0/backend/vbd/3/51712"
    assert backend_path(3, 51712, 7) == "/local/domain/7/backend/vbd/3/51712"
