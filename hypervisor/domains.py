"""The domains there are, and what the hypervisor keeps for each.

Owns: the registry. Whether there is a domain, and what it is, stands in its row of DOMAIN; the
objects here are views, found by it. A destroyed domain whose pages others still have mapped is
*dying*: it can be unmapped from and nothing else, and its domid is not free until the last mapping
has gone and xenstored has forgotten it (Xen's zombie domain: there xenstored has a page of it
mapped).
Rule: a domain whose memory lies in the arena has the same each time its domid is used: so the view
of a domain that has gone serves for one that a restored snapshot brings back.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.arena import Arena
from common.machine_memory import GUESTS_MAX
from hypervisor.event_channels import EventChannels
from hypervisor.grant_table import new_grant_table
from hypervisor.maptrack import new_maptrack
from hypervisor.room import Carver, Room

NR_DOMIDS: Final = GUESTS_MAX + 1
GUEST_HANDLES_MAX: Final = 256  # one maptrack frame for a domain that is no backend

FREE: Final = 0
LIVING: Final = 1
DYING: Final = 2

# What a domain is here for: bits.
PRIVILEGED: Final = 1  # may ask about every domain, and have domains made and ended
BACKEND: Final = 2  # serves others: its vCPUs run on the worker CPUs, and it has a gate
GUEST: Final = 4  # is its users': pays for the hypervisor's time, and ends with its connection

# `in_store`: xenstored knows it, or may learn of it.
DOMAIN: Final = np.dtype(
    [("state", "<u4"), ("in_store", "<u4"), ("nr_vcpus", "<u4"), ("role", "<u4")]
)
STATE, IN_STORE, NR_VCPUS, ROLE = range(4)


class DomainMemory(NamedTuple):
    """A domain's own: ram, grant: u8, whole frames; event: u8, its shared-info page and the far
    ends' words."""

    ram: np.ndarray
    grant: np.ndarray
    event: np.ndarray


class Domain:
    """One domain, newly born. row: its DOMAIN (1,); counters: HYPERVISOR_COUNTERS (1,)."""

    def __init__(
        self,
        room: Carver,
        domid: int,
        row: np.ndarray,
        memory: DomainMemory,
        counters: np.ndarray,
        nr_handles: int,
    ) -> None:
        self.domid, self.memory, self.ram = domid, memory, memory.ram
        self.grants = new_grant_table(room, domid, memory.grant, self.nr_ram_frames)
        self.maptrack = new_maptrack(room, nr_handles)
        self.channels = EventChannels(room, domid, memory.event)
        # Words that every hypercall looks at or adds to: numpy's scalars are slow.
        self.row = row.view(np.uint32).data
        self.counter_words = counters.view(np.uint64).data
        self._mapped = self.grants.table["mapped"].data

    @property
    def nr_vcpus(self) -> int:
        """Its virtual CPUs."""
        return self.row[NR_VCPUS]

    def has_role(self, role: int) -> bool:
        """Is it here for that (too)?"""
        return self.row[ROLE] & role != 0

    @property
    def nr_ram_frames(self) -> int:
        """Frames of RAM."""
        return len(self.ram) // XEN_PAGE_SIZE

    @property
    def nr_grant_frames(self) -> int:
        """Frames of its grant table."""
        return len(self.memory.grant) // XEN_PAGE_SIZE

    @property
    def mapped(self) -> int:
        """Mappings of its pages that stand now."""
        return self._mapped[0]


class Caller(NamedTuple):
    """Who makes a hypercall: the domain, its vCPU's worker CPU (of backends), and whether it
    queued on the flush lock behind another's flush."""

    domain: Domain
    cpu: int
    waited: bool


class Domains:
    """All domains by domid."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._rows = arena.array(NR_DOMIDS, DOMAIN)
        self._states = self._rows["state"].data
        self._views: dict[int, Domain] = {}
        self._rooms: dict[int, Room] = {}

    def __iter__(self) -> Iterator[Domain]:
        return iter([self._views[domid] for domid in np.flatnonzero(self._rows["state"]).tolist()])

    def __contains__(self, domid: int) -> bool:
        return domid < NR_DOMIDS and self._states[domid] != FREE

    def add(
        self,
        domid: int,
        nr_vcpus: int,
        memory: DomainMemory,
        counters: np.ndarray,
        nr_handles: int,
        in_store: bool,
        role: int,
    ) -> None:
        """A new domain, whose domid must be free."""
        assert domid < NR_DOMIDS and self._states[domid] == FREE
        before = self._views.get(domid)
        assert before is None or before.ram.ctypes.data == memory.ram.ctypes.data, "see the rule"
        room = self._rooms.setdefault(domid, Room(self._arena))
        room.empty()
        row = self._rows[domid : domid + 1]
        self._views[domid] = Domain(room, domid, row, memory, counters, nr_handles)
        row[0] = LIVING, in_store, nr_vcpus, role

    def find(self, domid: int) -> Domain | None:
        """A living domain, or None."""
        if domid < NR_DOMIDS and self._states[domid] == LIVING:
            return self._views[domid]
        return None

    def has_role(self, domid: int, role: int) -> bool:
        """Is there such a living domain that is here for that?"""
        domain = self.find(domid)
        return domain is not None and domain.has_role(role)

    def find_dying(self, domid: int) -> Domain | None:
        """A domain, living or dying, or None."""
        return self._views[domid] if domid in self else None

    def end(self, domain: Domain) -> None:
        """It is dying."""
        domain.row[STATE] = DYING
        self.bury(domain)

    def released(self, domid: int) -> None:
        """xenstored has forgotten the domain, if that is dying."""
        domain = self.find_dying(domid)
        if domain is not None and domain.row[STATE] == DYING:
            domain.row[IN_STORE] = 0
            self.bury(domain)

    def bury(self, domain: Domain) -> None:
        """Forget a dying domain once nothing of it is mapped any more and xenstored let it go."""
        row = domain.row
        if row[STATE] == DYING and domain.mapped == 0 and not row[IN_STORE]:
            row[STATE] = FREE
            if not self._arena.holds(domain.ram):
                del self._views[domain.domid]  # and with it the last of its memory
