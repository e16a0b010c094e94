"""A flush goes as the backend knows it; where it knows none it is reported done, as in Linux."""

import numpy as np
import pytest

from common import abi
from frontend.block_device import BlockDevice
from frontend.disk import Disk
from tests.frontend.answering import BARRIER, FLUSH, Answering, Asked
from tests.frontend.test_block_device import device
from tests.frontend.whole import check_whole
from tests.pair import EOPNOTSUPP, ERROR, MODES, OKAY, WRITE


def of(pair: Answering) -> BlockDevice:
    return device(pair)[0]


@pytest.mark.parametrize(
    ("flush_cache", "barrier", "sent"),
    [(True, True, FLUSH), (True, False, FLUSH), (False, True, BARRIER), (False, False, 0)],
)
def test_which_operation_it_is(flush_cache: bool, barrier: bool, sent: int) -> None:
    disk = Disk(8, 512, True, read_only=False, flush_cache=flush_cache, barrier=barrier)
    assert disk.flushes_as == sent


@pytest.mark.parametrize("operation", [FLUSH, BARRIER])
@pytest.mark.parametrize("mode", MODES)
def test_it_is_one_request_without_segments_pages_or_grants(mode: str, operation: int) -> None:
    pair = Answering(mode, operation)
    with pair.counting() as cost:
        of(pair).flush()
    assert pair.asked == [Asked(operation, 0, 0, 0)]
    assert (cost["requests"], cost["flush_requests"], cost["segments"]) == (1, 1, 0)
    assert cost["grants_issued"] == cost["grant_end_attempts"] == cost["ios"] == 0
    assert pair.front.front["unflushed"][0] == 0
    check_whole(pair.front)


@pytest.mark.parametrize("mode", MODES)
def test_writes_and_flushes_take_turns(mode: str) -> None:
    pair = Answering(mode)
    disk = of(pair)
    for at in range(40):
        disk.write(at * 4096, bytes([at]) * 4096)
        disk.flush()
    assert pair.operations() == [WRITE, FLUSH] * 40
    assert disk.read(7 * 4096, 512) == b"\7" * 512
    assert pair.front.front["outstanding"][0] == 0


def test_where_the_backend_has_none_it_is_done_at_once() -> None:
    pair = Answering(flushes_as=0)
    for nth in range(1, 4):
        of(pair).flush()
        assert pair.front.front["unflushed"][0] == nth
    assert pair.asked == [] and pair.counts()["flush_requests"] == 0
    of(pair).write(0, bytes(512))
    assert pair.operations() == [WRITE]


@pytest.mark.parametrize("operation", [FLUSH, BARRIER])
@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_one_that_is_not_known_after_all_is_reported_done_and_never_sent_again(
    mode: str, operation: int
) -> None:
    pair = Answering(mode, operation)
    pair.statuses[operation] = EOPNOTSUPP
    for _ in range(3):
        of(pair).flush()
    assert pair.operations() == [operation]
    assert pair.front.front["unflushed"][0] == 3
    of(pair).write(0, bytes(512))
    assert pair.operations() == [operation, WRITE]
    check_whole(pair.front)


def test_one_that_fails_is_an_error_and_is_sent_again() -> None:
    pair = Answering()
    pair.statuses[FLUSH] = ERROR
    for _ in range(2):
        with pytest.raises(OSError, match="I/O error at sector 0"):
            of(pair).flush()
    assert pair.operations() == [FLUSH] * 2 and pair.front.front["unflushed"][0] == 0


def test_the_real_backend_says_what_it_does_not_know() -> None:
    pair = Answering()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Answering, "serve", Answering.__mro__[1].serve)
        of(pair).flush()
        of(pair).flush()
    assert pair.front.front["unflushed"][0] == 2 and pair.counts()["flush_requests"] == 1
    pair.check()


def test_an_answer_of_another_operation_breaks_the_ring() -> None:
    pair = Answering()
    pair.queue(0, FLUSH, 0, 0)
    pair.front_run(0)
    ident = int(np.flatnonzero(pair.front.shadow["used"])[0])
    pair.answer_raw((ident, BARRIER, OKAY))
    pair.front_run(0)
    pair.front_run(0)
    assert pair.front.front["broken"][0] != 0


def test_a_flush_does_not_wait_for_a_page() -> None:
    """All pages are in flight, a slot of the ring is not."""
    pair = Answering(pool_pages=2, nr_ios=4)
    pair.slow.add(WRITE)
    for io in range(2):
        pair.queue(io, WRITE, 8 * io, abi.SECTORS_PER_PAGE)
    pair.queue(2, FLUSH, 0, 0)
    assert pair.run() == [2, 0, 1]
