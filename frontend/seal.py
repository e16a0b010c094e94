"""The seal: a guest's process is ours until it is born, and then it is not trusted.

Owns: the system calls a guest may make once it holds all it is to hold: what computing, sleeping,
and talking over descriptors it has takes. No new file, socket (but see below), process, or word to
another process. All else answers EPERM, so that a mistake of ours shows as an error and not as a
death.
With ZeroMQ event channels the guest also binds unix sockets in the directory that is its own:
`docs/security.md` says what that leaves open.
"""

import contextlib
import errno
import fcntl
import os
import resource
import socket
import termios
from typing import Any, Final

from common.wakeups import Events

DESCRIPTORS_MAX: Final = 256

COMPUTING: Final = (
    "arch_prctl", "brk", "clock_getres", "clock_gettime", "clock_nanosleep", "exit", "exit_group",
    "futex", "get_robust_list", "getcpu", "getegid", "geteuid", "getgid", "getpid", "getppid",
    "getrandom", "getrusage", "gettid", "gettimeofday", "getuid", "madvise", "membarrier", "mmap",
    "mprotect", "mremap", "munmap", "nanosleep", "restart_syscall", "rseq", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "sched_get_priority_max", "sched_get_priority_min",
    "sched_getaffinity", "sched_getparam", "sched_getscheduler", "sched_yield", "set_robust_list",
    "set_tid_address", "sigaltstack", "sysinfo", "time", "times", "uname",
)  # fmt: skip

DESCRIPTORS_IT_HAS: Final = (
    "close", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_wait", "eventfd2", "fstat",
    "getpeername", "getsockname", "getsockopt", "lseek", "poll", "ppoll", "pselect6", "read",
    "readv", "recvfrom", "recvmsg", "select", "sendto", "setsockopt", "shutdown", "write",
    "writev",
)  # fmt: skip

# fcntl(2) and ioctl(2) could have the kernel send signals to others (F_SETOWN, FIOSETOWN).
FCNTLS: Final = (fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL, fcntl.F_SETFL)
IOCTLS: Final = (termios.FIONBIO, termios.FIOCLEX)

ZEROMQ: Final = ("accept", "accept4", "bind", "listen", "unlink")
CLONE_THREAD: Final = 0x10000
SOCKET_TYPES: Final = 0xF  # the rest of socket(2)'s second argument are flags


def find_libseccomp() -> Any:
    """The binding of libseccomp, or why there is none (a str)."""
    try:
        # Looks for the library when it is imported, and raises where there is none.
        import pyseccomp  # noqa: PLC0415
    except (ImportError, OSError, RuntimeError) as error:
        return f"no libseccomp here: {error}"
    return pyseccomp


def seal(events: Events) -> str:
    """Seal this process for good; returns "", or why it could not be."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS_MAX if allowed < 0 else min(DESCRIPTORS_MAX, allowed)  # -1: no limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seccomp = find_libseccomp()
    if isinstance(seccomp, str):
        return seccomp
    try:
        _load(seccomp, events)
    except (OSError, RuntimeError, ValueError) as error:
        return f"this host's kernel takes no seccomp filter: {error}"
    return ""


def _load(seccomp: Any, events: Events) -> None:
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)  # all threads
    with contextlib.suppress(OSError):  # an older libseccomp
        rules.set_attr(seccomp.Attr.CTL_SSB, 1)  # and no slower for it
    # Threads take what they need of this first: glibc falls back on clone.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    allowed = [*COMPUTING, *DESCRIPTORS_IT_HAS, *(ZEROMQ if events == "zeromq" else ())]
    for name in allowed:
        _allow(seccomp, rules, name)
    for name, commands in (("fcntl", FCNTLS), ("ioctl", IOCTLS)):
        for command in commands:
            _allow(seccomp, rules, name, seccomp.Arg(1, seccomp.EQ, command))
    threads = seccomp.Arg(0, seccomp.MASKED_EQ, CLONE_THREAD, CLONE_THREAD)
    _allow(seccomp, rules, "clone", threads)
    _allow(seccomp, rules, "tgkill", seccomp.Arg(0, seccomp.EQ, os.getpid()))  # abort(3)
    for name in ("sched_getattr", "sched_setattr"):  # its own slices (common/time_slice.py)
        _allow(seccomp, rules, name, seccomp.Arg(0, seccomp.EQ, 0))
    if events == "zeromq":
        # Its thread sets its own scheduling to what it is: done, as far as it is told.
        rules.add_rule(seccomp.ERRNO(0), "sched_setscheduler")
        family = seccomp.Arg(0, seccomp.EQ, int(socket.AF_UNIX))
        # No datagrams: sendto(2) takes them to any socket there is, without connect(2).
        kind = seccomp.Arg(1, seccomp.MASKED_EQ, SOCKET_TYPES, int(socket.SOCK_STREAM))
        _allow(seccomp, rules, "socket", family, kind)
    rules.load()


def _allow(seccomp: Any, rules: Any, name: str, *conditions: Any) -> None:
    try:
        rules.add_rule(seccomp.ALLOW, name, *conditions)
    except (OSError, RuntimeError, ValueError):
        return  # an architecture without this call
