"""The process that keeps a machine which stays: `up` starts it, `down` ends it, others come and go.

Owns: the loop over the machine's processes and its clients, and which client waits for what. What
the requests are is `toolstack/keeper_requests.py`'s, how they are written `toolstack/wire.py`'s.
Rules
1. No client is waited for, and no guest: what a guest is asked is answered when it answers, and
   meanwhile everybody else is served.
2. A client that goes takes its loads with it, and nothing else.
3. A machine that has died keeps its name, its log and the reason, until it is put down; with
   `--on-crash preserve` also the processes that are left, for looking.
"""

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from common.control import MESSAGE_MAX, one_line
from toolstack.client import Client
from toolstack.crew import RunningLoad
from toolstack.exports import Exports, poll_on
from toolstack.failures import GuestFailed, MachineError
from toolstack.kept_machine import KeptMachine
from toolstack.names import own_uid, peer_of
from toolstack.orders import Orders
from toolstack.snapshot_wire import to_plain
from toolstack.wire import ConnectionLost, packed

ASK_TIMEOUT_S: Final = 60.0
EVERY_MIN_S: Final = 0.02  # between two pieces of progress of a load
IDLE_S: Final = 1.0  # between two looks at one that nobody waits for


class Asker(Protocol):
    """Who is told what a guest answers."""

    def answer(self, number: int, value: Any) -> None:
        """It is done."""

    def refuse(self, number: int, error: Exception) -> None:
        """It could not be."""


class Asked:
    """What a guest was asked by whom, and until when, by its own clock, it may take."""

    def __init__(self, client: Asker, number: int, late_at: float) -> None:
        self.client, self.number, self.late_at = client, number, late_at


class Attached:
    """A load that a client has begun: it is told of it every `every_s`."""

    def __init__(self, client: Client, number: int, load: RunningLoad, every_s: float) -> None:
        self.client, self.number, self.load = client, number, load
        self.every_s = max(every_s, EVERY_MIN_S)
        self.next_at = time.monotonic() + load.pause_s(self.every_s)
        self.left = False  # the client waits for it no more


