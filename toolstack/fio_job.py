"""fio's job files: what a file asks for, as loads that run one after the other.

Owns: the form of the file (sections, what they have from [global], comments, `${VAR}`), and what
becomes of several sections. What each option means is `toolstack/fio_options.py`'s.
Rules
1. An option that is not known is one ConfigError with its name and its line; one that makes no
   difference here is named once, in a warning.
2. A file's name that is no disk's stands for a disk, the first that no other name has, as fio would
   make the file. A job with no filename has all disks, as the only one of its stage; of several
   each has a disk of its own, in their order, likewise.
3. `stonewall` begins a new stage: a load that runs when the one before it has ended.
4. `numjobs` clones are one load of so many times the depth: a disk has one load at a time, in which
   no two I/Os touch the same block.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from toolstack.config import ConfigError, shown
from toolstack.fio_options import Said, meaning
from toolstack.load_fields import VDEVS

GLOBAL: Final = "global"
BYTES_MAX: Final = 1 << 20
VARIABLE: Final = re.compile(r"\$\{([^}]*)\}")
SECTION: Final = re.compile(r"\[(.+)\]")


class Section(NamedTuple):
    """A job: its name, the line it begins in, and its options, [global]'s first."""

    name: str
    line: int
    said: list[Said]


class JobFile(NamedTuple):
    """stages: loads that run one after the other; no_effect: options that make no difference."""

    stages: list[Any]
    no_effect: list[str]


def read_job_file(path: str | Path, load: Callable[..., Any]) -> JobFile:
    """What the file asks for. load: makes one of settings: LoadSpec. Raises ConfigError, naming the
    file and the line."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read(BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"job: '{path}' cannot be read: {error.strerror}") from None
    if len(text) > BYTES_MAX:
        raise ConfigError(f"job: '{path}' has more than {BYTES_MAX >> 20} MiB")
    try:
        return _job_file(text, load)
    except _BadLine as error:
        raise ConfigError(f"job: '{path}', line {error.line}: {error.why}") from None
    except ConfigError as error:
        raise ConfigError(f"job: '{path}': {error}") from None


class _BadLine(Exception):
    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line, self.why = line, why


def sections(text: str) -> list[Section]:
    """The jobs of a file, with all that is said of each."""
    common: list[Said] = []
    jobs: list[Section] = []
    here: list[Said] | None = None
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            match = SECTION.fullmatch(re.split(r"\s[;#]", line)[0].strip())
            if match is None:
                raise _BadLine(number, f"{shown(line)} is no [section]")
            here = common
            if match[1].lower() != GLOBAL:
                jobs.append(Section(match[1], number, list(common)))
                here = jobs[-1].said
            continue
        if here is None:
            raise _BadLine(number, f"{shown(line)} stands before any [section]")
        here.append(_said(number, line))
    return jobs


def _said(number: int, line: str) -> Said:
    name, is_given, value = line.partition("=")
    value = re.split(r"\s[;#]", f" {value}")[0].strip()
    value = VARIABLE.sub(lambda match: os.environ.get(match[1], ""), value)
    if line.split(maxsplit=1)[0] == "include":
        raise _BadLine(number, "include: job files are read by themselves here")
    return Said(number, re.split(r"\s[;#]", name)[0].strip().lower(), value if is_given else "")


def _job_file(text: str, load: Callable[..., Any]) -> JobFile:
    jobs = sections(text)
    if not jobs:
        raise ConfigError("there is no [job] in it")
    no_effect: list[str] = []
    stages: list[Jobs] = [[]]
    for job in jobs:
        settings: dict[str, Any] = {"name": job.name}
        walls = False
        for said in job.said:
            try:
                found = meaning(said, settings)
            except ValueError as error:
                raise _BadLine(said.line, f"{said.name}: {error}") from None
            walls = settings.pop("stonewall", walls)
            if not found and said.name not in no_effect:
                no_effect.append(said.name)
        if walls and stages[-1]:
            stages.append([])
        stages[-1].append((job, settings))
    _share_disks_out(stages)
    return JobFile([_stage(stage, load) for stage in stages], no_effect)


Jobs = list[tuple[Section, dict[str, Any]]]


def _share_disks_out(stages: list[Jobs]) -> None:
    """Say of each job which disks it has, if those are not all."""
    every = [
        names for jobs in stages for _, settings in jobs for names in settings.get("filename", ())
    ]
    disk_of = {name: name for name in every if name in VDEVS}
    free = [vdev for vdev in VDEVS if vdev not in disk_of]
    for jobs in stages:
        for job, settings in jobs:
            names = settings.pop("filename", ())
            if any(name not in disk_of and not free for name in names):
                raise _BadLine(job.line, f"[{job.name}]: there are {len(VDEVS)} disks at most")
            for name in names:
                if name not in disk_of:
                    disk_of[name] = free.pop(0)
            if names:
                settings["vdev"] = tuple(disk_of[name] for name in names)
    for jobs in stages:
        taken = {vdev for _, settings in jobs for vdev in settings.get("vdev", ())}
        free = [vdev for vdev in VDEVS if vdev not in taken]
        for job, settings in jobs:
            if len(jobs) > 1 and "vdev" not in settings:
                if not free:
                    raise _BadLine(job.line, f"[{job.name}]: there are {len(VDEVS)} disks at most")
                settings["vdev"] = (free.pop(0),)


def _stage(jobs: Jobs, load: Callable[..., Any]) -> Any:
    """Those that run at once."""
    specs = [_spec(job, settings, load) for job, settings in jobs]
    return specs[0] if len(specs) == 1 else load(job=tuple(specs))


def _spec(job: Section, settings: dict[str, Any], load: Callable[..., Any]) -> Any:
    """One job's load, with fio's defaults where it says nothing."""
    clones = settings.pop("numjobs", 1)
    settings["iodepth"] = settings.get("iodepth", 1) * clones
    ends = settings.get("size") is None and not settings.get("time_based")
    if ends and "replay" not in settings:
        settings["loops"] = settings.get("loops", 1)  # as much as the disk has
    settings.setdefault("runtime_s", None)
    try:
        if settings["iodepth"] > 256:
            raise ConfigError(f"iodepth x numjobs: {settings['iodepth']} is not in 1..256")
        if clones > 1 and "loops" in settings:
            settings["loops"] *= clones
        elif clones > 1 and "size" in settings and not settings.get("time_based"):
            settings["loops"] = clones
        return load(**{**DEFAULTS, **settings})
    except ConfigError as error:
        raise _BadLine(job.line, f"[{job.name}]: {error}") from None


DEFAULTS: Final[dict[str, Any]] = {"rw": "read", "rwmixread": 50, "verify": False}
