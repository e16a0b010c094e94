"""The fork server: a process with every process's code in place, compiled, that is forked from.

Owns: bringing the code in, the forks, and the exit statuses: it is the parent of its machines'
processes. It ends, with all of them, when who has started it does; a machine's processes end when
that machine's supervisor gives its connection up.

It is a program of its own, started with the descriptor of its control connection: the user's main
is never imported. On that it says ("progress", text) while it compiles and ("ready",) once, and
hears ("machine",) with a control connection of that machine's. Messages there: to ("fork", name,
kind, config) with the descriptors that the process is born with it says ("forked", name, pid) with
a pidfd; and ("exited", pid, status) when one of them has ended.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from common.control import Control, ControlLost
from common.process import (
    begin_process,
    keep_only,
    leave_terminal,
    raise_descriptor_limit,
)

UNTRUSTED: Final = ("guest", "hostile")
PARENT_POLL_S: Final = 0.2
PATIENCE_S: Final = 4.0  # from the cache all is there sooner

if TYPE_CHECKING:  # it takes a second, and is watched over
    from toolstack.mains import Main


class _Preparation:
    """Bring the code in while a thread tells the supervisor, and looks whether it is there still.

    The thread has ended before anything is forked.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._done = threading.Event()
        self._parent = os.getppid()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        started, told = time.monotonic(), False
        while not self._done.wait(PARENT_POLL_S):
            if os.getppid() != self._parent:
                os._exit(1)
            if not told and time.monotonic() - started > PATIENCE_S:
                told = True
                self._control.send("progress", "compiling, once after a change: some minutes")


class ForkServer:
    """Forks on request until the other end of `control` is closed."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._machines: dict[int, Control] = {}  # by descriptor
        self._children: dict[int, Control] = {}  # by pid: whose it is
        self._poller = select.poll()
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._wake_write = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    def serve(self, mains: "Mapping[str, Main]") -> None:
        """Say that we are ready, and serve."""
        try:
            self._serve(mains)
        finally:  # children end as we do: by then the signal has nowhere to write
            signal.set_wakeup_fd(-1)

    def _serve(self, mains: "Mapping[str, Main]") -> None:
        self._control.send("ready")
        for end in (self._control, self._wake):
            self._poller.register(end, select.POLLIN)
        while True:
            ready = {fd for fd, _ in self._poller.poll()}
            if self._wake.fileno() in ready:
                self._wake.recv(4096)
                self._reap()
            if self._control.fileno() in ready:
                _, (fd,) = self._control.receive_with_descriptors()
                self._machines[fd] = Control.of_descriptor(fd)
                self._poller.register(fd, select.POLLIN)
            for fd in ready & self._machines.keys():
                try:
                    self._obey(self._machines[fd], mains)
                except ControlLost:
                    self._end(self._machines.pop(fd))

    def _obey(self, machine: Control, mains: "Mapping[str, Main]") -> None:
        message, descriptors = machine.receive_with_descriptors()
        _, name, kind, config = message
        parent, pid = os.getpid(), os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            untrusted = kind in UNTRUSTED
            os._exit(_live(f"gl-{name}", parent, mains[kind], config, descriptors, untrusted))
        for fd in descriptors:
            os.close(fd)
        self._children[pid] = machine
        pidfd = os.pidfd_open(pid)
        try:
            machine.send("forked", name, pid, descriptors=[pidfd])
        finally:
            os.close(pidfd)

    def _end(self, machine: Control) -> None:
        """Its supervisor has gone: so does what is left of it."""
        for pid, owner in self._children.items():
            if owner is machine:
                os.kill(pid, signal.SIGKILL)
        self._poller.unregister(machine)
        machine.close()

    def _reap(self) -> None:
        for pid, machine in list(self._children.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._children[pid]
                with contextlib.suppress(ControlLost):  # nobody is left to be told
                    machine.send("exited", pid, os.waitstatus_to_exitcode(status))


def _live(
    name: str,
    parent: int,
    main: "Main",
    config: dict[str, Any],
    descriptors: list[int],
    untrusted: bool,
) -> int:
    """A child's whole life; returns its exit status."""
    begin_process(name, parent)
    keep_only(descriptors)
    if not untrusted:
        raise_descriptor_limit()
    leave_terminal(errors_too=untrusted)
    try:
        main(config, descriptors)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except ControlLost:  # the toolstack is gone, and nobody is left to be told
        return 1
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stderr.flush()
    return 0


def main(fd: int) -> None:
    """The process's entry; `fd`: its control connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = Control.of_descriptor(fd)
    try:
        with _Preparation(control):
            from frontend.seal import find_libseccomp  # noqa: PLC0415
            from toolstack.mains import MAINS  # noqa: PLC0415
            from toolstack.warm import warm  # noqa: PLC0415

            find_libseccomp()  # which starts a program: not for a guest to do
            warm()
        ForkServer(control).serve(MAINS)
    except ControlLost:
        raise SystemExit(0) from None  # the supervisor has gone; the children go with us


if __name__ == "__main__":
    main(int(sys.argv[1]))
