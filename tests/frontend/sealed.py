"""A program that seals itself as a guest does, tries what a guest might, and prints how that went.

`python -m tests.frontend.sealed EVENTS DIRECTORY`: one line of JSON, attempt -> "done", an errno's
name, or what else was raised. With ZeroMQ it says "bound" first, and waits to be woken.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any, Final, cast

import pyseccomp
import zmq

from common.event_channel import channel_address
from common.memory import create_segment
from common.wakeups import Events, PipeCarrier, carrier_of
from frontend.seal import seal

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Sealed:
    """What is tried, by name; everything it needs is there before the seal."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.one, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.reads, self.writes = os.pipe()
        self.loose = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.shm = create_segment(f"grantlab-test-{os.getpid()}", 4096)
        self.words = ctypes.create_string_buffer(4096)
        self.parent = os.getppid()
        self.numbers = {
            name: pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) for name in RAW
        }

    def raw(self, name: str) -> None:
        """The system call itself, with arguments that would do no harm."""
        arguments = RAW[name](self)
        padded = [ctypes.c_long(value) for value in (*arguments, *[0] * (6 - len(arguments)))]
        if _libc.syscall(ctypes.c_long(self.numbers[name]), *padded) < 0:
            raise OSError(ctypes.get_errno(), name)


def at(sealed: Sealed, data: bytes) -> int:
    """An address with these bytes."""
    ctypes.memmove(sealed.words, data, len(data))
    return ctypes.addressof(sealed.words)


Arguments = Callable[[Sealed], tuple[int, ...]]
PATH: Final[Arguments] = lambda s: (at(s, f"{s.directory}/x\0".encode()), 0, 0)  # noqa: E731
AT_PATH: Final[Arguments] = lambda s: (-100, *PATH(s))  # noqa: E731
NOTHING: Final[Arguments] = lambda s: ()  # noqa: E731

# By system call, and what it is given; a kernel or machine without one has nothing to forbid.
WITH_A_PATH: Final = (
    "open creat mkdir rmdir chdir chmod truncate stat lstat access readlink mknod chroot execve"
    " umount2 swapon statfs rename link symlink"
)
WITH_A_DIRECTORY: Final = (
    "openat openat2 mkdirat unlinkat newfstatat statx execveat name_to_handle_at open_tree"
)
WITH_NOTHING: Final = (
    "fork vfork setsid pause sync inotify_init1 userfaultfd getdents64 io_uring_setup io_setup bpf"
    " perf_event_open keyctl add_key request_key mount setns init_module reboot acct seccomp"
    " landlock_create_ruleset timer_create timerfd_create signalfd4 fanotify_init mq_open msgget"
    " semget shmget shmat personality setuid setgid setresuid setgroups capset setpriority"
    " sched_setaffinity setrlimit prlimit64 rt_sigqueueinfo rt_tgsigqueueinfo"
    " modify_ldt iopl ioperm kcmp pidfd_getfd process_madvise process_mrelease move_pages"
    " migrate_pages mbind set_mempolicy syslog quotactl vmsplice splice tee sendfile"
    " copy_file_range sendmmsg recvmmsg pipe2 memfd_create memfd_secret wait4 waitid"
)
RAW: Final[dict[str, Arguments]] = {
    **dict.fromkeys(WITH_A_PATH.split(), PATH),
    **dict.fromkeys(WITH_A_DIRECTORY.split(), AT_PATH),
    **dict.fromkeys(WITH_NOTHING.split(), NOTHING),
    "unshare": lambda s: (0x10000000,),
    "clone": lambda s: (signal.SIGCHLD,),
    "clone3": lambda s: (at(s, bytes(88)), 88),
    "kill": lambda s: (s.parent, 0),
    "tkill": lambda s: (s.parent, 0),
    "tgkill": lambda s: (s.parent, s.parent, 0),
    "ptrace": lambda s: (0,),
    "process_vm_readv": lambda s: (s.parent,),
    "process_vm_writev": lambda s: (s.parent,),
    "sched_setattr": lambda s: (s.parent, 0, 0),  # its own it may
    "pidfd_open": lambda s: (s.parent, 0),
    "pidfd_send_signal": lambda s: (0, 0),
    "prctl": lambda s: (1, 0),
    "dup": lambda s: (s.reads,),
    "dup3": lambda s: (s.reads, 77, 0),
    "ftruncate": lambda s: (s.shm, 0),
    "fallocate": lambda s: (s.shm, 3, 0, 4096),
    "fchmod": lambda s: (s.shm, 0),
}


