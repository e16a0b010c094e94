"""What carries a wake-up: both carriers keep to one specification."""

import errno
import os
import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from common import wakeups
from common.process import open_descriptors
from common.wakeups import DRAINS_MAX, Carrier, Events, PipeCarrier, ZmqCarrier, carrier_of
from tests.common.carriers import CARRIERS, connected, is_closed, wake_up_is_there, woken


class Ends(NamedTuple):
    near: Carrier
    far: Carrier


@pytest.fixture(params=CARRIERS)
def ends(request: pytest.FixtureRequest, run_dir: str) -> Iterator[Ends]:
    ends = Ends(*connected(request.param, f"ipc://{run_dir}/1"))
    yield ends
    ends.near.close()
    if not is_closed(ends.far):
        ends.far.close()


@pytest.fixture
def pipes() -> Iterator[Ends]:
    ends = Ends(*connected("pipe", ""))
    yield ends
    for end in ends:
        end.close()


def descriptors_of(carrier: Carrier) -> tuple[int, int]:
    assert isinstance(carrier, PipeCarrier)
    return carrier._from_far, carrier._to_far


# --- to wake and to be woken ----------------------------------------------------------------------


def test_each_end_wakes_the_other_and_not_itself(ends: Ends) -> None:
    for waker, sleeper in (ends, reversed(ends)):
        waker.wake()
        assert wake_up_is_there(sleeper, 60_000)
        assert not wake_up_is_there(waker, 0)
        sleeper.drain()
        assert not wake_up_is_there(sleeper, 0)


def test_a_wake_up_ends_a_sleep(ends: Ends) -> None:
    later = threading.Timer(0.05, ends.near.wake)
    later.start()
    assert woken(ends.far)
    later.join()


def test_a_wake_up_that_came_before_the_sleep_ends_it(ends: Ends) -> None:
    ends.near.wake()
    assert wake_up_is_there(ends.far, 60_000)
    assert woken(ends.far)
    assert woken(ends.far)  # until it is drained


def test_a_wake_up_that_came_before_we_sent_one_ends_our_sleep(ends: Ends) -> None:
    """ZeroMQ's descriptor tells once, and a send of ours takes that word."""
    for _ in range(20):
        ends.near.wake()
        assert wake_up_is_there(ends.far, 60_000)
        ends.far.wake()
        assert woken(ends.far)
        ends.far.drain()


def test_a_wake_up_after_the_drain_ends_the_next_sleep(ends: Ends) -> None:
    for _ in range(50):
        ends.far.drain()
        ends.near.wake()
        assert woken(ends.far)


def test_a_wake_up_is_lost_at_no_speed_as_long_as_each_is_drained(ends: Ends) -> None:
    """ZeroMQ refuses the seventeenth of a millisecond, though the far end has taken all before."""
    for _ in range(500):
        ends.near.wake()
        assert wake_up_is_there(ends.far, 5_000)
        ends.far.drain()


def test_a_sleep_is_over_when_its_time_is(ends: Ends) -> None:
    assert not ends.far.sleep(0, ())
    assert not ends.far.sleep(10, ())


def test_a_drain_of_nothing_does_not_wait(ends: Ends) -> None:
    ends.near.drain()
    ends.far.drain()


def test_many_wake_ups_are_drained_at_once(ends: Ends) -> None:
    for _ in range(10):
        ends.near.wake()
    assert wake_up_is_there(ends.far, 60_000)
    for _ in range(100):  # ZeroMQ's come one by one
        ends.far.drain()
        if not wake_up_is_there(ends.far, 20):
            return
    raise AssertionError("there is always another")


# --- who else may end a sleep ---------------------------------------------------------------------


@pytest.fixture
def others() -> Iterator[tuple[int, int]]:
    """Two descriptors, the second readable."""
    (quiet, end), (ready, other_end) = os.pipe(), os.pipe()
    os.write(other_end, b"x")
    yield quiet, ready
    for fd in (quiet, end, ready, other_end):
        os.close(fd)


def test_a_sleep_ends_when_one_of_the_others_is_readable(
    ends: Ends, others: tuple[int, int]
) -> None:
    assert ends.far.sleep(-1, others)
    assert ends.far.sleep(60_000, others[1:])
    assert ends.far.sleep(0, others)
    assert not ends.far.sleep(10, others[:1])


def test_others_that_are_not_readable_are_not_said_to_be(
    ends: Ends, others: tuple[int, int]
) -> None:
    ends.near.wake()
    assert wake_up_is_there(ends.far, 60_000)
    assert not ends.far.sleep(-1, others[:1])
    assert ends.far.sleep(-1, others)


def test_an_other_that_has_hung_up_ends_a_sleep(ends: Ends) -> None:
    reads, writes = os.pipe()
    os.close(writes)
    assert ends.far.sleep(-1, (reads,))
    os.close(reads)


