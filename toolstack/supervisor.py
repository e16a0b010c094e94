"""Starts the processes of one machine, watches them, and leaves nothing behind.

Owns: the run directory, the processes and our end of each one's control
connection.
Rules
1. Every process is forked from a fork server, which has all compiled code in place
   (`toolstack/server_process.py`).
2. What the machine cannot be without (all but guests) and has died ends it: a MachineError that
   names it and how it died, whatever the caller was waiting for. A guest's death is that guest's:
   who waits for it is told, nobody else.
3. Whatever dies, `kill -9` included: processes end with their parent (PR_SET_PDEATHSIG), memory has
   no names, and the run directory goes with the supervisor or, failing that, its janitor.
"""

import contextlib
import os
import secrets
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from common.control import ControlLost, control_pair
from common.process import raise_descriptor_limit
from toolstack.child import Child, readable
from toolstack.failures import GuestFailed, MachineError
from toolstack.names import run_path
from toolstack.run_dir import RunDir
from toolstack.server_process import FORK_SERVER, fork_server

FORK_TIMEOUT_S: Final = 30.0
EXIT_TIMEOUT_S: Final = 10.0
DYING_S: Final = 0.5
LAST_WORDS_S: Final = 0.05
DEATHS_SETTLE_S: Final = 0.3  # who dies of another's death is not to be named in its place

# Who is to blame, if several have died: the others live on what these give.
BLAME: Final = (FORK_SERVER, "hypervisor", "xenstored", "dom0")


