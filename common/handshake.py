"""The xenbus handshake as events and intents: what an end of a device is told, and what it wants.

Owns: both, for both ends, and how a driver goes from one to the other (`End`). What the steps are
stands in `common/xenbus.py`'s table; what each does in `frontend/vbd.py` and `backend/vbd.py`; what
an intent is done with in `machine/seat.py`, or in the simulator.
Rules
1. A driver does no I/O: it is told of an event and answers with intents. It waits for one answer at
   a time, and meanwhile only remembers what there is to do; but nothing urgent waits for a look.
2. Each intent has a number that its event brings back. No number is used twice, by no driver of the
   same `numbers`: an event whose number is not awaited is old, or told twice, and is nothing. The
   number of a Start is the generation of that connection: only its own end is heeded.
3. What is seen is a level. A driver looks when it is stirred and after each step of its own, takes
   the one step that is due, and rests when none is.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from common import xenbus

AGAIN_MAX: Final = 100  # transactions lost in a row; each means that another got through


class Op(Enum):
    """The hypercalls of a handshake, and what each is about."""

    ALLOC_UNBOUND = "the domid that may bind; answered with the port"
    BIND_INTERDOMAIN = "the frontend's port; answered with our own"
    CLOSE = "our own port"
    MAP_RING = "the ring's gref"
    UNMAP_RING = "nothing: the ring that is mapped"


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stirred:
    """Something may have changed in the store."""


@dataclass(frozen=True)
class Leave:
    """Let go of everything, whatever the other end does: this driver's time is over."""


@dataclass(frozen=True)
class Suspend:
    """Let go of everything, and keep what has not been answered: for Resume."""


@dataclass(frozen=True)
class Resume:
    """Begin again, and have done what was kept."""


@dataclass(frozen=True)
class Seen:
    """A Look's answer: the values, by path, of those nodes that there are, at one moment."""

    number: int
    values: Mapping[str, bytes]


@dataclass(frozen=True)
class Committed:
    """What was to be written is."""

    number: int


@dataclass(frozen=True)
class Again:
    """The transaction was lost to somebody else's change, and nothing has happened."""

    number: int


@dataclass(frozen=True)
class Gone:
    """The own directory is not there, or no longer ours: nothing was written."""

    number: int


@dataclass(frozen=True)
class Done:
    """A Hypercall's answer; what a Start began has ended. refused: why not; why, if unasked."""

    number: int
    value: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Resized:
    """A backend's disk has so many sectors now: its frontend is to be told."""

    nr_sectors: int


@dataclass(frozen=True)
class Timeout:
    """A Timer's time is up."""

    number: int


Asked = Leave | Suspend | Resume | Resized
Event = Stirred | Asked | Seen | Committed | Again | Gone | Done | Timeout
Answer = Seen | Committed | Again | Gone | Done


# --- intents ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """Read these nodes in one transaction. Answered by Seen or Again."""

    number: int
    paths: Sequence[str]


@dataclass(frozen=True)
class Write:
    """Write `values` by key into `directory` and remove the keys `gone`, if its `state` is there,
    and is `since` if that is given; in one transaction, if `whole`. Answered by Committed, Again or
    Gone.
    """

    number: int
    directory: str
    values: Mapping[str, object]
    gone: Sequence[str] = ()
    whole: bool = True
    since: int | None = None


@dataclass(frozen=True)
class Hypercall:
    """Answered by Done."""

    number: int
    op: Op
    argument: int = 0


@dataclass(frozen=True)
class Start:
    """Begin to use the ring; `keeps`: mappings are kept. Answered by Done when that has ended."""

    number: int
    keeps: bool


@dataclass(frozen=True)
class Stop:
    """End what the Start of that number began, which is then answered."""

    number: int


@dataclass(frozen=True)
class Timer:
    """Answered by Timeout after so many seconds."""

    number: int
    seconds: float


@dataclass(frozen=True)
class Fail:
    """The device is closed for a fault of the other end: people are to be told. No answer."""

    reason: str


Intent = Look | Write | Hypercall | Start | Stop | Timer | Fail
Task = Generator[Intent, Answer, None]


