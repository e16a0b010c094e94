"""The load a guest runs on its disk, its state: fio's random and sequential mixes, every read
verified. What it does with it is in `frontend/load_turn.py`.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from common.abi import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_WRITE,
    SECTOR_SIZE,
)
from common.arena import Arena
from common.histogram import BUCKETS
from common.rows import Layout
from frontend.blkfront_info import Blkfront
from frontend.journal import JOURNAL, Journal, no_journal

BLOCK_TRIES: Final = 8  # a depth near the number of blocks finds most of them busy

# Words of `clock`; before them two of scratch.
NOW_NS: Final = 2
STALE: Final = 3  # NOW_NS is to be read anew
CLOCK_WORDS: Final = 4

LOAD_STATE: Final = np.dtype(
    [
        ("random", "<u8"),  # xorshift64* state, never 0
        ("next_block", "<u8"),
        ("nr_blocks", "<u8"),
        ("ios_left", "<u8"),
        ("deadline_ns", "<u8"),
        ("block_sectors", "<u4"),
        ("read_percent", "<u4"),
        ("sequential", "<u4"),
        ("verify", "<u4"),
        ("disk", "<u4"),
        ("idle_ios", "<u4"),
        ("stop", "<u4"),
        ("counts", "<u4"),  # 0: I/Os are queued, and looked at when they are done, by somebody else
        ("real_time", "<u4"),  # 0: the driver sets NOW_NS
        ("writes_as", "<u4"),  # what is not a read is a write, or a discard
        ("fsync", "<u4"),  # writes from one flush to the next; 0: there are none
        ("unflushed", "<u4"),  # writes since the last
        ("flushing", "<u4"),  # one is on its way
    ]
)


@dataclass(frozen=True)
class LoadPlan:
    """What to do: fio's names. bs in bytes; ios and runtime_s None for no such limit; fsync: 0 for
    no flushes."""

    rw: str
    bs: int
    iodepth: int
    read_percent: int
    ios: int | None
    runtime_s: float | None
    seed: int
    verify: bool
    fsync: int = 0

    @property
    def reads_of_100(self) -> int:
        """How many of a hundred I/Os are reads."""
        return {"read": 100, "write": 0, "trim": 0}.get(
            self.rw.removeprefix("rand"), self.read_percent
        )


class Load(NamedTuple):
    """load: LOAD_STATE (1,); versions: u32 a sector; busy: u8 a block; idle: i32, the free I/Os, a
    stack; latency: u64 (histogram.BUCKETS,); clock: i64 (CLOCK_WORDS,); journal: what outlives us.
    """

    load: np.ndarray
    versions: np.ndarray
    busy: np.ndarray
    idle: np.ndarray
    latency: np.ndarray
    clock: np.ndarray
    journal: Journal


LOAD: Final = Layout(
    Load,
    load=LOAD_STATE,
    versions=np.uint32,
    busy=np.uint8,
    idle=np.int32,
    latency=np.uint64,
    clock=np.int64,
    journal=JOURNAL,
)


def no_load(arena: Arena) -> Load:
    """For who queues I/Os itself: `run` is DONE when all that are queued are."""
    state = arena.array(1, LOAD_STATE)
    state["stop"], state["nr_blocks"], state["block_sectors"] = 1, 1, 1
    return Load(
        state,
        arena.array(1, np.uint32),
        arena.array(1, np.uint8),
        arena.array(1, np.int32),
        arena.array(BUCKETS, np.uint64),
        arena.array(CLOCK_WORDS, np.int64),
        no_journal(arena),
    )


def new_load(
    arena: Arena,
    plan: LoadPlan,
    dev: Blkfront,
    versions: np.ndarray,
    latency: np.ndarray,
    disk: int,
    now_ns: int,
    *,
    real_time: bool = True,
    kept: Journal | None = None,
) -> Load:
    """A load on `dev`, whose first `iodepth` I/Os have buffers; `disk` (`pattern.disk_name`) tells
    its patterns apart. kept: of the disk, where it is.
    """
    state = arena.array(1, LOAD_STATE)
    state["counts"], state["real_time"] = 1, real_time
    state["random"] = (plan.seed * 0x9E3779B97F4A7C15 + disk * 0xD1B54A32D192ED03) & (2**64 - 1) | 1
    state["block_sectors"] = plan.bs // SECTOR_SIZE
    state["nr_blocks"] = len(versions) // (plan.bs // SECTOR_SIZE)
    state["ios_left"] = 2**63 if plan.ios is None else plan.ios
    state["deadline_ns"] = 2**63 if plan.runtime_s is None else now_ns + plan.runtime_s * 1e9
    state["read_percent"] = plan.reads_of_100
    state["sequential"] = not plan.rw.startswith("rand")
    state["verify"], state["disk"], state["idle_ios"] = plan.verify, disk, plan.iodepth
    state["writes_as"] = BLKIF_OP_DISCARD if plan.rw.endswith("trim") else BLKIF_OP_WRITE
    state["fsync"] = plan.fsync
    for io in range(plan.iodepth):
        dev.ios[io]["nr_sectors"] = plan.bs // SECTOR_SIZE
    idle = arena.array(plan.iodepth, np.int32)
    idle[:] = np.arange(plan.iodepth)[::-1]
    busy, clock = (
        arena.array(int(state["nr_blocks"][0]), np.uint8),
        arena.array(CLOCK_WORDS, np.int64),
    )
    return Load(state, versions, busy, idle, latency, clock, kept or no_journal(arena))
