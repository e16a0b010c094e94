"""A domain's birth and death: the domctls, for the toolstack and dom0's drivers.

Owns: what there is of a domain besides the cores' state: its segments, its hypercall connections,
its ports' wake-up lines, and in which order they come and go.
Rules: only a privileged domain may ask. A creation that fails leaves nothing. A domain that is
destroyed is dying until its backends have unmapped the last of its pages and xenstored has
forgotten it: so long its domid stays taken. A backend's process may die without its domain: what
that had there goes, but for the connection of who says so.
"""

import errno
from collections.abc import Callable
from typing import Final

import numpy as np

from common.hypercall import (
    DOMCTL_BACKEND,
    DOMCTL_CREATEDOMAIN,
    DOMCTL_DESTROYDOMAIN,
    DOMCTL_DOMAIN,
    DOMCTL_GET_MEMORY,
    DOMCTL_GET_VCPU,
    DOMCTL_MEMORY,
    DOMCTL_RESET_BACKEND,
    DOMCTL_VCPU,
)
from common.machine_memory import DOMAIN_SEGMENTS, GUESTS_MAX
from common.memory import SharedMemoryError
from hypervisor.connections import Caller, Connections
from hypervisor.domains import BACKEND, PRIVILEGED
from hypervisor.event_calls import EventCalls
from hypervisor.hypercalls import Hypervisor
from hypervisor.segments import Segments

# What a domain may be built with; 64 grant frames are Xen's default limit.
VCPUS_MAX: Final = 256
RAM_FRAMES_MAX: Final = 0xFFFFFFFF  # a frame is a u32; what fits is for shared memory to say
GRANT_FRAMES_MAX: Final = 64

# Descriptors that go with an answer: those that stay ours, those to be closed once they are sent.
Handed = tuple[list[int], list[int]]


class Domctl:
    """Makes and unmakes domains.

    counters: HYPERVISOR_COUNTERS by domid. empty_gate: of the backend. say_dead(domid): tell
    xenstored and the toolstack. say_why(text): tell the toolstack why a creation answers ENOMEM.
    """

    def __init__(
        self,
        hypervisor: Hypervisor,
        segments: Segments,
        connections: Connections,
        events: EventCalls,
        counters: np.ndarray,
        empty_gate: Callable[[], None],
        say_dead: Callable[[int], None],
        say_why: Callable[[str], None],
    ) -> None:
        self._hypervisor, self._segments = hypervisor, segments
        self._connections, self._events = connections, events
        self._counters, self._empty_gate = counters, empty_gate
        self._say_dead, self._say_why = say_dead, say_why

    def call(self, caller: Caller, cmd: int, payload: bytearray, handed: Handed) -> int:
        """One domctl over `payload`; 0 or -errno. `handed` takes what goes with the answer."""
        if not self._hypervisor.domains.has_role(caller.domid, PRIVILEGED):
            return -errno.EPERM
        dtype, method = DOMCTLS.get(cmd, (None, None))
        if dtype is None or method is None:
            return -errno.ENOSYS
        if len(payload) != dtype.itemsize:
            return -errno.EINVAL
        return method(self, caller, np.frombuffer(bytes(payload), dtype)[0], handed)

    def destroy(self, domid: int) -> None:
        """End a living guest, and say so."""
        self._hypervisor.destroy_domain(domid)
        self._events.forget(domid)
        self._connections.forget(domid)
        self._segments.forget(domid)
        self._say_dead(domid)

    def _create_guest(self, _: Caller, order: np.void, handed: Handed) -> int:
        domid = int(order["domid"])
        if not 1 <= domid <= GUESTS_MAX:
            return -errno.EINVAL
        if domid in self._hypervisor.domains:  # dying ones too
            return -errno.EEXIST
        sizes = [int(order[name]) for name in ("nr_vcpus", "ram_frames", "grant_frames")]
        most = (VCPUS_MAX, RAM_FRAMES_MAX, GRANT_FRAMES_MAX)
        if not all(1 <= size <= top for size, top in zip(sizes, most, strict=True)):
            return -errno.EINVAL
        nr_vcpus, ram_frames, grant_frames = sizes
        try:
            connection = self._connections.make(domid, 0)
            try:
                memory = self._segments.make_domain(domid, ram_frames, grant_frames)
            except BaseException:
                self._connections.forget(domid)
                handed[1].append(connection)
                raise
        except (SharedMemoryError, OSError) as error:
            self._say_why(str(error))
            return -errno.ENOMEM
        counters = self._counters[domid : domid + 1]
        self._hypervisor.create_domain(domid, memory, counters, nr_vcpus=nr_vcpus, in_store=True)
        stays, spent = handed
        spent.append(connection)
        for name in DOMAIN_SEGMENTS:
            fd = self._segments.descriptor(domid, name)
            assert fd is not None
            stays.append(fd)
        return 0

    def _destroy_guest(self, _: Caller, order: np.void, handed: Handed) -> int:
        domid = int(order["domid"])
        domain = self._hypervisor.domains.find(domid)
        if domain is None:
            return -errno.ESRCH
        if domain.has_role(PRIVILEGED):
            return -errno.EINVAL
        self.destroy(domid)
        return 0

    def _reset_backend(self, caller: Caller, order: np.void, handed: Handed) -> int:
        """What it had posted or asked for is not done: before anything is unmapped, or it would be
        mapped again."""
        domid = int(order["domid"])
        if domid not in self._hypervisor.domains:
            return -errno.ESRCH
        if not self._hypervisor.domains.has_role(domid, BACKEND):
            return -errno.EINVAL
        self._connections.forget(domid, but=caller)
        self._empty_gate()
        self._hypervisor.reset_backend(domid)
        self._events.forget(domid)
        return self._connect(domid, 0, handed)

    def _get_vcpu(self, caller: Caller, order: np.void, handed: Handed) -> int:
        domain = self._hypervisor.domains.find(caller.domid)
        assert domain is not None
        if int(order["vcpu"]) >= domain.nr_vcpus:
            return -errno.EINVAL
        return self._connect(caller.domid, int(order["vcpu"]), handed)

    def _connect(self, domid: int, vcpu: int, handed: Handed) -> int:
        try:
            handed[1].append(self._connections.make(domid, vcpu))
        except OSError as error:
            return -(error.errno or errno.EMFILE)
        return 0

    def _get_memory(self, _: Caller, order: np.void, handed: Handed) -> int:
        """All but grant tables, which are between a domain and the hypervisor."""
        name = bytes(order["segment"]).decode("ascii", "replace")
        fd = self._segments.descriptor(int(order["domid"]), name)
        if fd is None or name == "grant":
            return -errno.ESRCH
        handed[0].append(fd)
        return 0


_Method = Callable[[Domctl, Caller, np.void, Handed], int]

DOMCTLS: Final[dict[int, tuple[np.dtype, _Method]]] = {
    DOMCTL_CREATEDOMAIN: (DOMCTL_DOMAIN, Domctl._create_guest),
    DOMCTL_DESTROYDOMAIN: (DOMCTL_DOMAIN, Domctl._destroy_guest),
    DOMCTL_GET_VCPU: (DOMCTL_VCPU, Domctl._get_vcpu),
    DOMCTL_GET_MEMORY: (DOMCTL_MEMORY, Domctl._get_memory),
    DOMCTL_RESET_BACKEND: (DOMCTL_BACKEND, Domctl._reset_backend),
}