class End:
    """One end of a device: `handle` is told of events and answers with intents.

    theirs, ours: the keys of both directories that a look is at; path: its own directory; other:
    the other end's; state: as last announced; awaited: the number of the answer it waits for, 0
    while at rest.
    """

    role: str
    theirs: Sequence[str]
    ours: Sequence[str]

    def __init__(self, path: str, other: str, numbers: Iterator[int]) -> None:
        self.path, self.other = path, other
        self.state = xenbus.INITIALISING
        self.awaited = 0
        self._numbers = numbers
        self._stirred = False
        self._task: Task | None = None
        self._looking = False  # what the task waits for changes nothing
        self._intents: list[Intent] = []

    def handle(self, event: Event) -> list[Intent]:
        """Take in `event`; what is wanted now. Raises LocalFault, and the step is not taken."""
        self._intents = []
        if isinstance(event, Stirred):
            self.stir()
        elif isinstance(event, Asked | Timeout):
            self.heed(event)
        elif event.number == self.awaited and self._task is not None:
            self._go_on(self._task, event)
        elif isinstance(event, Done):
            self.heed(event)
        if self._looking and (task := self.urgent()) is not None:
            self.stir()  # the look is not waited for: another will be taken
            self._go_on(task, None)
        while self._task is None and (task := self._next()) is not None:
            self._go_on(task, None)
        return self._intents

    def heed(self, event: Asked | Timeout | Done) -> None:
        """What nobody waits for: its number says whether it still matters."""
        raise NotImplementedError

    def urgent(self) -> Task | None:
        """What is to be done without a look, if anything."""
        raise NotImplementedError

    def step(self, values: Mapping[str, bytes]) -> Generator[Intent, Answer, bool]:
        """Take the step that is due, `values` being seen; False if none is."""
        raise NotImplementedError

    def _look(self) -> Task:
        paths = [f"{self.other}/{key}" for key in self.theirs]
        paths += [f"{self.path}/{key}" for key in self.ours]
        seen = yield Look(self.number(), paths)
        if not isinstance(seen, Seen) or (yield from self.step(seen.values)):
            self.stir()  # another may be due

    def _next(self) -> Task | None:
        if (task := self.urgent()) is not None:
            return task
        if not self._stirred:
            return None
        self._stirred = False
        return self._look()

    def _go_on(self, task: Task, answer: Answer | None) -> None:
        self._task, self._looking, self.awaited = None, False, 0
        try:
            intent = next(task) if answer is None else task.send(answer)
        except StopIteration:
            return
        assert not isinstance(intent, Fail), "nobody answers that"
        self._task, self._looking, self.awaited = task, isinstance(intent, Look), intent.number
        self._intents.append(intent)

    def stir(self) -> None:
        """There is something to look at."""
        self._stirred = True

    # --- what steps are made of ---------------------------------------------------------------

    def number(self) -> int:
        """A new one."""
        return next(self._numbers)

    def want(self, intent: Intent) -> None:
        """Have it done, without waiting for an answer."""
        self._intents.append(intent)

    def call(self, op: Op, argument: int = 0) -> Generator[Intent, Answer, Done]:
        """Make a hypercall."""
        done = yield Hypercall(self.number(), op, argument)
        assert isinstance(done, Done)
        return done

    def write(
        self, values: Mapping[str, object], gone: Sequence[str] = (), since: int | None = None
    ) -> Generator[Intent, Answer, bool]:
        """Write into the own directory; False if it is gone. Where somebody else writes there all
        the time nothing of ours may wait for that: it is written all the same."""
        for attempt in range(AGAIN_MAX + 1):
            whole = attempt < AGAIN_MAX
            answer = yield Write(self.number(), self.path, values, gone, whole, since)
            if not isinstance(answer, Again):
                break
        return isinstance(answer, Committed)

    def switch(
        self, state: int, since: int | None = None, **values: object
    ) -> Generator[Intent, Answer, bool]:
        """Announce `state`, and `values` with it; False if the own directory is gone, or `since` is
        not what is announced there."""
        self.state = state
        return (yield from self.write({**values, "state": state}, since=since))