class Keeper:
    """Keeps `machine`, which has started, for who connects to `listener`.

    died: how the machine did; "" while it lives. going: who asked for its end; forced: without its
    consent.
    """

    def __init__(
        self, machine: KeptMachine, listener: socket.socket, log: Callable[[str], None]
    ) -> None:
        self.machine, self._listener, self._log = machine, listener, log
        self.since_s = time.time()
        self.died = ""
        self.going: list[tuple[Client, int]] = []
        self.forced = False
        self._clients: dict[int, Client] = {}
        self._asked: dict[str, deque[Asked]] = {}
        self.orders = Orders()
        self._loads: list[Attached] = []
        self.exports = Exports(machine)

    @property
    def nr_loads(self) -> int:
        """How many run."""
        return len(self._loads)

    def serve(self, obey: "Callable[[Keeper, Client, list[Any]], None]") -> None:
        """Serve until somebody asks for the end. obey: carries a request out."""
        while not self.going:
            self._turn(obey)

    def _turn(self, obey: "Callable[[Keeper, Client, list[Any]], None]") -> None:
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        for client in self._clients.values():
            writes = select.POLLOUT if client.wants_to_write else 0
            poller.register(client, select.POLLIN | writes)
        for fd in [] if self.died and not self.orders else self.machine.descriptors():
            poller.register(fd, select.POLLIN)
        poll_on(poller, self.exports)
        ready = {fd for fd, _ in poller.poll(self._pause_ms())}
        if self._listener.fileno() in ready:
            self._accept()
        self._watch_machine(ready)
        for client in [client for fd, client in self._clients.items() if fd in ready]:
            try:
                client.flush()
                for message in client.receive():
                    obey(self, client, message)
            except ConnectionLost:
                self._lose(client)
            except MachineError as error:
                self._machine_died(str(error))

    def _pause_ms(self) -> int:
        now = time.monotonic()
        until = [each.next_at for each in self._loads] + self.orders.due_s()
        for guest, asked in self._asked.items():
            until += [now + each.late_at - self.machine.clock_s(guest) for each in list(asked)[:1]]
        return max(0, round((min(until, default=now + 60.0) - now) * 1000))

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again; or too many are there, and it waits
            return
        if peer_of(connection)[1] != own_uid():
            connection.close()
            return
        client = Client(connection)
        self._clients[client.fileno()] = client

    def _lose(self, client: Client) -> None:
        self._clients.pop(client.fileno(), None)
        client.close()
        with contextlib.suppress(MachineError):  # as below
            self.exports.stop(client)
        for each in [each for each in self._loads if each.client is client]:
            with contextlib.suppress(MachineError):  # which is noticed by who watches it
                each.load.ask_to_stop()

    # --- the machine ------------------------------------------------------------------------

    def _watch_machine(self, ready: set[int]) -> None:
        if self.died:
            if self.orders:
                self.machine.listen()
                self.orders.look()
            return
        try:
            self.machine.watch()
            self._take_answers()
            self._look_at_loads()
            self.exports.accept(ready)
            self.exports.look()
            self.orders.look()
        except MachineError as error:
            self._machine_died(str(error))

    def _machine_died(self, how: str) -> None:
        self.died = how
        self._log(f"the machine has died: {how}")
        for asked in self._asked.values():
            for each in asked:
                each.client.refuse(each.number, MachineError(how))
        for attached in self._loads:
            attached.client.refuse(attached.number, MachineError(how))
        self.exports.died(how)
        self._asked.clear()
        self._loads.clear()
        self.orders.end(how)
        if self.machine.topology.on_crash != "preserve":
            self.machine.close()

    def ask(self, client: Asker, number: int, guest: str, *message: Any) -> None:
        """Send a guest a command, whose answer is the client's. Raises MachineError."""
        if len(packed(*message)) > MESSAGE_MAX:
            raise MachineError(f"{one_line(message[0])}: is longer than a message may be")
        self.machine.tell(guest, *message)
        late_at = self.machine.clock_s(guest) + ASK_TIMEOUT_S
        self._asked.setdefault(guest, deque()).append(Asked(client, number, late_at))

    def _take_answers(self) -> None:
        for guest, asked in self._asked.items():
            while asked and self._answered(guest, asked[0]):
                asked.popleft()

    def _answered(self, guest: str, asked: Asked) -> bool:
        try:
            answer = self.machine.answer_of(guest)
        except GuestFailed as error:
            asked.client.refuse(asked.number, error)
            return True
        if answer is not None:
            asked.client.answer(asked.number, answer[0])
            return True
        if self.machine.clock_s(guest) > asked.late_at:
            self.machine.give_up(guest, f"{guest} did not answer within {ASK_TIMEOUT_S:g} s")
        return False

    def is_asked(self, guest: str) -> bool:
        """Has this guest something to answer?"""
        return bool(self._asked.get(guest))

    # --- loads ------------------------------------------------------------------------------

    def attach(self, client: Client, number: int, load: RunningLoad, every_s: float) -> None:
        """A client's load has begun: it is told how it goes, and when it has ended."""
        self._loads.append(Attached(client, number, load, every_s))

    def stop_load(self, client: Client, number: int) -> None:
        """The load that the client's request `number` began is to end. One that cannot end now,
        as a guest of its is paused, is not waited for."""
        for each in self._loads:
            if each.client is client and each.number == number:
                each.load.ask_to_stop()
                if (held := each.load.held) and not each.left:
                    client.refuse(number, MachineError(f"{held}: the load ends once it goes on"))
                    each.left = True
        self.exports.stop(client, number)

    def _look_at_loads(self) -> None:
        now = time.monotonic()
        for each in list(self._loads):
            ended = each.load.look()
            for guest in each.load.late:
                self.machine.give_up(guest, f"the load of {guest} does not end")
            if each.left:
                each.next_at = now + IDLE_S
                if ended:
                    self._loads.remove(each)
                continue
            if ended or now >= each.next_at:
                each.client.more(each.number, to_plain(self.machine.snapshot()))
                each.next_at = max(each.next_at + each.load.pause_s(each.every_s), now)
            if ended:
                self._loads.remove(each)
                each.client.answer(each.number, each.load.failures)

    # --- the end ----------------------------------------------------------------------------

    def close(self) -> None:
        """Put the machine down, and tell who asked for it."""
        self._listener.close()
        self.exports.close()
        if self.forced:
            self.machine.abandon()
        self.machine.close()
        closed = self.machine.closed
        last = to_plain(closed) if closed is not None else None
        for client, number in self.going:
            client.answer(number, {"failure": self.machine.close_failure, "closed": last})
        deadline = time.monotonic() + 1
        for client in self._clients.values():
            while client.wants_to_write and time.monotonic() < deadline:
                try:
                    client.flush()
                except ConnectionLost:
                    break
                time.sleep(0.001)
            client.close()
