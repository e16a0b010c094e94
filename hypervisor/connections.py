"""The connections that hypercalls come in on: each is one vCPU of one domain, and proves who calls.

Owns: the sockets, who is ready, and what becomes of a caller that does not keep to the form.
Rules: one packet is one call, and is taken whole or not at all; descriptors that come with it are
dropped by the kernel. Nothing here waits: who has not read its last answers loses its connection
when its buffer has no room for the next, or that brings descriptors.
"""

import fcntl
import os
import select
import socket
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.descriptors import send_with_descriptors
from common.hypercall import MESSAGE_MAX


@dataclass(frozen=True, eq=False)
class Caller:
    """One connection."""

    domid: int
    vcpu: int
    socket: socket.socket

    def receive(self) -> bytes | None:
        """The next call; b"" if the caller is gone, None if there is nothing."""
        try:
            return self.socket.recv(MESSAGE_MAX + 1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, reply: bytes, descriptors: Sequence[int]) -> bool:
        """Answer; False if that cannot be done."""
        try:
            if descriptors:
                # In flight they count for all of us (unix(7): ETOOMANYREFS): one answer's a caller.
                if self._has_unread_answers():
                    return False
                send_with_descriptors(self.socket, reply, descriptors, socket.MSG_DONTWAIT)
            else:
                self.socket.send(reply, socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def _has_unread_answers(self) -> bool:
        queued = fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))
        return queued != bytes(4)


class Connections:
    """All of them, and the other descriptors that the hypervisor looks at between calls."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callers: dict[int, Caller] = {}
        self._others: dict[int, Callable[[], None]] = {}

    def watch(self, fd: int, ready: Callable[[], None]) -> None:
        """Call `ready` whenever `fd` is readable."""
        self._others[fd] = ready
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """No longer."""
        del self._others[fd]
        self._epoll.unregister(fd)

    def add(self, domid: int, vcpu: int, sock: socket.socket) -> None:
        """`sock`, ours from now on, is vCPU `vcpu` of `domid`."""
        self._callers[sock.fileno()] = Caller(domid, vcpu, sock)
        self._epoll.register(sock, select.EPOLLIN)

    def make(self, domid: int, vcpu: int) -> int:
        """A new connection; the other end's descriptor, the caller's to hand over and close."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.add(domid, vcpu, ours)
        return theirs.detach()

    def ready(self, timeout_s: float | None) -> list[Caller]:
        """Wait (None: for ever) until somebody calls, and return who does; what is watched is told
        of its own readiness.
        """
        found = self._epoll.poll(timeout_s)
        for fd, _ in found:
            if fd in self._others:
                self._others[fd]()
        return [self._callers[fd] for fd, _ in found if fd in self._callers]

    def drop(self, caller: Caller) -> None:
        """End a connection."""
        if self._callers.get(caller.socket.fileno()) is caller:
            del self._callers[caller.socket.fileno()]
            self._epoll.unregister(caller.socket)
            caller.socket.close()

    def forget(self, domid: int) -> None:
        """End all connections of a domain."""
        for caller in [each for each in self._callers.values() if each.domid == domid]:
            self.drop(caller)

    def close(self) -> None:
        """End everything."""
        for caller in list(self._callers.values()):
            self.drop(caller)
        self._epoll.close()


def close_all(descriptors: Sequence[int]) -> None:
    """Close what has been handed over."""
    for fd in descriptors:
        os.close(fd)
