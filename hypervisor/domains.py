"""The domains there are, and what the hypervisor keeps for each.

Owns: the registry. A destroyed domain whose pages others still have mapped is *dying*: it can be
unmapped from and nothing else, and its domid is not free until the last mapping has gone and
xenstored has forgotten it (Xen's zombie domain: there xenstored has a page of it mapped).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from common.abi import DOMID_FIRST_RESERVED, XEN_PAGE_SIZE
from hypervisor.event_channels import EventChannels
from hypervisor.grant_table import GrantTable
from hypervisor.maptrack import Maptrack

GUEST_HANDLES_MAX: Final = 256  # one maptrack frame for a domain that is no backend


@dataclass
class Domain:
    """One domain. ram: u8, its frames; counters: HYPERVISOR_COUNTERS (1,)."""

    domid: int
    nr_vcpus: int
    ram: np.ndarray
    grants: GrantTable
    maptrack: Maptrack
    channels: EventChannels
    counters: np.ndarray
    dying: bool = False
    in_store: bool = False  # xenstored knows it, or may learn of it
    # The same words, to be added to several times a hypercall: numpy's scalars are slow.
    counter_words: memoryview = field(init=False, repr=False)
    _mapped: memoryview = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.counter_words = self.counters.view(np.uint64).data
        self._mapped = self.grants.table["mapped"].data

    @property
    def nr_ram_frames(self) -> int:
        """Frames of RAM."""
        return len(self.ram) // XEN_PAGE_SIZE

    @property
    def mapped(self) -> int:
        """Mappings of its pages that stand now."""
        return self._mapped[0]


class Domains:
    """All domains by domid."""

    def __init__(self) -> None:
        self._domains: dict[int, Domain] = {}

    def __iter__(self) -> Iterator[Domain]:
        return iter(list(self._domains.values()))

    def __contains__(self, domid: int) -> bool:
        return domid in self._domains

    def add(self, domain: Domain) -> None:
        """Register a new domain; its domid must be free and no reserved one."""
        assert domain.domid not in self._domains
        assert domain.domid < DOMID_FIRST_RESERVED
        self._domains[domain.domid] = domain

    def find(self, domid: int) -> Domain | None:
        """A living domain, or None."""
        domain = self._domains.get(domid)
        return None if domain is None or domain.dying else domain

    def find_dying(self, domid: int) -> Domain | None:
        """A domain, living or dying, or None."""
        return self._domains.get(domid)

    def bury(self, domain: Domain) -> None:
        """Forget a dying domain once nothing of it is mapped any more and xenstored let it go."""
        if domain.dying and domain.mapped == 0 and not domain.in_store:
            self._domains.pop(domain.domid, None)
