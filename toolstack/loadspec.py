"""What load to run on every guest, with fio's names; and how any setting is checked and refused.

Owns: the settings of a load; the base class that `toolstack/settings.py` shares with it.
Rules: whatever is wrong, from a flag, a file or Python, is one ConfigError of one line that names
the setting, its value and what is allowed. A load ends by whichever of `ios` and `runtime_s` comes
first, as in fio; `ios` alone means no time limit.
"""

import re
from typing import Any, Final, Literal, Self, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from common.abi import SECTOR_SIZE, XEN_PAGE_SIZE

VALUE_SHOWN_MAX: Final = 60  # characters of a bad value that an error repeats

BS_MAX: Final = 1 << 20
GUESTS_MAX: Final = 64
VDEVS: Final = tuple(f"xvd{letter}" for letter in "abcdefghijklmnop")
UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
RUNTIME_DEFAULT_S: Final = 5.0


class ConfigError(Exception):
    """A setting that cannot be used; the text is one line for the user."""


class Config(BaseModel):
    """Settings that are checked when made, and never change. Raises ConfigError, nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(_in_one_line(type(self), error.errors()[0])) from None

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        assert info.field_name is not None
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise PydanticCustomError("no_number", "a truth value is not a number")
        return value

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> Self:
        """From a config file's table; `-` may stand for `_`, and seconds lack their `_s`."""
        settings: dict[str, Any] = {}
        for key, value in table.items():
            name = key.replace("-", "_")
            name = f"{name}_s" if f"{name}_s" in cls.model_fields else name
            if name in settings:
                raise ConfigError(f"{label(name)}: is there twice, by two spellings")
            settings[name] = value
        return cls(**settings)

    def given(self) -> dict[str, Any]:
        """The settings that were named when this was made, and are no defaults."""
        return self.model_dump(exclude_unset=True)


def label(name: str) -> str:
    """A setting's name as errors and flags spell it."""
    return repr(name.removesuffix("_s").replace("_", "-"))[1:-1]


def allowed(info: FieldInfo) -> str:
    """What a setting may be: `1..64`, `mask, precise`, `0 or more`; empty if it says so itself."""
    if get_origin(info.annotation) is Literal:
        return ", ".join(get_args(info.annotation))
    if info.annotation is bool:
        return "true, false"
    least = next((bound.ge for bound in info.metadata if isinstance(bound, Ge)), None)
    above = next((bound.gt for bound in info.metadata if isinstance(bound, Gt)), None)
    most = next((bound.le for bound in info.metadata if isinstance(bound, Le)), None)
    if above is not None:
        return f"above {above}, at most {most}"
    if least is not None:
        return f"{least} or more" if most is None else f"{least}..{most}"
    return ""


def _complaint(info: FieldInfo) -> str:
    bounds = allowed(info)
    relation = "one of " if ", " in bounds and "above" not in bounds else ""
    return f"is not {relation}{'in ' if '..' in bounds else ''}{bounds}"


def shown(value: Any) -> str:
    """A bad value, short and on one line; a number that came as text looks like a number."""
    is_number = isinstance(value, str) and value.replace(".", "", 1).removeprefix("-").isdigit()
    text = str(value) if is_number else repr(value)
    return text if len(text) <= VALUE_SHOWN_MAX else f"{text[: VALUE_SHOWN_MAX - 3]}..."


def _in_one_line(model: type[Config], error: ErrorDetails) -> str:
    if not error["loc"]:  # a check of several settings together, which names them itself
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        key = repr(name[:VALUE_SHOWN_MAX])[1:-1]
        return f"{key}: no such setting; allowed are {', '.join(model.model_fields)}"
    if error["type"] == "value_error":
        complaint = str(error["ctx"]["error"])
    else:
        complaint = _complaint(model.model_fields[name])
    return f"{label(name)}: {shown(error['input'])} {complaint}"


def size_of(written: str) -> int | None:
    """Bytes of a size as fio has it: 512, 4k, 1m, 2G; None if it is none."""
    match = re.fullmatch(r"([0-9]{1,12})([kmg]?)", written.strip().lower())
    return int(match[1]) * UNITS[match[2]] if match else None


