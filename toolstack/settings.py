"""What machine to build, checked before anything starts.

Owns: the settings of a machine, their bounds, defaults and presets; the config file.
Rule: a bad setting is a ConfigError (`toolstack/loadspec.py`), and nothing has been started.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StrictBool, field_validator, model_validator

from common.abi import XEN_PAGE_SIZE
from toolstack.disks import (
    DISKS_MAX,
    Disk,
    DiskSpec,
    GuestSpec,
    check_stores,
    disk_specs,
    disks_of,
    guest_specs,
)
from toolstack.host_memory import available_bytes
from toolstack.loadspec import GUESTS_MAX, VDEVS, Config, ConfigError, LoadSpec, shown, size_text

BUFFER_MIB: Final = 8
SPARE_DISKS: Final = 2  # of a guest whose machine stays, if nothing is said and the host has room

Mode = Literal["persistent", "non-persistent", "backend-without-persistent", "grant-copy"]
MODES: Final[dict[Mode, dict[str, bool]]] = {
    "non-persistent": {"persistent": False, "backend_persistent": True, "grant_copy": False},
    "grant-copy": {"persistent": False, "backend_persistent": False, "grant_copy": True},
    "backend-without-persistent": {
        "persistent": True,
        "backend_persistent": False,
        "grant_copy": False,
    },
    "persistent": {"persistent": True, "backend_persistent": True, "grant_copy": False},
}

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "2012": {"flush_policy": "mask-2012", "batching": "request", "max_persistent_grants": 352},
    "today": {"flush_policy": "mask", "batching": "request", "max_persistent_grants": 352},
}


def _by_preset(name: str) -> Any:
    """A field's default: what the preset says."""
    return Field(default_factory=lambda settings: PRESETS[settings["preset"]][name])


