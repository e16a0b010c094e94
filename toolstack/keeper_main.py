"""The keeper's process from its beginning to its end: a program of its own, started by `up`.

Owns: its log, its signals, and what it says to who has started it: ("log", line) meanwhile, then
("up",) or ("error", kind, text), on the control connection whose descriptor is its argument.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NoReturn, TextIO

from common.control import Control, ControlLost
from toolstack.keeper import Keeper
from toolstack.keeper_requests import obey
from toolstack.kept_machine import KeptMachine
from toolstack.names import LOG, directory_of, listen, take_name
from toolstack.run_dir import RunDir
from toolstack.topology import Topology
from toolstack.wire import kind_of

ORDER_TIMEOUT_S: Final = 60.0


class Terminated(BaseException):
    """A signal asks for the end."""


def _end(signum: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


class Log:
    """Lines into the machine's log, and to who has started it while that listens."""

    def __init__(self, file: TextIO, control: Control) -> None:
        self._file, self._control = file, control
        self.starting = True

    def __call__(self, line: str) -> None:
        """Write a line."""
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, file=self._file, flush=True)
        if self.starting:
            with contextlib.suppress(ControlLost):
                self._control.send("log", line)


def _open_log(directory: str) -> TextIO:
    """What goes to stderr, ours and our processes', goes there, too."""
    file = open(os.path.join(directory, LOG), "a", encoding="utf-8")  # noqa: SIM115
    os.dup2(file.fileno(), sys.stderr.fileno())
    return file


def keep(name: str, settings: dict[str, Any], control: Control) -> None:
    """Start the machine, serve until its end. Raises ConfigError, MachineError."""
    topology = Topology(**settings)
    run_dir = RunDir(directory_of(name), take_name(name))
    try:
        log = Log(_open_log(run_dir.path), control)
        machine = KeptMachine(topology, name, log, run_dir)
        machine.start()
        try:
            _serve(machine, log, control)
        finally:
            machine.close()
    finally:
        run_dir.remove()


def _serve(machine: KeptMachine, log: Log, control: Control) -> None:
    keeper = Keeper(machine, listen(machine.run_dir), log)
    log.starting = False
    log(f"up: {machine.topology.mode}, process {os.getpid()}")
    control.send("up")
    control.close()
    with contextlib.suppress(Terminated):
        keeper.serve(obey)
    log("going down")
    keeper.close()


def main(fd: int) -> None:
    """The process's entry; `fd`: its control connection."""
    if os.fork():  # who has started it is not its parent: it need not be waited for
        os._exit(0)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    control = Control.of_descriptor(fd)
    say: Callable[..., None] = control.send
    try:
        order = control.receive(ORDER_TIMEOUT_S)
        if order is not None:
            _, name, settings = order
            keep(name, settings, control)
    except (ControlLost, Terminated):
        raise SystemExit(1) from None
    except Exception as error:
        with contextlib.suppress(ControlLost):
            say("error", kind_of(error), str(error))
        raise


if __name__ == "__main__":
    main(int(sys.argv[1]))
