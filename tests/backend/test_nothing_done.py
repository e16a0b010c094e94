"""What nobody has done is never answered as okay: a driver that forgets, a hypercall that fails."""

import errno
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest

from backend.at_store import answer, take_started
from backend.doors import called_for
from backend.ring_hands import RingHands
from common import abi, effects
from common.atomics import load_acquire, store_release
from common.hypercall import HYPERCALL, MESSAGE_MAX, Hypercalls
from common.hypercall_gate import (
    ANSWERED,
    POSTED,
    RC,
    STATE,
    gate_bytes,
    header_of,
    new_gate,
)
from common.not_done import NOT_DONE
from common.ring import RSP
from tests.pair import CALLS, EOPNOTSUPP, ERROR, GRANT_COPY, OKAY, READ, WRITE, CallbackStore, Raw
from tests.pair import Pair as RealPair

MODES = ("persistent", "non-persistent", GRANT_COPY)


class Pair(RealPair):
    """A pair whose dom0 does nothing for the effects in `forgets`: "io", or a hypercall's name."""

    forgets: tuple[str, ...] = ()

    def do(self, effect: int) -> None:
        wanted = "io" if effect == effects.IO else ""
        if effect == effects.HYPERCALL:
            wanted = CALLS[called_for(self.back)[0]]
        if wanted not in self.forgets:
            super().do(effect)
        elif effect == effects.IO:
            self.forgotten = take_started(self.back).tolist()


def requests(pair: Pair) -> list[Raw]:
    """A read and a write of two pages each, a bad one, and a second read; pages and disk differ."""
    grefs = [pair.grant(pair.buffer_frame + at) for at in range(6)]
    pair.ram[pair.buffer_frame * abi.XEN_PAGE_SIZE :] = 0x5A
    pair.store.write(0, np.full(512 * 512, 0xA5, np.uint8))
    return [
        Raw([(gref, 0, 7) for gref in grefs[:2]], READ, 0, 1),
        Raw([(gref, 0, 7) for gref in grefs[2:4]], WRITE, 64, 2),
        Raw(operation=9, id=3),
        Raw([(gref, 0, 7) for gref in grefs[4:]], READ, 128, 4),
    ]


FAILED = [(1, READ, ERROR), (2, WRITE, ERROR), (3, 9, EOPNOTSUPP), (4, READ, ERROR)]


def nothing_moved(pair: Pair) -> None:
    """Neither to the disk nor to the guest."""
    image = np.zeros(512 * 512, np.uint8)
    pair.store.read(0, image)
    assert (image == 0xA5).all()
    assert (pair.ram[pair.buffer_frame * abi.XEN_PAGE_SIZE :] == 0x5A).all()


@pytest.mark.parametrize("gather_max", [1, 32])
@pytest.mark.parametrize("callbacks", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_driver_that_makes_no_hypercall_answers_with_errors(
    mode: str, callbacks: bool, gather_max: int
) -> None:
    pair = Pair(mode, gather_max=gather_max, store=CallbackStore(512) if callbacks else None)
    asked = requests(pair)
    if mode == GRANT_COPY:  # what an honest driver left in the arrays helps nobody
        assert {status for _, _, status in pair.ask(*asked)} == {OKAY, EOPNOTSUPP}
        pair.ram[pair.buffer_frame * abi.XEN_PAGE_SIZE :] = 0x5A
        pair.store.write(0, np.full(512 * 512, 0xA5, np.uint8))
    pair.forgets = ("map", "copy")
    assert sorted(pair.ask(*asked)) == FAILED
    nothing_moved(pair)
    pair.forgets = ()
    assert pair.ask(asked[0], asked[1]) == [(1, READ, OKAY), (2, WRITE, OKAY)]
    pair.check()


@pytest.mark.parametrize("mode", MODES)
def test_what_a_driver_does_not_give_the_store_is_not_answered_before_it_has(mode: str) -> None:
    pair = Pair(mode, gather_max=32, store=CallbackStore(512))
    pair.forgets = ("io",)
    assert pair.ask(*requests(pair)) == [FAILED[2]]
    nothing_moved(pair)
    for slot in pair.forgotten:
        answer(pair.back, slot, NOT_DONE)
    assert pair.ask() == [FAILED[0], FAILED[1], FAILED[3]]
    nothing_moved(pair)
    pair.check()


def test_a_driver_that_does_not_unmap_answers_nothing() -> None:
    pair = Pair("non-persistent")
    pair.forgets = ("unmap",)
    with pytest.raises(AssertionError):
        pair.ask(*requests(pair))
    assert load_acquire(pair.back.words, RSP) == 0


def front_rests(pair: Pair) -> None:
    """The guest works until it sleeps or has nothing more to do."""
    while pair.front_until() not in (effects.WAIT, effects.DONE):
        pass


@pytest.mark.parametrize("mode", sorted({*MODES} - {GRANT_COPY}))
def test_an_io_is_not_okay_before_its_last_request_is_answered(mode: str) -> None:
    pair = Pair(mode, frames_per_io=32)
    pair.queue(0, READ, 0, 256)
    assert pair.front.ios["status"][0] == NOT_DONE
    front_rests(pair)
    assert pair.front.front["outstanding"][0] == 3
    for ident in pair.slots["id"][:3].tolist():
        assert pair.front.ios["status"][0] == NOT_DONE
        pair.answer_raw((ident, READ, OKAY))
        front_rests(pair)
    assert pair.front.ios["status"][0] == OKAY


# --- a hypercall that fails as a whole --------------------------------------------------------


@contextmanager
def hypervisor(answer_one: Callable[[], None]) -> Iterator[None]:
    """A hypervisor that answers, in a thread, until the block ends."""
    ends = threading.Event()

    def answer() -> None:
        while not ends.is_set():
            answer_one()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_fails_in_the_gate_is_an_error_of_its_requests(mode: str) -> None:
    pair = Pair(mode, gather_max=32)
    asked = requests(pair)
    segment = np.zeros(gate_bytes(1), np.uint8)
    gate = new_gate(segment, 0)
    pair.back = pair.back._replace(gate=gate)
    pair.spin_on(10**10)
    header = int(header_of(0))

    def refuse() -> None:
        if load_acquire(gate.words, header + STATE) == POSTED:
            store_release(gate.words, header + RC, -errno.EINVAL & 0xFFFFFFFF)
            store_release(gate.words, header + STATE, ANSWERED)

    with hypervisor(refuse):
        pair.push_raw(*asked)
        assert pair.back_until() == effects.WAKE
    assert not pair.hypercalls
    assert [pair.responses[at].item() for at in range(4)] == FAILED
    nothing_moved(pair)
    pair.check()


@pytest.mark.parametrize("mode", MODES)
def test_a_call_that_fails_by_message_is_an_error_of_its_requests(mode: str) -> None:
    pair = Pair(mode, gather_max=32)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def refuse() -> None:
        if select.select([theirs], [], [], 0.02)[0]:
            message = bytearray(theirs.recv(MESSAGE_MAX))
            np.frombuffer(message, HYPERCALL, count=1)["rc"] = -errno.EINVAL
            theirs.send(message)

    hypercalls, none = Hypercalls(ours), cast(Any, None)
    hands = RingHands(pair.back, pair.store, none, hypercalls)
    pair.make_call = hands.hypercall  # type: ignore[method-assign]
    try:
        with hypervisor(refuse):
            assert pair.ask(*requests(pair)) == FAILED
    finally:
        hypercalls.close()
        theirs.close()
    nothing_moved(pair)
    pair.check()
