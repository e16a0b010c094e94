"""Events: a bit in shared memory, and a wake-up only when somebody may be asleep."""

import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import pytest

from common import abi
from common.event_channel import (
    FRUITLESS_MAX,
    EventChannel,
    channel_address,
    clear_mask,
    clear_pending,
    event_words,
    events_dir,
    set_pending,
)
from common.wakeups import Carrier, Events
from tests.common.carriers import CARRIERS, connected, is_closed, wake_up_is_there

PORTS = [0, 1, 63, 64, 65, 127, 2048, 4095]


def page() -> np.ndarray:
    return np.zeros(4096, np.uint8)


# --- the words --------------------------------------------------------------------------------


def test_the_words_are_those_of_the_shared_info_page() -> None:
    shared = page()
    pending, mask = event_words(shared)
    assert pending.shape == mask.shape == (64,)
    pending[0], mask[63] = 1, 2**63
    assert np.flatnonzero(shared).tolist() == [2048, 2560 + 511]
    assert shared.view(abi.SHARED_INFO)["evtchn_pending"][0, 0] == 1


@pytest.mark.parametrize("port", PORTS)
def test_a_port_is_one_bit_of_one_word(port: int) -> None:
    pending, mask = event_words(page())
    assert set_pending(pending, mask, port)
    assert np.flatnonzero(np.unpackbits(pending.view(np.uint8), bitorder="little")) == [port]
    assert not mask.any()
    assert clear_pending(pending, port)
    assert not pending.any()


@pytest.mark.parametrize("port", PORTS)
def test_only_a_pending_bit_that_was_clear_wakes(port: int) -> None:
    pending, mask = event_words(page())
    assert [set_pending(pending, mask, port) for _ in range(3)] == [True, False, False]
    assert [clear_pending(pending, port) for _ in range(2)] == [True, False]
    assert set_pending(pending, mask, port)


@pytest.mark.parametrize("port", PORTS)
def test_a_masked_port_is_set_and_not_woken(port: int) -> None:
    pending, mask = event_words(page())
    mask[:] = 2**64 - 1
    assert not set_pending(pending, mask, port)
    assert clear_pending(pending, port)
    clear_mask(mask, port)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert np.flatnonzero(bits == 0) == [port]
    assert set_pending(pending, mask, port)


def test_a_port_disturbs_none_of_its_neighbours() -> None:
    pending, mask = event_words(page())
    pending[:] = 2**64 - 1
    clear_pending(pending, 100)
    assert np.flatnonzero(pending != 2**64 - 1).tolist() == [1]
    assert pending[1] == (2**64 - 1) ^ (1 << 36)
    set_pending(pending, mask, 100)
    assert (pending == 2**64 - 1).all()


# --- both ends --------------------------------------------------------------------------------


class Ends(NamedTuple):
    front: EventChannel
    back: EventChannel


PORT = 70


@pytest.fixture(params=CARRIERS)
def ends(request: pytest.FixtureRequest, run_dir: str) -> Iterator[Ends]:
    """A channel that the front allocated: its own words and, behind them, the far end's."""
    own, far = page(), page()
    for words in (own, far):
        event_words(words)[1][:] = 2**64 - 1
    near, other = connected(request.param, channel_address(run_dir, PORT))
    front, back = EventChannel(near, PORT, own, far), EventChannel(other, PORT, far, own)
    yield Ends(front, back)
    for end in (near, other):
        if not is_closed(end):
            end.close()


def test_an_address_names_the_port_in_a_directory_of_the_allocating_domain() -> None:
    assert channel_address(events_dir("/run/x", 3), 17) == "ipc:///run/x/events-3/17"


def test_an_end_unmasks_its_own_port_and_no_other(ends: Ends) -> None:
    for mask in (ends.front.far_mask, ends.back.far_mask):
        assert mask[1] == (2**64 - 1) ^ (1 << (PORT - 64))
        assert (np.delete(mask, 1) == 2**64 - 1).all()


def test_an_event_goes_to_the_far_end_only_and_is_taken_once(ends: Ends) -> None:
    ends.front.notify()
    assert not ends.front.wait(0)
    assert ends.back.wait(60_000)
    assert not ends.back.wait(0)
    ends.back.notify()
    assert ends.front.wait(60_000)


def test_there_is_no_event_unless_one_is_sent(ends: Ends) -> None:
    assert not ends.front.wait(0)
    assert not ends.back.wait(1)


def test_many_events_before_a_wait_are_one(ends: Ends) -> None:
    for _ in range(10):
        ends.front.notify()
    assert ends.back.wait(60_000)
    assert not ends.back.pending.any()
    assert not ends.back.wait(20)