class Supervisor:
    """The processes of one machine, by name: "hypervisor", "xenstored", "dom0", "guest-1", ...

    log: takes what a process, or the fork server on its progress, has to say, a line each;
    run_dir: of a machine that has a name, whose keeper removes it; else it is made here.
    """

    def __init__(self, log: Callable[[str], None], run_dir: RunDir | None = None) -> None:
        raise_descriptor_limit()  # two of each process, and what it keeps for dom0
        self.topology_id = secrets.token_hex(4)
        own = run_dir or RunDir(run_path(f"grantlab-{self.topology_id}"))
        self._own, self.run_dir = None if run_dir else own, own.path
        self.children: dict[str, Child] = {}
        # Does the machine survive dom0's death, if these are waited for? (`toolstack/recovery.py`)
        self.survives: Callable[[Sequence[str]], bool] = lambda _: False
        self.log = self._log = log
        self._statuses: dict[int, int] = {}  # of those that have ended, by pid
        self._server = fork_server()
        self._server_control = self._server.join()

    def await_fork_server(self) -> None:
        """Wait until it has everything compiled. Raises MachineError."""
        self._server.await_ready(self._log)

    def start(
        self, name: str, kind: str, config: dict[str, Any], descriptors: Sequence[int] = ()
    ) -> None:
        """Fork the process `name`; it answers on its control connection once it is up (`expect`).

        It is born with `descriptors`, behind its control connection; they are closed here.
        """
        ours, theirs = control_pair()
        deadline = time.monotonic() + FORK_TIMEOUT_S
        try:
            self._server_control.send(
                "fork", name, kind, config, descriptors=[theirs.fileno(), *descriptors]
            )
            while (message := self._server_says(deadline, f"{name} was not forked"))[0] != "forked":
                self._statuses[message[1]] = message[2]
        except ControlLost:
            raise MachineError(self._server.death()) from None
        finally:
            theirs.close()
            for fd in descriptors:
                os.close(fd)
        (pidfd,) = self._arrived
        if name in self.children:  # it has died, and is started again
            self.children[name].close()
        self.children[name] = Child(name, message[2], pidfd, ours, self._log)

    def _server_says(self, deadline: float, else_: str) -> list[Any]:
        left = max(0.0, deadline - time.monotonic())
        if not readable(self._server_control.fileno(), left):
            raise MachineError(f"{else_} within its time")
        try:
            message, self._arrived = self._server_control.receive_with_descriptors()
        except ControlLost:
            raise MachineError(self._server.death()) from None
        return message

    # --- talking to them --------------------------------------------------------------------

    def send(self, name: str, *message: Any, descriptors: Sequence[int] = ()) -> None:
        """Send a command to `name`. Raises MachineError."""
        child = self.children[name]
        child.hold.allow(message[0])
        try:
            child.control.send(*message, descriptors=descriptors)
        except ControlLost as error:
            child.kill(f"{name} {error}" if not child.has_ended() else "")
            self.blame()
            if self.children[name] is not child:  # it was started again
                self.send(name, *message, descriptors=descriptors)
                return
            failed = MachineError if child.essential else GuestFailed
            raise failed(child.death or f"{name} {error}") from None

    def expect(self, name: str, timeout_s: float) -> Any:
        """The answer of `name`. Raises MachineError if that is an error, or none can come."""
        if not self.answers([name], timeout_s):
            raise MachineError(f"{name} did not answer within {timeout_s:g} s")
        return self.take(name)

    def answers(self, names: Sequence[str], timeout_s: float) -> list[str]:
        """Which of `names` have answered, or never will, once one has or the time is up.

        Watches all processes meanwhile. Raises MachineError for the death of an essential one.
        """
        self.wait(lambda: any(map(self.has_answered, names)), timeout_s, names)
        return list(filter(self.has_answered, names))

    def listen(self) -> None:
        """Take in what has come, whoever has died."""
        self._look(0)

    def has_answered(self, name: str) -> bool:
        """Has an answer of `name` come, as far as has been seen, or never will?"""
        child = self.children[name]
        return bool(child.answers or child.death)

    def wait(self, holds: Callable[[], bool], timeout_s: float, names: Sequence[str] = ()) -> None:
        """Watch all processes until `holds`, or the time is up. names: who is waited for. Raises
        MachineError for the death of an essential one."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            self._raise_deaths(names)
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._look(left)

    def end_of_load(self, name: str, load: int) -> str | None:
        """Why this load of `name`'s has failed, "" if it has not, None if it runs."""
        child = self.children[name]
        return child.death or child.ended_loads.pop(load, None)

    def take(self, name: str) -> Any:
        """The answer of `name` that has come. Raises MachineError if it is an error, or a death."""
        child = self.children[name]
        failed = MachineError if child.essential else GuestFailed
        if not child.answers:
            self.blame()
            raise failed(child.death)
        kind, result = child.answers.popleft()
        if kind == "error":
            # A guest's last words may be of the death of what it lives on.
            if not child.essential and readable(child.pidfd, LAST_WORDS_S):
                self.blame()
            raise failed(result)
        return result

    def check(self) -> None:
        """Look at everybody. Raises MachineError if one has died that the machine needs."""
        self._look(0)
        self._raise_deaths()

    def blame(self) -> None:
        """Something failed that would work if all were alive: raise MachineError if one is not."""
        self._settle()
        self._raise_deaths()

    def _settle(self) -> None:
        deadline = time.monotonic() + DEATHS_SETTLE_S
        while (left := deadline - time.monotonic()) > 0:
            self._look(left)

    def _raise_deaths(self, names: Sequence[str] = ()) -> None:
        dead = self._dead()
        if not dead or (list(dead) == ["dom0"] and self.survives(names)):
            return
        self._settle()
        raise MachineError(next(iter(self._dead().values())))

    def _dead(self) -> dict[str, str]:
        """How those died that the machine cannot be without, the first to blame first."""
        dead = {child.name: child.death for child in self.children.values() if child.death}
        if not self._server.lives():
            dead[FORK_SERVER] = self._server.death()
        return {name: dead[name] for name in BLAME if name in dead}

    def _look(self, timeout_s: float) -> None:
        """Take in what has come, once something has or the time is up."""
        poller = select.poll()
        living = [child for child in self.children.values() if not child.death]
        for child in living:
            poller.register(child.pidfd, select.POLLIN)
            if not child.hung_up:
                poller.register(child.control, select.POLLIN)
        if self._server.lives():
            poller.register(self._server_control, select.POLLIN)
        ready = {fd for fd, _ in poller.poll(max(0.0, timeout_s) * 1000)}
        if self._server_control.fileno() in ready:
            with contextlib.suppress(MachineError):  # its death is for who asks for deaths
                message = self._server_says(time.monotonic(), "")
                self._statuses[message[1]] = message[2]
        for child in living:
            if child.control.fileno() in ready and not child.hung_up:
                child.listen()
            for message in child.told:
                self._heed(message)
            child.told.clear()
            if child.pidfd in ready:
                child.ended(self._status_of(child.pid))

    def _heed(self, message: list[Any]) -> None:
        """The hypervisor says that a guest has died: its process is to go, too."""
        if message[0] == "died" and f"guest-{message[1]}" in self.children:
            child = self.children[f"guest-{message[1]}"]
            # Who is dying has its descriptors closed before its end can be seen.
            if not child.hung_up and not readable(child.pidfd, DYING_S):
                child.kill(f"{child.name} gave its hypercall connection up")

    def _status_of(self, pid: int) -> int | None:
        deadline = time.monotonic() + 1
        while pid not in self._statuses:
            try:
                message = self._server_says(deadline, "")
            except MachineError:
                return None
            self._statuses[message[1]] = message[2]
        return self._statuses.pop(pid)

    def descriptors(self) -> list[int]:
        """What becomes readable when there is something to `check`."""
        living = [child for child in self.children.values() if not child.death]
        controls = [child.control.fileno() for child in living if not child.hung_up]
        server = [self._server_control.fileno()] if self._server.lives() else []
        return [*(child.pidfd for child in living), *controls, *server]

    def death_of(self, name: str) -> str:
        """How `name` died, as far as has been seen; "" while it lives."""
        return self.children[name].death

    def pids(self) -> dict[str, int]:
        """The process ids, by name, of who lives."""
        living = {name: child.pid for name, child in self.children.items() if not child.death}
        return {FORK_SERVER: self._server.pid, **living}

    def machine_pids(self) -> list[int]:
        """Those that play the machine: without the fork server."""
        return [child.pid for child in self.children.values() if not child.death]

    # --- the end ----------------------------------------------------------------------------

    def dismiss(self, name: str) -> None:
        """Tell `name` to exit, wait for it, and watch it no longer. Raises MachineError."""
        self.send(name, "exit")
        self.expect(name, EXIT_TIMEOUT_S)
        child = self.children.pop(name)
        readable(child.pidfd, EXIT_TIMEOUT_S)
        child.kill()
        child.close()

    def end(self, name: str) -> str:
        """Kill a guest, wait for its end, and watch it no longer; how it had died before, or ""."""
        self._look(0)
        child = self.children[name]
        before = child.death
        child.kill()
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        while not child.death and (left := deadline - time.monotonic()) > 0:
            self._look(left)
        del self.children[name]
        child.close()
        return before

    def close(self) -> None:
        """End whatever still runs, and remove the run directory. Idempotent."""
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            readable(child.pidfd, EXIT_TIMEOUT_S)
            child.close()
        self.children.clear()
        if not self._server_control.closed:
            self._server_control.close()
            self._server.leave()
        if self._own is not None:
            self._own.remove()