def forbidden_by_argument(sealed: Sealed) -> dict[str, Callable[[], object]]:
    """Calls that are allowed for something else."""
    name = f"\0grantlab-test-{os.getpid()}"
    return {
        "fcntl F_SETOWN": lambda: fcntl.fcntl(sealed.one, fcntl.F_SETOWN, sealed.parent),
        "fcntl F_SETSIG": lambda: fcntl.fcntl(sealed.one, fcntl.F_SETSIG, signal.SIGKILL),
        "fcntl F_DUPFD": lambda: fcntl.fcntl(sealed.one, fcntl.F_DUPFD, 100),
        "fcntl F_SETPIPE_SZ": lambda: fcntl.fcntl(sealed.reads, fcntl.F_SETPIPE_SZ, 4096),
        "fcntl F_ADD_SEALS": lambda: fcntl.fcntl(sealed.shm, fcntl.F_ADD_SEALS, 1),
        "fcntl F_SETLK": lambda: fcntl.lockf(sealed.shm, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "ioctl FIOSETOWN": lambda: fcntl.ioctl(sealed.one, 0x8901, struct.pack("i", os.getpid())),
        "ioctl SIOCSPGRP": lambda: fcntl.ioctl(sealed.one, 0x8902, struct.pack("i", os.getpid())),
        "ioctl FIOASYNC": lambda: fcntl.ioctl(sealed.one, termios.FIOASYNC, struct.pack("i", 1)),
        "ioctl TIOCSTI": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
        "socket inet": lambda: socket.socket(socket.AF_INET),
        "socket inet6": lambda: socket.socket(socket.AF_INET6),
        "socket netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
        "socket unix datagrams": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        "socket unix packets": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
        "socketpair": socket.socketpair,
        "connect": lambda: sealed.loose.connect(name),
        "connect datagrams": lambda: sealed.datagrams.connect(name),
        "sendmsg": lambda: sealed.one.sendmsg([b"x"]),
        "sendmsg with a descriptor": lambda: socket.send_fds(sealed.one, [b"x"], [sealed.shm]),
        "abort of another": lambda: os.kill(sealed.parent, 0),
    }


def only_with_zeromq(sealed: Sealed) -> dict[str, Callable[[], object]]:
    """What ZeroMQ does in the directory of its own."""

    def make() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM):
            pass

    return {
        "socket unix": make,
        "bind": lambda: sealed.loose.bind(f"{sealed.directory}/socket"),
        "listen": sealed.loose.listen,
        "unlink": lambda: os.unlink(f"{sealed.directory}/socket"),
    }


def needed(sealed: Sealed) -> dict[str, Callable[[], object]]:
    """What a guest's life takes."""

    def talk() -> None:
        sealed.one.send(b"call")
        assert sealed.other.recv(10) == b"call"
        assert sealed.other.recvmsg_into.__name__ and sealed.one.getsockopt(1, 7) > 0
        sealed.one.settimeout(0.01)
        try:
            sealed.one.recv(10)
        except TimeoutError:
            sealed.one.settimeout(None)

    def look() -> None:
        poller = select.poll()
        poller.register(sealed.reads, select.POLLIN)
        assert poller.poll(10) == []
        with select.epoll() as epoll:
            epoll.register(sealed.reads, select.EPOLLIN)
            assert epoll.poll(0.01) == []
        event = os.eventfd(0, os.EFD_NONBLOCK)
        os.eventfd_write(event, 1)
        os.close(event)
        select.select([sealed.reads], [], [], 0.01)

    def thread() -> None:
        ran: list[int] = []
        threads = [threading.Thread(target=lambda: ran.append(1)) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(10)
        assert len(ran) == 4

    def compute() -> None:
        with mmap.mmap(-1, 8 << 20) as memory:
            memory[5 << 20] = 1
        assert sum(bytearray(10_000_000)) == 0
        time.sleep(0.001)
        os.urandom(16)
        os.sched_yield()
        assert os.getppid() == sealed.parent

    def wake() -> None:
        carrier = PipeCarrier(sealed.reads, sealed.writes)
        carrier.wake()
        assert not carrier.sleep(-1, ())
        carrier.drain()
        assert not carrier.sleep(1, (sealed.one.fileno(),))

    def say() -> None:
        print("", end="", flush=True)
        sys.stderr.flush()

    return {
        "talk": talk, "look": look, "thread": thread, "compute": compute, "wake": wake, "say": say,
        "exit handlers": lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL),
    }  # fmt: skip


def outcome(attempt: Callable[[], object]) -> str:
    """How it went."""
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:
        return repr(error)
    return "done"


def main(events: Events, directory: str) -> None:
    """The program."""
    sealed = Sealed(directory)
    _libc.syscall  # noqa: B018 - looked up before nothing can be
    attempts = {name: (lambda name=name: sealed.raw(name)) for name in RAW}
    attempts |= forbidden_by_argument(sealed)
    assert seal(events) == "", "not sealed"
    found = {name: outcome(act) for name, act in attempts.items()}
    found |= {f"zeromq: {n}": outcome(act) for n, act in only_with_zeromq(sealed).items()}
    found |= {f"needed: {n}": outcome(act) for n, act in needed(sealed).items()}
    if events == "zeromq":
        carrier = carrier_of(events, (), channel_address(directory, 1), allocated_here=True)
        print("bound", flush=True)
        woken = carrier.await_far_end(60_000)
        carrier.wake()
        found["needed: zeromq"] = "done" if woken else "nobody came"
        carrier.close()
        zmq.Context.instance().term()
    found["not there"] = " ".join(name for name, number in sealed.numbers.items() if number < 0)
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(cast(Any, sys.argv[1]), sys.argv[2])
