"""What virtual disks guests have: how a user says it, and what is made of it.

Owns: the form of a disk, `TARGET[,vdev=xvdb][,access=ro|rw]`; which vdev one has that names none;
what disks of one store must agree on.

TARGET is `ram:SIZE` (zeroed memory; with `,name=NAME`, all disks of that name are one store) or
`null:SIZE` (moves nothing: a write is forgotten, a read leaves what was there). SIZE as fio has it:
a number, and k, m or g for units of 1,024.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from common.abi import SECTOR_SIZE
from machine.plug import XVDA
from toolstack.loadspec import (
    GUESTS_MAX,
    VDEVS,
    Config,
    ConfigError,
    shown,
    size_of,
    size_text,
)

DISKS_MAX: Final = 16  # of a guest
SIZE_MAX: Final = 64 << 30
MINORS: Final = 16  # of a disk: it and its partitions
KINDS: Final = ("ram", "null")
NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
FORM: Final = "TARGET[,vdev=xvda..xvdp][,access=ro|rw], TARGET ram:SIZE[,name=NAME] or null:SIZE"


class DiskSpec(Config):
    """One disk as a user names it. target: `ram:SIZE` or `null:SIZE`; name: of the store that it
    shares, if any; vdev: "" for the next that is free. Raises ConfigError.
    """

    target: str
    name: str = ""
    vdev: str = ""
    access: Literal["ro", "rw"] = "rw"

    @classmethod
    def of(cls, written: Any) -> Self:
        """A disk from what a user wrote: text, a table, or one already. Raises ConfigError."""
        if isinstance(written, cls):
            return written
        try:
            if isinstance(written, Mapping):
                return cls.from_table(dict(written))
            if not isinstance(written, str):
                raise ConfigError(f"is not {FORM}")
            target, *rest = (part.strip() for part in written.split(","))
            pairs = [part.partition("=")[::2] for part in rest]
            known = {"name", "vdev", "access"}
            if len(known & {key for key, value in pairs if value}) < len(pairs):  # or twice
                raise ConfigError(f"is not {FORM}")
            return cls.from_table({"target": target, **dict(pairs)})
        except ConfigError as error:
            raise ConfigError(f"disk: {shown(written)}: {error}") from None

    @property
    def kind(self) -> str:
        """What sort of store: `ram` or `null`."""
        return self.target.partition(":")[0]

    @property
    def size(self) -> int:
        """In bytes."""
        size = size_of(self.target.partition(":")[2])
        assert size is not None
        return size

    @property
    def params(self) -> str:
        """The whole TARGET, as dom0 reads it in the store."""
        return f"{self.target},name={self.name}" if self.name else self.target

    @field_validator("target", mode="before")
    @classmethod
    def _is_a_target(cls, value: Any) -> str:
        kind, _, written = value.lower().partition(":") if isinstance(value, str) else ("",) * 3
        size = size_of(written)
        if kind not in KINDS or size is None:
            raise ValueError(f"is not {':SIZE or '.join(KINDS)}:SIZE")
        if not SECTOR_SIZE <= size <= SIZE_MAX or size % SECTOR_SIZE:
            limits = f"{SECTOR_SIZE}..{size_text(SIZE_MAX)}"
            raise ValueError(f"has a size that is no multiple of {SECTOR_SIZE} in {limits}")
        return f"{kind}:{written.strip()}"

    @field_validator("name", mode="before")
    @classmethod
    def _is_a_name(cls, value: Any) -> Any:
        if value != "" and not (isinstance(value, str) and NAME.fullmatch(value)):
            raise ValueError("is not 1..32 letters, digits, '_', '.' or '-'")
        return value

    @field_validator("vdev", mode="before")
    @classmethod
    def _is_a_vdev(cls, value: Any) -> Any:
        if value not in ("", *VDEVS):
            raise ValueError(f"is not in {VDEVS[0]}..{VDEVS[-1]}")
        return value

    @model_validator(mode="after")
    def _has_a_name_only_if_it_keeps_something(self) -> Self:
        if self.name and self.kind == "null":
            raise ValueError("name: a null disk keeps nothing that could be shared")
        return self

    @model_serializer
    def text(self) -> str:
        """As a user writes it."""
        vdev = f",vdev={self.vdev}" if self.vdev else ""
        return f"{self.params}{vdev}{',access=ro' if self.access == 'ro' else ''}"


class GuestSpec(Config):
    """One guest's own settings. domid: whose, in a list of them by default its place from 1 on;
    disks: in place of the topology's. Raises ConfigError.
    """

    domid: int | None = Field(None, ge=1, le=GUESTS_MAX)
    disks: tuple[DiskSpec, ...] = ()

    @classmethod
    def of(cls, written: Any) -> Self:
        """A guest's table, or one already. Raises ConfigError."""
        if isinstance(written, cls):
            return written
        if not isinstance(written, Mapping):
            raise ConfigError(f"guest: {shown(written)} is not a table")
        try:
            return cls.from_table(dict(written))
        except ConfigError as error:
            raise ConfigError(f"guest: {error}") from None

    @field_validator("disks", mode="before")
    @classmethod
    def _are_disks(cls, value: Any) -> tuple[DiskSpec, ...]:
        return disk_specs(value)


