"""Where a handshake's intents are done: a driver, its store, and its hands.

Owns: what each intent of `common/handshake.py` comes to, the same for dom0, a guest and the
simulator: they differ in their hands, and in when an answer comes.
Rules: one thread. Nothing here waits: an answer is an event of whoever's loop it is.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar

from common.faults import LocalFault, PeerFault
from common.handshake import (
    Again,
    Committed,
    Done,
    End,
    Event,
    Fail,
    Gone,
    Hypercall,
    Intent,
    Look,
    Op,
    Seen,
    Start,
    Stop,
    Timeout,
    Timer,
    Write,
)
from common.xenstore_exchange import Talk
from common.xenstore_talks import Outcome, look, write_if_there

T = TypeVar("T")


WRITTEN: Final[dict[Outcome, Callable[[int], Committed | Again | Gone]]] = {
    "committed": Committed,
    "again": Again,
    "gone": Gone,
}


class Hands(Protocol):
    """What a driver wants that is not the store's."""

    def call(self, op: Op, argument: int) -> int:
        """Make a hypercall, and what of ours goes with it. Raises PeerFault where it is refused for
        what the other end has named, LocalFault where something here cannot be had."""

    def start(self, keeps: bool, ended: Callable[[str], None]) -> None:
        """Begin to use the ring; `ended` is told once that is over, and why. Raises LocalFault."""

    def stop(self) -> None:
        """End what was started."""

    def fail(self, reason: str) -> None:
        """Tell people why the device is closed."""


class Storing(Protocol):
    """A way to the store that waits for nothing: XenStoreClient's."""

    def hold(self, talk: Talk[T], then: Callable[[T], None]) -> None: ...


class Timing(Protocol):
    """A clock of whatever kind."""

    def after(self, seconds: float, then: Callable[[], None]) -> None: ...


class Timers:
    """What a loop is to do later. `clock`: seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._serial = itertools.count()
        self._waiting: list[tuple[float, int, Callable[[], None]]] = []

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        """Call `then` from `ring`, after so many seconds."""
        heapq.heappush(self._waiting, (self._clock() + seconds, next(self._serial), then))

    def pause_s(self) -> float | None:
        """How long until there is something to do; None: never."""
        return max(0.0, self._waiting[0][0] - self._clock()) if self._waiting else None

    def ring(self) -> None:
        """Do what is due."""
        while self._waiting and self._waiting[0][0] <= self._clock():
            heapq.heappop(self._waiting)[2]()


class Seat:
    """`vbd`'s intents are done here; `tell` is told what happens. timers: for who has Timers."""

    def __init__(
        self, vbd: End, store: Storing, hands: Hands, timers: Timing | None = None
    ) -> None:
        self.vbd, self.hands = vbd, hands
        self._store, self._timers = store, timers
        self._events: deque[Event] = deque()
        self._telling = False

    def tell(self, event: Event) -> None:
        """Something has happened; what that leads to at once has happened on return."""
        self._events.append(event)
        if self._telling:
            return
        self._telling = True
        try:
            while self._events:
                for intent in self.vbd.handle(self._events.popleft()):
                    self.do(intent)
        finally:
            self._telling = False

    def do(self, intent: Intent) -> None:
        """See to it that `intent` is done and answered."""
        match intent:
            case Look():
                self._store.hold(look(intent.paths), partial(self._looked, intent.number))
            case Write(number, directory, values, gone, whole, since):
                talk = write_if_there(directory, values, gone, whole, since)
                self._store.hold(talk, partial(self._written, number))
            case Hypercall():
                self.tell(self._called(intent))
            case Start(number, keeps):
                ended = partial(self._ended, number)
                try:
                    self.hands.start(keeps, ended)
                except LocalFault as fault:
                    ended(str(fault))
            case Stop():
                self.hands.stop()
            case Timer(number, seconds):
                assert self._timers is not None
                self._timers.after(seconds, partial(self.tell, Timeout(number)))
            case Fail(reason):
                self.hands.fail(reason)

    def _looked(self, number: int, values: dict[str, bytes] | None) -> None:
        self.tell(Again(number) if values is None else Seen(number, values))

    def _written(self, number: int, outcome: Outcome) -> None:
        self.tell(WRITTEN[outcome](number))

    def _called(self, call: Hypercall) -> Done:
        try:
            return Done(call.number, self.hands.call(call.op, call.argument))
        except (LocalFault, PeerFault) as fault:
            return Done(call.number, refused=str(fault))

    def _ended(self, number: int, why: str) -> None:
        self.tell(Done(number, refused=why))