def test_a_waiter_sleeps_until_another_thread_notifies(ends: Ends) -> None:
    def ping_pong() -> None:
        for _ in range(200):
            while not ends.back.wait(60_000):
                pass
            ends.back.notify()

    other = threading.Thread(target=ping_pong, daemon=True)
    other.start()
    for _ in range(200):
        ends.front.notify()
        while not ends.front.wait(60_000):
            pass
    other.join(60)
    assert not other.is_alive()
    assert not ends.front.pending.any()
    assert not ends.back.pending.any()


def test_a_wait_lasts_until_there_is_an_event(ends: Ends) -> None:
    ends.front.notify()
    assert wake_up_is_there(ends.back.carrier, 60_000)
    assert ends.back.wait(0)
    later = threading.Timer(0.1, ends.front.notify)
    later.start()
    try:
        assert ends.back.wait(-1)
    finally:
        later.join()


def test_a_wait_ends_when_one_of_the_others_is_readable(ends: Ends) -> None:
    reads, writes = os.pipe()
    later = threading.Timer(0.05, lambda: os.write(writes, b"x"))
    later.start()
    assert not ends.back.wait(-1, (reads,))
    assert not ends.back.wait(60_000, (reads,))
    ends.front.notify()
    assert ends.back.wait(-1, (reads,))
    later.join()
    for fd in (reads, writes):
        os.close(fd)


def test_an_event_that_comes_with_the_others_is_taken(ends: Ends) -> None:
    reads, writes = os.pipe()

    class Both:
        """The event comes while we sleep, and so does something else."""

        def sleep(self, timeout_ms: int, others: Sequence[int]) -> bool:
            set_pending(ends.front.far_pending, ends.front.far_mask, PORT)
            os.write(writes, b"x")
            return carrier.sleep(timeout_ms, others)

        def __getattr__(self, name: str) -> Any:
            return getattr(carrier, name)

    carrier, ends.back.carrier = ends.back.carrier, cast(Carrier, Both())
    assert ends.back.wait(-1, (reads,))
    ends.back.carrier = carrier
    for fd in (reads, writes):
        os.close(fd)


def test_an_event_whose_wake_up_was_dropped_is_found_when_the_time_is_out(ends: Ends) -> None:
    def set_only() -> None:
        assert set_pending(ends.front.far_pending, ends.front.far_mask, PORT)

    later = threading.Timer(0.05, set_only)
    later.start()
    try:
        assert ends.back.wait(500)
    finally:
        later.join()


def test_a_masked_port_sends_no_wake_up_but_its_event_is_found(ends: Ends) -> None:
    ends.front.far_mask[1] = 2**64 - 1
    ends.front.notify()
    assert not wake_up_is_there(ends.back.carrier, 50)
    assert ends.back.wait(0)


def test_a_peer_that_floods_makes_no_event_and_prolongs_no_wait(ends: Ends) -> None:
    for _ in range(1_000):
        ends.front.wake_far_end()
    assert not ends.back.wait(20)


@pytest.mark.parametrize("without_event", [0, FRUITLESS_MAX, 10 * FRUITLESS_MAX])
def test_an_event_after_wake_ups_without_one_is_taken(ends: Ends, without_event: int) -> None:
    """Who wakes us for nothing pays with its own latency (XSA-332), and loses no event."""
    for _ in range(without_event):
        ends.front.wake_far_end()
        assert not ends.back.wait(10)
    ends.front.notify()
    assert ends.back.wait(-1)


@pytest.mark.parametrize("events", CARRIERS)
def test_an_event_sent_as_soon_as_the_far_end_is_there_is_not_lost(
    events: Events, run_dir: str
) -> None:
    for port in range(1, 30):
        own, far = page(), page()
        near, other = connected(events, channel_address(run_dir, port))
        front, back = EventChannel(near, port, own, far), EventChannel(other, port, far, own)
        front.notify()
        assert back.wait(-1)
        front.close()
        back.close()


def test_a_wake_up_to_an_end_that_reads_none_is_dropped_and_blocks_nobody(ends: Ends) -> None:
    for _ in range(20_000):
        ends.front.wake_far_end()
    ends.front.notify()
    assert ends.back.wait(60_000)


def test_notifying_an_end_that_is_gone_blocks_nobody(ends: Ends) -> None:
    ends.back.close()
    for _ in range(5_000):
        ends.front.wake_far_end()
    ends.front.notify()
    assert ends.front.far_pending[1] == 1 << (PORT - 64)


def test_waiting_for_an_end_that_is_gone_lasts_as_long_as_it_should(ends: Ends) -> None:
    ends.front.notify()
    ends.front.close()
    assert ends.back.wait(60_000)
    assert not ends.back.wait(50)
    reads, writes = os.pipe()
    later = threading.Timer(0.1, lambda: os.write(writes, b"x"))
    later.start()
    assert not ends.back.wait(-1, (reads,))
    later.join()
    for fd in (reads, writes):
        os.close(fd)
