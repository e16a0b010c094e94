"""What a guest's process is told when it is built, by the toolstack.

Owns: the fields, as they go over the fork server's wire.
"""

from dataclasses import dataclass

from common.wakeups import Events


@dataclass(frozen=True)
class GuestConfig:
    """What a guest is told when it is built.

    disks: their device numbers, by disk number; fresh: which of them nobody has written to yet;
    kept: which have a state file, whose descriptor follows those of the segments, in this order;
    buffer_frames: each disk's, for I/Os.
    """

    domid: int
    disks: list[int]
    fresh: list[bool]
    kept: list[bool]
    buffer_frames: int
    persistent: bool
    adaptive_spin: bool
    events: Events
    events_dir: str
    threads: int = 1  # see common/spinning.py
    places: int = 1  # disks that it has room for
