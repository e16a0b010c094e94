"""What virtual disks guests have: how a user says it, and what is made of it.

Owns: the form of a disk, `TARGET[,OPTION...][,vdev=xvdb][,access=ro|rw]`; which vdev one has that
names none; what disks of one store must agree on. What a target is, and which options it has, is
`common/targets.py`'s.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from common.targets import EVERY, Target, joined, parse_target, split_target
from common.targets import FORM as TARGETS
from machine.plug import XVDA
from toolstack.loadspec import (
    GUESTS_MAX,
    VDEVS,
    Config,
    ConfigError,
    shown,
    size_text,
)

DISKS_MAX: Final = 16  # of a guest
MINORS: Final = 16  # of a disk: it and its partitions
OPTIONS: Final = ("name", "cache", "timeout", "seed", EVERY)  # of some target or other
FORM: Final = f"TARGET[,{EVERY}=512|4096][,vdev=xvda..xvdp][,access=ro|rw], TARGET {TARGETS}"


class DiskSpec(Config):
    """One disk as a user names it. target and the options that it has: see `common/targets.py`; ""
    is not said; vdev: "" for the next that is free. Raises ConfigError.
    """

    target: str
    name: str = ""
    cache: str = ""
    timeout: str = ""
    seed: str = ""
    sector_size: str = ""
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
            target, *rest = (part.strip() for part in split_target(written))
            pairs = [part.partition("=")[::2] for part in rest]
            known = {*OPTIONS, "vdev", "access"}
            if len(known & {key for key, value in pairs if value}) < len(pairs):  # or twice
                raise ConfigError(f"is not {FORM}")
            return cls.from_table({"target": target, **dict(pairs)})
        except ConfigError as error:
            raise ConfigError(f"disk: {shown(written)}: {error}") from None

    @cached_property
    def what(self) -> Target:
        """What the target says."""
        return parse_target(self.target, self._options())

    def _options(self) -> dict[str, str]:
        values = {name: getattr(self, name.replace("-", "_")) for name in OPTIONS}
        return {name: value for name, value in values.items() if value != ""}

    @property
    def kind(self) -> str:
        """What sort of store: `ram`, `null`, `file` or `nbd`."""
        return self.what.kind

    @property
    def size(self) -> int:
        """In bytes; 0 if only who opens it knows."""
        return self.what.nr_bytes

    @property
    def sector(self) -> int:
        """Bytes of a sector."""
        return self.what.sector_size

    @property
    def params(self) -> str:
        """The whole TARGET, as dom0 reads it in the store."""
        options = self._options()
        return joined([self.target, *(f"{name}={options[name]}" for name in options)])

    @field_validator("name", "cache", "timeout", "seed", "sector_size", mode="before")
    @classmethod
    def _is_said_as_text(cls, value: Any) -> Any:
        """A number in a file's table, too."""
        return str(value) if isinstance(value, (int, float)) else value

    @field_validator("target", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"is not {TARGETS}")
        kind, _, where = value.strip().partition(":")
        kind = kind.lower()
        if kind == "volatile":
            return f"{kind}:{cls._is_text(where)}"
        if kind in ("ram", "null"):
            where = where.strip().lower()
        elif kind == "file" and where:  # dom0 stands somewhere else
            where = os.path.abspath(where)
        return f"{kind}:{where}"

    @model_validator(mode="after")
    def _is_a_target(self) -> Self:
        try:
            assert self.what
        except ValueError as error:
            raise ValueError(f"target: {error}") from None
        return self

    @field_validator("vdev", mode="before")
    @classmethod
    def _is_a_vdev(cls, value: Any) -> Any:
        if value not in ("", *VDEVS):
            raise ValueError(f"is not in {VDEVS[0]}..{VDEVS[-1]}")
        return value

    @model_serializer
    def text(self) -> str:
        """As a user writes it."""
        vdev = f",vdev={self.vdev}" if self.vdev else ""
        return f"{self.params}{vdev}{',access=ro' if self.access == 'ro' else ''}"


class GuestSpec(Config):
    """One guest's own settings. domid: whose, in a list of them by default its place from 1 on;
    disks: in place of the topology's, if they are given: none, once all are detached. Raises
    ConfigError.
    """

    domid: int | None = Field(None, ge=1, le=GUESTS_MAX)
    disks: tuple[DiskSpec, ...] | None = None

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
        return () if value in ((), []) else disk_specs(value)


class Disk(NamedTuple):
    """A disk that a guest has. number: its vdev's, from xvda = 0 on, so that it stays the same
    whichever others come and go; device: its number on Xen; key: its store's, by which several
    disks may go.
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
        return self.spec.what.name or f"{self.domid}/{self.device}"

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
    """A guest's disks as they are written; one without a vdev has the next that no other names.

    Raises ConfigError.
    """
    named = [spec.vdev for spec in specs if spec.vdev]
    if twice := [vdev for vdev in VDEVS if named.count(vdev) > 1]:
        raise ConfigError(f"disk: guest {domid} has vdev={twice[0]} twice; a vdev is one disk's")
    free = iter([vdev for vdev in VDEVS if vdev not in named])
    vdevs = [spec.vdev or next(free) for spec in specs]
    return [
        Disk(domid, VDEVS.index(vdev), vdev, spec) for vdev, spec in zip(vdevs, specs, strict=True)
    ]


def check_stores(disks: Iterable[Disk]) -> None:
    """Do the disks of one store agree, and does at most one write to it? Raises ConfigError."""
    seen: dict[str, Disk] = {}
    writers: dict[str, Disk] = {}
    for disk in disks:
        what = disk.spec.what
        if not (store := _store_of(disk)):
            continue
        first = seen.setdefault(store, disk)
        if first.spec.size != disk.spec.size:
            raise ConfigError(
                f"disk: {store} is {size_text(first.spec.size)} as {first} and"
                f" {size_text(disk.spec.size)} as {disk}; disks of one name have one size"
            )
        if not disk.read_only and (writer := writers.setdefault(store, disk)) is not disk:
            raise ConfigError(
                f"disk: {store} is written by {writer} and {disk}; of the disks of one name one"
                " may be written, and the others need access=ro"
            )
        reads = disk.read_only or first.read_only
        if what.kind in ("file", "nbd") and store in writers and reads:
            raise ConfigError(
                f"disk: {store} is read by {disk if disk.read_only else first} while"
                f" {writers[store]} may write it; a file or an export has one writer, or readers"
                " alone"
            )


def _store_of(disk: Disk) -> str:
    """What several disks may have in common, for people; "" for a store that is a disk's own."""
    what = disk.spec.what
    if what.kind == "nbd":
        return what.where
    if what.kind == "file":
        return f"file:{os.path.realpath(what.path_of(disk.domid))}"
    return f"name={what.name}" if what.name else ""
