"""What a process holds at a moment: memory of its own, descriptors, mappings.

Owns: where Linux says so. Memory is RssAnon: heap, stacks and private pages that are there. What is
shared with guests is theirs, reserved when they are made, and not counted.
"""

import os
import resource
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

ENDLESS: Final = ("hypervisor", "xenstored", "dom0")  # who must outlive every guest
TOOLSTACK: Final = "toolstack"


class Footprint(NamedTuple):
    """memory: bytes; descriptors, mappings: how many."""

    memory: int
    descriptors: int
    mappings: int


def footprint(pid: int) -> Footprint:
    """Of a living process. Raises OSError if there is none."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    with open(f"/proc/{pid}/maps") as file:
        mappings = sum(1 for _ in file)
    memory = int(fields["RssAnon"].split()[0]) * 1024
    return Footprint(memory, len(os.listdir(f"/proc/{pid}/fd")), mappings)


def footprints(pids: Mapping[str, int]) -> dict[str, Footprint]:
    """Of the processes ENDLESS of a machine, and of the toolstack's, which this is."""
    found = {name: footprint(pids[name]) for name in ENDLESS}
    return {**found, TOOLSTACK: footprint(os.getpid())}


def highest(seen: Iterable[Footprint]) -> Footprint:
    """The most of each."""
    return Footprint(*map(max, zip(*seen, strict=True)))


def limit_descriptors(pid: int, limit: int) -> None:
    """Allow a running process so many descriptors, and no more."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, limit))
