"""What machine to build, checked before anything starts.

Owns: the settings of a machine, their bounds, defaults and presets; the config file.
Rule: a bad setting is a ConfigError (`toolstack/loadspec.py`), and nothing has been started.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StrictBool, model_validator

from common.abi import BLKIF_MAX_PERSISTENT_GRANTS
from toolstack.loadspec import Config, ConfigError, LoadSpec, shown, size_text

# blkback's own mappings besides those it keeps: a full ring in flight, and the ring's page.
MAPPINGS_PER_RING: Final = BLKIF_MAX_PERSISTENT_GRANTS + 1
# What a process with Python, Numba and a thread for each ring maps anyway, with room to spare.
MAPPINGS_RESERVED: Final = 4096
MAX_MAP_COUNT_PATH: Final = Path("/proc/sys/vm/max_map_count")

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


class Settings(Config):
    """A machine: so many guests with a disk each, one dom0, one hypervisor.

    persistent, backend_persistent: whether the frontends and the backend announce
    feature-persistent. grant_copy: the backend has the hypervisor copy, and maps nothing.
    max_persistent_grants: Linux blkback's module parameter, for each ring. disk_mib, buffer_mib:
    each guest's disk, and the RAM its I/O buffers lie in.
    Raises ConfigError.
    """

    preset: Literal["2012", "today"] = "today"  # first: the defaults below look at it
    guests: int = Field(4, ge=1, le=64)
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
    buffer_mib: int = Field(8, ge=1, le=256)
    seed: int = Field(1, ge=0)

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
        """How many of the machine's threads may want a CPU at once: a guest's and its ring's, and
        the hypervisor's where requests make hypercalls."""
        return 2 * self.guests + (self.mode != "persistent")

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

    @classmethod
    def buffers_for(cls, spec: LoadSpec, given: int | None) -> int:
        """The I/O buffers to give each guest for a load, in MiB; `given`: what the user asked for.

        Raises ConfigError if that is too little.
        """
        if given is None:
            return max(int(cls.model_fields["buffer_mib"].default), spec.buffer_mib)
        if given < spec.buffer_mib:
            raise ConfigError(
                f"buffer-mib: {given} is too small for iodepth {spec.iodepth} of"
                f" bs {size_text(spec.bs)}, which take {spec.buffer_mib}"
            )
        return given

    @model_validator(mode="after")
    def _is_one_of_the_modes(self) -> Self:
        if self.grant_copy and (self.persistent or self.backend_persistent):
            raise ValueError(
                "grant-copy: true needs persistent and backend-persistent to be false:"
                " who maps nothing keeps nothing mapped"
            )
        return self

    @model_validator(mode="after")
    def _fits_in_the_host(self) -> Self:
        """Every granted page that dom0 maps is a mapping of its own to the host's kernel."""
        kept = self.max_persistent_grants if self.mode == "persistent" else 0
        needed = self.guests * (kept + MAPPINGS_PER_RING) + MAPPINGS_RESERVED
        limit = max_map_count()
        if limit is not None and needed > limit:
            raise ValueError(
                f"max-persistent-grants: {kept} for each of {self.guests} guests may need"
                f" {needed} mappings in dom0, and this host allows {limit} to a process;"
                " lower either, or raise the host's vm.max_map_count"
            )
        return self


def _check_tables(tables: dict[str, Any]) -> None:
    for name, table in tables.items():
        if name not in ("topology", "load"):
            raise ConfigError(f"{shown(name)}: no such table; allowed are [topology], [load]")
        if not isinstance(table, dict):
            raise ConfigError(f"{name}: {shown(table)} is not a table")


def max_map_count(path: Path = MAX_MAP_COUNT_PATH) -> int | None:
    """How many mappings the host's kernel allows a process (vm.max_map_count); None if unknown."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
