"""What one simulated run is of: the machine, the mode, the load."""

from dataclasses import dataclass, replace
from typing import Final

from common.abi import BLKIF_MAX_PERSISTENT_GRANTS, SECTOR_SIZE
from frontend.blkfront_info import PER_REQUEST, PERSISTENT, REUSE
from frontend.load import LoadPlan

# How the frontend uses grants, whether the backend keeps pages mapped, whether it copies by grant.
MODES: Final[dict[str, tuple[int, bool, bool]]] = {
    "persistent": (PERSISTENT, True, False),
    "non-persistent": (PER_REQUEST, False, False),
    "backend-without-persistent": (REUSE, False, False),
    "grant-copy": (PER_REQUEST, False, True),
}


@dataclass(frozen=True)
class DiskPlan:
    """One disk of a guest. load: what runs on it, if anything; kind: of its store, "ram" or "null";
    name: of a store that several disks have, "" for one of its own.
    """

    load: LoadPlan | None
    sectors: int
    kind: str = "ram"
    read_only: bool = False
    name: str = ""
    sector_size: int = SECTOR_SIZE


@dataclass(frozen=True)
class Config:
    """A machine and its load. `plan.seed` is the machine's seed too; a guest adds its domid.

    disks: by guest, in the order of their numbers; where there are none each guest has one of
    `disk_sectors`, on which `plan` runs. physical_cpus: 0 for one to each vCPU of dom0 and each
    guest; otherwise at least dom0's, and guests that find no CPU of their own share.
    """

    plan: LoadPlan
    mode: str = "non-persistent"
    guests: int = 4
    dom0_vcpus: int = 24
    physical_cpus: int = 0
    flush_policy: str = "mask-2012"
    era: str = "2012"
    gather_max: int = 1
    max_persistent_grants: int = BLKIF_MAX_PERSISTENT_GRANTS
    disk_sectors: int = 4 << 11
    disks: tuple[tuple[DiskPlan, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.physical_cpus and self.physical_cpus < self.dom0_vcpus:
            raise ValueError(
                f"physical-cpus: {self.physical_cpus} are fewer than dom0's {self.dom0_vcpus},"
                " each pinned to one of its own"
            )
        assert len(self.disks) in (0, self.guests), "each guest has its disks, or none has"

    def disks_of(self, domid: int) -> tuple[DiskPlan, ...]:
        """A guest's, by number."""
        if self.disks:
            return self.disks[domid - 1]
        return (DiskPlan(replace(self.plan, seed=self.plan.seed + domid), self.disk_sectors),)

    @property
    def nr_rings(self) -> int:
        """Of the whole machine: one a disk."""
        return sum(len(self.disks_of(domid)) for domid in range(1, self.guests + 1))

    @property
    def nr_cpus(self) -> int:
        """Physical CPUs."""
        return self.physical_cpus or self.dom0_vcpus + self.guests

    def guest_cpu(self, domid: int) -> int:
        """The physical CPU of a guest's vCPU: one that is not dom0's, if there is any."""
        others = self.nr_cpus - self.dom0_vcpus
        if others == 0:
            return (domid - 1) % self.dom0_vcpus
        return self.dom0_vcpus + (domid - 1) % others
