"""The connections that hypercalls come in on: each is one vCPU of one domain, and proves who calls.

Owns: the sockets, who is ready, and what becomes of a caller that does not keep to the form.
Rules: one packet is one call, and is taken whole or not at all; descriptors that come with it are
dropped by the kernel. Nothing here waits: who has not read its last answers loses its connection
when its buffer has no room for the next, or that brings descriptors. Who has had too much time
rests: it is not looked at until that is over, but for its end.
"""

import fcntl
import heapq
import itertools
import os
import select
import socket
import termios
import time
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
        self._resting: list[tuple[int, int, Caller]] = []  # a heap: until when, and in what order
        self._order = itertools.count()

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
        if self._resting:
            timeout_s = self._end_rests(timeout_s)
        found = self._epoll.poll(timeout_s)
        for fd, _ in found:
            if fd in self._others:
                self._others[fd]()
        return [self._callers[fd] for fd, _ in found if fd in self._callers]

    def rest(self, caller: Caller, for_ns: int) -> None:
        """Do not look at a caller for so long."""
        self._epoll.modify(caller.socket, 0)
        heapq.heappush(self._resting, (time.monotonic_ns() + for_ns, next(self._order), caller))

    def _end_rests(self, timeout_s: float | None) -> float | None:
        """Look again at those who have rested; how long to wait at most, for the next of them."""
        now = time.monotonic_ns()
        while self._resting and self._resting[0][0] <= now:
            caller = heapq.heappop(self._resting)[2]
            if self._callers.get(caller.socket.fileno()) is caller:
                self._epoll.modify(caller.socket, select.EPOLLIN)
        if not self._resting:
            return timeout_s
        left_s = (self._resting[0][0] - now) / 1e9
        return left_s if timeout_s is None else min(left_s, timeout_s)

    def drop(self, caller: Caller) -> None:
        """End a connection."""
        if self._callers.get(caller.socket.fileno()) is caller:
            del self._callers[caller.socket.fileno()]
            self._epoll.unregister(caller.socket)
            caller.socket.close()

    def forget(self, domid: int, but: Caller | None = None) -> None:
        """End all connections of a domain, `but` one; what was asked over them is not done."""
        for caller in [each for each in self._callers.values() if each.domid == domid]:
            if caller is not but:
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