def _buffers(settings: dict[str, Any]) -> int:
    """MiB of I/O buffers by default: of a guest's disks together, but at least one of each."""
    disks = [settings["disks"], *(guest.disks or () for guest in settings["guest"])]
    return max(1, BUFFER_MIB // max(map(len, disks)))


class Settings(Config):
    """A machine: so many guests with their disks, one dom0, one hypervisor.

    persistent, backend_persistent: whether the frontends and the backend announce
    feature-persistent. grant_copy: the backend has the hypervisor copy, and maps nothing.
    max_persistent_grants: Linux blkback's module parameter, for each ring. disks: each guest's
    (`toolstack/disks.py`); disk_mib: short for one ram disk; guest: what a guest has of its own.
    buffer_mib: the RAM that the I/O buffers of each disk lie in. spare_disks: how many more disks a
    guest may be given than it is born with (docs/plug.md). on_crash: what dom0's death means
    (`toolstack/recovery.py`). verify_state: the directory where
    each disk keeps what it was told to keep, for who asks after a crash.
    Raises ConfigError.
    """

    preset: Literal["2012", "today"] = "today"  # first: the defaults below look at it
    guests: int = Field(4, ge=1, le=GUESTS_MAX)
    dom0_vcpus: int = Field(24, ge=1, le=256)
    persistent: StrictBool = True
    backend_persistent: StrictBool = True
    grant_copy: StrictBool = False
    flush_policy: Literal["mask", "mask-2012", "accessed", "precise"] = _by_preset("flush_policy")
    batching: Literal["request", "drain"] = _by_preset("batching")
    max_persistent_grants: Annotated[int, Field(ge=0, le=100_000)] = _by_preset(
        "max_persistent_grants"
    )
    spin: Literal["adaptive", "off"] = "adaptive"
    events: Literal["zeromq", "pipe"] = "zeromq"
    disk_mib: int = Field(64, ge=1, le=65536)
    disks: tuple[DiskSpec, ...] = Field(
        default_factory=lambda settings: (DiskSpec(target=f"ram:{settings['disk_mib']}m"),)
    )
    guest: tuple[GuestSpec, ...] = ()
    verify_state: str = ""
    buffer_mib: int = Field(default_factory=_buffers, ge=1, le=256)
    seed: int = Field(1, ge=0)
    on_crash: Literal["destroy", "restart", "preserve"] = "destroy"
    spare_disks: int = Field(0, ge=0, le=DISKS_MAX - 1)

    @property
    def mode(self) -> Mode:
        """Which of the house's modes these settings make."""
        if self.grant_copy:
            return "grant-copy"
        if not self.persistent:
            return "non-persistent"
        return "persistent" if self.backend_persistent else "backend-without-persistent"

    @property
    def threads(self) -> int:
        """How many of the machine's threads may want a CPU at once: a guest's, one for each vCPU of
        dom0 that has rings, and the hypervisor's where requests make hypercalls."""
        vcpus = min(self.dom0_vcpus, len(self.every_disk()))
        return self.guests + vcpus + (self.mode != "persistent")

    @property
    def buffer_frames(self) -> int:
        """Frames that the I/O buffers of a disk take."""
        return (self.buffer_mib << 20) // XEN_PAGE_SIZE

    @property
    def domids(self) -> range:
        """The guests'."""
        return range(1, self.guests + 1)

    def disks_of(self, domid: int) -> list[Disk]:
        """A guest's disks, by number."""
        own = [guest.disks for guest in self.guest if guest.domid == domid]
        return disks_of(domid, self.disks if not own or own[0] is None else own[0])

    def places_of(self, domid: int) -> int:
        """How many disks a guest that is born with these has room for."""
        return min(DISKS_MAX, max(1, len(self.disks_of(domid)) + self.spare_disks))

    def rows_of(self, domid: int) -> int:
        """Of what is counted for a guest's disks: one for each number up to the largest."""
        return 1 + max((disk.number for disk in self.disks_of(domid)), default=0)

    def with_disks_of(self, domid: int, disks: Sequence[Disk]) -> Self:
        """The same machine where that guest has these. Raises ConfigError."""
        specs = [disk.spec.model_copy(update={"vdev": disk.vdev}) for disk in disks]
        others = [guest for guest in self.guest if guest.domid != domid]
        guest = GuestSpec(domid=domid, disks=tuple(specs))
        settings = {**self.given(), "guest": (*others, guest), "buffer_mib": self.buffer_mib}
        return type(self)(**settings)

    def every_disk(self) -> list[Disk]:
        """The disks of all guests."""
        return [disk for domid in self.domids for disk in self.disks_of(domid)]

    def with_mode(self, mode: Mode) -> Self:
        """The same machine in another mode. Raises ConfigError."""
        if mode not in MODES:
            raise ConfigError(f"mode: {shown(mode)} is not one of {', '.join(MODES)}")
        return type(self)(**{**self.given(), **MODES[mode]})

    @classmethod
    def from_toml(cls, path: str | Path) -> tuple[Self, LoadSpec]:
        """What a file's [topology] and [load] tables say; either may be missing.

        Raises ConfigError, naming the file.
        """
        try:
            with open(path, "rb") as file:
                tables = tomllib.load(file)
        except OSError as error:
            raise ConfigError(f"config: '{path}' cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"config: '{path}' is not TOML: {error}") from None
        try:
            _check_tables(tables)
            topology = cls.from_table(tables.get("topology", {}))
            return topology, LoadSpec.from_table(tables.get("load", {}))
        except ConfigError as error:
            raise ConfigError(f"config '{path}': {error}") from None

    def with_buffers_for(self, spec: LoadSpec) -> Self:
        """The same machine with I/O buffers for a load, where nothing was said of them.

        Raises ConfigError if too little was asked for.
        """
        if self.buffer_mib >= spec.buffer_mib:
            return self
        if "buffer_mib" in self.model_fields_set:
            most = max(spec.jobs, key=lambda job: job.buffer_mib)
            raise ConfigError(
                f"buffer-mib: {self.buffer_mib} is too small for iodepth {most.iodepth} of"
                f" bs {size_text(most.bs)}, which take {most.buffer_mib}"
            )
        return type(self)(**{**self.given(), "buffer_mib": spec.buffer_mib})

    def with_disks_for(self, stages: Sequence[LoadSpec]) -> Self:
        """The same machine with a ram disk for each that loads name, as large as they need, where
        nothing was said of disks: as fio makes files. Raises ConfigError if memory is too little.
        """
        if {"disks", "disk_mib", "guest"} & self.model_fields_set:
            return self
        jobs = [job for stage in stages for job in stage.jobs]
        named = [VDEVS.index(vdev) for job in jobs for vdev in job.vdev]
        nr_bytes = max([self.disk_mib << 20, *(job.reach for job in jobs)])
        disks = 1 + max(named, default=0)
        if nr_bytes * disks * self.guests > max(available_bytes() // 2, 1 << 30):
            raise ConfigError(
                f"disk: {disks} of {size_text(nr_bytes)} for each of {self.guests} guests, as the"
                " job file needs, are more than half of this host's memory; name others, or fewer"
                " guests"
            )
        mib = (nr_bytes + (1 << 20) - 1) >> 20
        return type(self)(**{**self.given(), "disks": (f"ram:{mib}m",) * disks})

    @model_validator(mode="after")
    def _is_one_of_the_modes(self) -> Self:
        if self.grant_copy and (self.persistent or self.backend_persistent):
            raise ValueError(
                "grant-copy: true needs persistent and backend-persistent to be false:"
                " who maps nothing keeps nothing mapped"
            )
        return self

    @field_validator("disks", mode="before")
    @classmethod
    def _are_disks(cls, value: Any) -> tuple[DiskSpec, ...]:
        return disk_specs(value)

    @field_validator("guest", mode="before")
    @classmethod
    def _are_guests(cls, value: Any) -> tuple[GuestSpec, ...]:
        return guest_specs(value)

    @model_validator(mode="after")
    def _disks_are_possible(self) -> Self:
        if {"disk_mib", "disks"} <= self.model_fields_set:
            raise ValueError(
                f"disk-mib: {self.disk_mib} is short for the one disk ram:{self.disk_mib}m, and"
                " disks are named besides; only one of the two is allowed"
            )
        for guest in self.guest:
            if guest.domid is not None and guest.domid > self.guests:
                raise ValueError(f"guest: domid {guest.domid} is not in 1..{self.guests}")
        check_stores(self.every_disk())
        return self


def _check_tables(tables: dict[str, Any]) -> None:
    for name, table in tables.items():
        if name not in ("topology", "load"):
            raise ConfigError(f"{shown(name)}: no such table; allowed are [topology], [load]")
        if not isinstance(table, dict):
            raise ConfigError(f"{name}: {shown(table)} is not a table")