def size_text(nbytes: int) -> str:
    """A size in bytes as people write it: 512, 4k, 1m."""
    for unit in ("g", "m", "k"):
        if nbytes and nbytes % UNITS[unit] == 0:
            return f"{nbytes // UNITS[unit]}{unit}"
    return str(nbytes)


class LoadSpec(Config):
    """A load. bs in bytes (or text: 512, 4k, 1m); ios for each disk; None is no limit; fsync: a
    flush after every so many writes, 0 for none.

    verify: compare every read with what was last written there. It runs on every disk, or on those
    of vdev and domid (each one or several) alone; or as several jobs at once, which have from here
    what they do not say themselves. Raises ConfigError.
    """

    rw: Literal["read", "write", "rw", "trim", "randread", "randwrite", "randrw", "randtrim"] = (
        "randrw"
    )
    rwmixread: int = Field(70, ge=0, le=100)
    bs: int = 4096
    iodepth: int = Field(32, ge=1, le=256)
    ios: int | None = Field(None, ge=1, le=10**12)
    runtime_s: float | None = Field(
        default_factory=lambda settings: RUNTIME_DEFAULT_S if settings.get("ios") is None else None,
        gt=0,
        le=1_000_000,
    )
    seed: int = Field(1, ge=0)
    fsync: int = Field(0, ge=0, le=10**9)
    verify: StrictBool = True
    vdev: tuple[str, ...] = ()
    domid: tuple[int, ...] = ()
    job: tuple["LoadSpec", ...] = ()

    @property
    def jobs(self) -> tuple["LoadSpec", ...]:
        """What runs: its jobs, or itself."""
        return self.job or (self,)

    @property
    def writes(self) -> bool:
        """Does it write?"""
        return self.rw not in ("read", "randread")

    @property
    def buffer_mib(self) -> int:
        """The RAM that a disk's I/O buffers take, in MiB: whole pages for each I/O in flight."""
        if self.job:
            return max(job.buffer_mib for job in self.job)
        pages = self.iodepth * -(-self.bs // XEN_PAGE_SIZE)
        return -(-pages * XEN_PAGE_SIZE // (1 << 20))

    @field_validator("bs", mode="before")
    @classmethod
    def _size_in_bytes(cls, value: Any) -> int:
        if isinstance(value, str):
            value = size_of(value)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or not SECTOR_SIZE <= value <= BS_MAX or value % SECTOR_SIZE:
            raise ValueError(f"is not a multiple of {SECTOR_SIZE} in {SECTOR_SIZE}..1m")
        return int(value)

    @field_validator("vdev", "domid", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any, info: ValidationInfo) -> tuple[Any, ...]:
        found = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        allowed = VDEVS if info.field_name == "vdev" else range(1, GUESTS_MAX + 1)
        if bad := [one for one in found if isinstance(one, bool) or one not in allowed]:
            limits = f"{allowed[0]}..{allowed[-1]}"
            raise ConfigError(f"{info.field_name}: {shown(bad[0])} is not in {limits}")
        return found

    @model_validator(mode="before")
    @classmethod
    def _jobs_have_what_they_do_not_say(cls, settings: dict[str, Any]) -> dict[str, Any]:
        jobs = settings.get("job", ())
        if not isinstance(jobs, (list, tuple)):
            raise ConfigError(f"job: {shown(jobs)} is not a list of tables")
        if jobs and (alone := {"vdev", "domid"} & set(settings)):
            raise ConfigError(f"{min(alone)}: is for a load of no jobs, or for a job")
        common = {name: settings[name] for name in settings if name != "job"}
        return {**settings, "job": tuple(cls._job(common, job) for job in jobs)}

    @classmethod
    def _job(cls, common: dict[str, Any], job: Any) -> Self:
        if isinstance(job, cls):
            job = job.given()
        if not isinstance(job, dict) or job.get("job"):
            raise ConfigError(f"job: {shown(job)} is not a table without jobs of its own")
        try:
            return cls.from_table({**common, **job})
        except ConfigError as error:
            raise ConfigError(f"job: {error}") from None

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.ios is None and self.runtime_s is None:
            raise ValueError("runtime: None needs ios, or the load would never end")
        return self