# --- a far end that does not play ---------------------------------------------------------------


def test_a_wake_never_blocks_for_an_end_that_reads_none(ends: Ends) -> None:
    for _ in range(100_000):  # a pipe holds 65,536
        ends.near.wake()
    assert wake_up_is_there(ends.far, 60_000)
    ends.far.wake()
    assert woken(ends.near)


def test_a_wake_never_blocks_nor_fails_for_an_end_that_is_gone(ends: Ends) -> None:
    ends.far.close()
    for _ in range(1000):
        ends.near.wake()


@pytest.mark.parametrize("unread", [0, 1, 5000])
def test_an_end_that_is_gone_does_not_make_us_spin(ends: Ends, unread: int) -> None:
    """A pipe without a writer is ready for ever: a waiter that does not notice sleeps no more."""
    for _ in range(unread):
        ends.far.wake()
    ends.far.close()
    reads, writes = os.pipe()
    later = threading.Timer(0.5, lambda: os.write(writes, b"x"))
    later.start()
    sleeps = 1
    ends.near.drain()
    while not ends.near.sleep(-1, (reads,)):
        ends.near.drain()
        sleeps += 1
    later.join()
    assert sleeps < 1000
    for fd in (reads, writes):
        os.close(fd)


def test_what_the_far_end_does_to_its_descriptors_makes_nothing_of_ours_block(pipes: Ends) -> None:
    import fcntl

    for fd in descriptors_of(pipes.far):
        os.set_blocking(fd, True)
    fcntl.fcntl(descriptors_of(pipes.far)[1], fcntl.F_SETPIPE_SZ, 4096)
    fcntl.fcntl(descriptors_of(pipes.far)[0], fcntl.F_SETPIPE_SZ, 4096)
    assert [os.get_blocking(fd) for fd in descriptors_of(pipes.near)] == [False, False]
    for _ in range(10_000):
        pipes.near.wake()
    os.write(descriptors_of(pipes.far)[1], b"?" * 4096)
    assert woken(pipes.near)
    pipes.near.drain()
    assert not wake_up_is_there(pipes.near, 0)
    pipes.near.drain()


def test_a_far_end_that_writes_as_fast_as_we_read_is_not_waited_for(
    pipes: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    def endless(_fd: int, nbytes: int) -> bytes:
        reads.append(nbytes)
        return bytes(nbytes)

    monkeypatch.setattr(wakeups.os, "read", endless)
    pipes.near.drain()
    assert len(reads) == DRAINS_MAX


def test_a_message_that_is_no_wake_up_costs_zeromqs_far_end_its_connection(run_dir: str) -> None:
    near, far = connected("zeromq", f"ipc://{run_dir}/1")
    assert isinstance(far, ZmqCarrier)
    far._socket.send(bytes(1 << 20))
    assert not wake_up_is_there(near, 50)
    near.close()
    far.close()


# --- how they come about --------------------------------------------------------------------------


def test_an_end_of_zeromq_that_does_not_show_is_not_waited_for_for_ever(run_dir: str) -> None:
    alone = carrier_of("zeromq", (), f"ipc://{run_dir}/1", allocated_here=True)
    assert not alone.await_far_end(0)
    assert not alone.await_far_end(20)
    alone.close()


def test_a_pipe_keeps_what_is_sent_before_its_reader_comes() -> None:
    (near_reads, far_writes), (far_reads, near_writes) = os.pipe(), os.pipe()
    near = carrier_of("pipe", (near_reads, near_writes), "", allocated_here=True)
    assert near.await_far_end(0)
    near.wake()
    far = carrier_of("pipe", (far_reads, far_writes), "", allocated_here=False)
    assert woken(far)
    near.close()
    far.close()


@pytest.mark.parametrize("events", CARRIERS)
def test_nothing_stays_open(events: Events, run_dir: str) -> None:
    for end in connected(events, f"ipc://{run_dir}/first"):
        end.close()  # ZeroMQ's own threads are there from now on
    before = len(open_descriptors())
    for at in range(10):
        near, far = connected(events, f"ipc://{run_dir}/{at}")
        near.wake()
        far.close()
        near.close()
    for _ in range(500):  # ZeroMQ closes in its own time
        if len(open_descriptors()) <= before:
            return
        threading.Event().wait(0.01)
    raise AssertionError(open_descriptors())


def test_an_error_of_a_pipe_that_is_no_pipe_is_not_hidden(pipes: Ends) -> None:
    closed = os.dup(descriptors_of(pipes.near)[0])
    os.close(closed)
    carrier = PipeCarrier.__new__(PipeCarrier)
    carrier._from_far = carrier._to_far = closed
    for act in (carrier.wake, carrier.drain):
        with pytest.raises(OSError) as raised:
            act()
        assert raised.value.errno == errno.EBADF