class Disk(NamedTuple):
    """A disk that a guest has. number: its place among the guest's; device: its number on Xen;
    key: its store's, by which several disks may go.
    """

    domid: int
    number: int
    vdev: str
    spec: DiskSpec

    @property
    def device(self) -> int:
        """Xen's number of it: major 202, 16 minors a disk."""
        return device_of(self.vdev)

    @property
    def key(self) -> str:
        """The store's: its name, or one that no name can be."""
        return self.spec.name or f"{self.domid}/{self.device}"

    @property
    def read_only(self) -> bool:
        """Is a write to it answered ERROR?"""
        return self.spec.access == "ro"

    def __str__(self) -> str:
        return f"guest {self.domid}'s {self.vdev}"


def device_of(vdev: str) -> int:
    """Xen's number of a virtual disk (202 << 8 | disk << 4)."""
    return XVDA + MINORS * VDEVS.index(vdev)


def disk_specs(written: Any) -> tuple[DiskSpec, ...]:
    """A list of disks as a user writes it. Raises ConfigError."""
    if isinstance(written, str) or not isinstance(written, Sequence):
        raise ConfigError(f"disks: {shown(written)} is not a list of {FORM}")
    if not 1 <= len(written) <= DISKS_MAX:
        raise ConfigError(f"disks: {len(written)} are not 1..{DISKS_MAX}, which a guest may have")
    return tuple(map(DiskSpec.of, written))


def guest_specs(written: Any) -> tuple[GuestSpec, ...]:
    """A list of guests' own settings, each with its domid. Raises ConfigError."""
    if isinstance(written, (str, Mapping)) or not isinstance(written, Sequence):
        raise ConfigError(
            f"guest: {shown(written)} is not a list of tables, as [[topology.guest]] makes;"
            " how many there are is guests"
        )
    found: dict[int, GuestSpec] = {}
    for place, table in enumerate(written, 1):
        spec = GuestSpec.of(table)
        domid = place if spec.domid is None else spec.domid
        if domid in found:
            raise ConfigError(f"guest: domid {domid} is there twice")
        found[domid] = spec.model_copy(update={"domid": domid})
    return tuple(found.values())


def disks_of(domid: int, specs: Sequence[DiskSpec]) -> list[Disk]:
    """A guest's disks by number; one without a vdev has the next that no other names.

    Raises ConfigError.
    """
    named = [spec.vdev for spec in specs if spec.vdev]
    if twice := [vdev for vdev in VDEVS if named.count(vdev) > 1]:
        raise ConfigError(f"disk: guest {domid} has vdev={twice[0]} twice; a vdev is one disk's")
    free = iter([vdev for vdev in VDEVS if vdev not in named])
    return [Disk(domid, number, spec.vdev or next(free), spec) for number, spec in enumerate(specs)]


def check_stores(disks: Iterable[Disk]) -> None:
    """Do the disks of one store agree, and does at most one write to it? Raises ConfigError."""
    seen: dict[str, Disk] = {}
    writers: dict[str, Disk] = {}
    for disk in disks:
        name = disk.spec.name
        if not name:
            continue
        first = seen.setdefault(name, disk)
        if first.spec.size != disk.spec.size:
            raise ConfigError(
                f"disk: name={name} is {size_text(first.spec.size)} as {first} and"
                f" {size_text(disk.spec.size)} as {disk}; disks of one name have one size"
            )
        if not disk.read_only and (writer := writers.setdefault(name, disk)) is not disk:
            raise ConfigError(
                f"disk: name={name} is written by {writer} and {disk}; of the disks of one name one"
                " may be written, and the others need access=ro"
            )
