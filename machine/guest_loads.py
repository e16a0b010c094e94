"""The loads that run in a guest's process, each on disks of its own.

Owns: which load runs where, and when it has ended: once all of its disks are done, or have failed
and know why. The I/O is `frontend/driver.py`'s.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from common.control import CommandError
from frontend.driver import Driver
from frontend.load import Load, LoadPlan
from machine.guest_disk import GuestDisk

REST_TIMEOUT_S: Final = 30.0  # of a disk that has failed: until it knows why it is closed
LOOK_S: Final = 1.0


@dataclass
class _Running:
    """A load: its jobs by disk; those that failed, and until when their disks may take to rest."""

    jobs: dict[int, Load]
    failed: list[int] = field(default_factory=list)
    rest_by: float = 0.0


class GuestLoads:
    """Of a guest with these `disks`, whose rings `driver` runs."""

    def __init__(self, disks: Mapping[int, GuestDisk], driver: Driver) -> None:
        self._disks, self._driver = disks, driver
        self._loads: dict[int, _Running] = {}

    def __contains__(self, disk: GuestDisk) -> bool:
        """Does a load run on this disk?"""
        return any(disk.number in load.jobs for load in self._loads.values())

    def begin(self, number: int, plans: Mapping[int, LoadPlan]) -> None:
        """Load `number` begins on these disks. Raises CommandError, and then none has begun."""
        if number in self._loads:
            raise CommandError(f"load {number} runs already")
        for disk in plans:
            if self._disks[disk] in self:
                raise self._disks[disk].told("it has a load, and has one at a time")
        jobs = {disk: self._disks[disk].job(plan) for disk, plan in plans.items()}
        self._loads[number] = _Running(jobs)
        for disk, job in jobs.items():
            self._driver.begin(disk, job)

    def stop(self, number: int) -> None:
        """Let load `number` issue no more."""
        if number in self._loads:
            for job in self._loads[number].jobs.values():
                job.load["stop"] = 1

    def look_after_disks(self) -> None:
        """Give up disks whose backend broke the ring, and jobs whose disk is closed."""
        for number, why in self._driver.failed.items():
            if self._disks[number].vbd.usable:
                self._disks[number].give_up(why)
        for number in self._driver.running:
            if self._disks[number].goes_on() and not self._disks[number].vbd.usable:
                self._disks[number].give_up()
                self._driver.fail(number, "it is closed")

    def pause_s(self, timeout_s: float | None) -> float | None:
        """How long may be slept, of `timeout_s` (None: for ever)."""
        if not self._loads:
            return timeout_s
        return LOOK_S if timeout_s is None else min(timeout_s, LOOK_S)

    def ended(self) -> Iterator[tuple[int, str | None]]:
        """Each load that has ended, once, and why it failed, or None."""
        running = set(self._driver.running)
        for number, load in list(self._loads.items()):
            if running & load.jobs.keys():
                continue
            if not load.rest_by:
                load.rest_by = time.monotonic() + REST_TIMEOUT_S
                load.failed = [disk for disk in load.jobs if disk in self._driver.failed]
                for disk in load.jobs:
                    self._disks[disk].tell_of_flushes()
            failed = [self._disks[disk] for disk in load.failed]
            if all(disk.at_rest for disk in failed) or time.monotonic() > load.rest_by:
                del self._loads[number]
                yield number, "; ".join(disk.failure() for disk in failed) or None
