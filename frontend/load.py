"""The load a guest runs on its disk, its state: fio's random and sequential mixes, every read
verified. What it does with it is in `frontend/load_turn.py`; what only a load with a shape has
(fio's bssplit, random_distribution, rates, pauses, traces) is in `frontend/load_shape.py`.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from common.abi import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    SECTOR_SIZE,
)
from common.arena import Arena
from common.counters import OPERATIONS
from common.histogram import BUCKETS
from common.rows import Layout
from common.trace import TRACE
from frontend.blkfront_info import Blkfront
from frontend.journal import JOURNAL, Journal, no_journal
from frontend.load_state import (
    CLOCK_WORDS,
    DISTRIBUTIONS,
    LOAD_STATE,
    NO_END,
    REPLAY,
    SHARES,
    SIZES,
)
from frontend.ranks import zipf_of


@dataclass(frozen=True)
class LoadPlan:
    """What to do: fio's names. bs in bytes, the largest of all; ios and runtime_s None for no such
    limit; fsync: 0 for no flushes.

    offset, size: the region, in bytes or as "20%" of the disk; loops: how often as much as it has
    is done, 0 for no such limit. bssplit: for reads, then for the rest, (bytes, percent) of each
    size. rate_iops: likewise, 0 for none. ramp_s is not of runtime_s, nor is startdelay_s.
    replay: a trace is replayed: "", "timed" or "at once".
    """

    rw: str
    bs: int
    iodepth: int
    read_percent: int
    ios: int | None
    runtime_s: float | None
    seed: int
    verify: bool
    fsync: int = 0
    offset: int | str = 0
    size: int | str = "100%"
    loops: int = 0
    bssplit: tuple[tuple[tuple[int, float], ...], ...] = ()
    distribution: str = "random"
    skew: float = 0.0
    rate_iops: tuple[int, int] = (0, 0)
    thinktime_us: int = 0
    thinktime_blocks: int = 1
    startdelay_s: float = 0.0
    ramp_s: float = 0.0
    replay: str = ""

    @property
    def reads_of_100(self) -> int:
        """How many of a hundred I/Os are reads."""
        return {"read": 100, "write": 0, "trim": 0}.get(
            self.rw.removeprefix("rand"), self.read_percent
        )

    @property
    def is_shaped(self) -> bool:
        """Is it more than blocks of one size, one after the other, at any time?"""
        pauses = self.thinktime_us, self.startdelay_s, self.ramp_s, *self.rate_iops
        return bool(self.bssplit or self.replay or self.distribution != "random" or any(pauses))


class Load(NamedTuple):
    """load: LOAD_STATE (1,); versions: u32 a sector; busy: u8 a block, or a unit; idle: i32, the
    free I/Os, a stack; latency: u64, a histogram for each of OPERATIONS, one after the other;
    clock: i64 (CLOCK_WORDS,); journal: what outlives us; sizes: SIZES, of reads, then of the rest;
    trace: TRACE.
    """

    load: np.ndarray
    versions: np.ndarray
    busy: np.ndarray
    idle: np.ndarray
    latency: np.ndarray
    clock: np.ndarray
    journal: Journal
    sizes: np.ndarray
    trace: np.ndarray


LOAD: Final = Layout(
    Load,
    load=LOAD_STATE,
    versions=np.uint32,
    busy=np.uint8,
    idle=np.int32,
    latency=np.uint64,
    clock=np.int64,
    journal=JOURNAL,
    sizes=SIZES,
    trace=TRACE,
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
        arena.array(len(OPERATIONS) * BUCKETS, np.uint64),
        arena.array(CLOCK_WORDS, np.int64),
        no_journal(arena),
        arena.array(1, SIZES),
        arena.array(1, TRACE),
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
    trace: np.ndarray | None = None,
) -> Load:
    """A load on `dev`, whose first `iodepth` I/Os have buffers; `disk` (`pattern.disk_name`) tells
    its patterns apart. latency: u64, shape (len(OPERATIONS), BUCKETS); kept: of the disk, where it
    is; trace: TRACE, of a plan that replays one. Raises ValueError if it does not fit the disk.
    """
    state = arena.array(1, LOAD_STATE)
    first, region = region_of(plan, len(versions))
    state["counts"], state["real_time"] = 1, real_time
    state["random"] = (plan.seed * 0x9E3779B97F4A7C15 + disk * 0xD1B54A32D192ED03) & (2**64 - 1) | 1
    state["first_sector"], state["region"] = first, region
    state["block_sectors"] = state["unit_sectors"] = plan.bs // SECTOR_SIZE
    nr_blocks = region // (plan.bs // SECTOR_SIZE)
    state["nr_blocks"] = nr_blocks
    state["ios_left"] = NO_END if plan.ios is None else plan.ios
    begins_ns = now_ns + round((plan.startdelay_s + plan.ramp_s) * 1e9)
    state["deadline_ns"] = (
        NO_END if plan.runtime_s is None else begins_ns + round(plan.runtime_s * 1e9)
    )
    state["read_percent"] = plan.reads_of_100
    state["sequential"] = not plan.rw.startswith("rand")
    state["verify"], state["disk"], state["idle_ios"] = plan.verify, disk, plan.iodepth
    state["writes_as"] = BLKIF_OP_DISCARD if plan.rw.endswith("trim") else BLKIF_OP_WRITE
    state["fsync"] = plan.fsync
    sizes, trace = arena.array(1, SIZES), arena.array(1, TRACE) if trace is None else trace
    if plan.is_shaped:
        sizes = _shape(arena, state, plan, trace, now_ns)
    elif plan.loops:
        state["ios_left"] = min(state["ios_left"][0], nr_blocks * plan.loops)
    for io in range(plan.iodepth):
        dev.ios[io]["nr_sectors"] = plan.bs // SECTOR_SIZE
    idle = arena.array(plan.iodepth, np.int32)
    idle[:] = np.arange(plan.iodepth)[::-1]
    units = -(-region // int(state["unit_sectors"][0]))
    busy, clock = arena.array(units, np.uint8), arena.array(CLOCK_WORDS, np.int64)
    journal = kept or no_journal(arena)
    return Load(state, versions, busy, idle, latency.reshape(-1), clock, journal, sizes, trace)


def region_of(plan: LoadPlan, nr_sectors: int) -> tuple[int, int]:
    """The first sector of the plan's region on a disk of so many, and how many it has. Raises
    ValueError.
    """
    smallest = min((size for sizes in plan.bssplit for size, _ in sizes), default=plan.bs)
    unit = smallest // SECTOR_SIZE
    first = _sectors(plan.offset, nr_sectors)
    if isinstance(plan.offset, str):
        first -= first % unit
    if isinstance(plan.size, str):
        region = min(_sectors(plan.size, nr_sectors), nr_sectors - first)
    else:
        region = plan.size // SECTOR_SIZE
    if first + region > nr_sectors or region < plan.bs // SECTOR_SIZE:
        raise ValueError(
            f"offset {plan.offset} and size {plan.size} are no region of a disk of"
            f" {nr_sectors * SECTOR_SIZE} bytes with room for a block of {plan.bs}"
        )
    return first, region


def _sectors(said: int | str, nr_sectors: int) -> int:
    """Of bytes, or of a share of the disk."""
    if isinstance(said, str):
        return int(nr_sectors * float(said.removesuffix("%")) / 100)
    return said // SECTOR_SIZE


def _shape(
    arena: Arena, state: np.ndarray, plan: LoadPlan, trace: np.ndarray, now_ns: int
) -> np.ndarray:
    """What a load with a shape has besides; its SIZES. Raises ValueError."""
    state["shaped"] = 1
    sizes = _sizes(arena, state, plan)
    state["unit_sectors"] = np.gcd.reduce(sizes["sectors"])
    state["block_sectors"] = sizes["sectors"].min()
    state["nr_blocks"] = nr_blocks = int(state["region"][0]) // int(sizes["sectors"].min())
    state["spread"] = _spread(nr_blocks)
    state["distribution"] = DISTRIBUTIONS[plan.distribution]
    state["skew"] = plan.skew
    if plan.distribution == "zipf":
        state["from_first"], state["to_last"], state["sure"] = zipf_of(nr_blocks, plan.skew)
    state["began_ns"] = state["not_before_ns"] = now_ns + round(plan.startdelay_s * 1e9)
    state["ramped_ns"] = int(state["began_ns"][0]) + round(plan.ramp_s * 1e9)
    amount = int(state["region"][0]) * SECTOR_SIZE * plan.loops
    state["bytes_left"] = amount if plan.loops and not plan.replay else NO_END
    state["rate"] = plan.rate_iops
    state["think_ns"], state["think_ios"] = plan.thinktime_us * 1000, plan.thinktime_blocks
    state["loops_left"] = plan.loops or 1
    if plan.replay:
        _shape_of_trace(state, trace, plan.replay == "timed")
    return sizes


def _sizes(arena: Arena, state: np.ndarray, plan: LoadPlan) -> np.ndarray:
    """SIZES of a plan."""
    split = plan.bssplit or (((plan.bs, 100.0),),) * 2
    sizes = arena.array(sum(map(len, split)), SIZES)
    state["read_sizes"], at = len(split[0]), 0
    for of_operation in split:
        shares = np.cumsum([share for _, share in of_operation])
        for (size, _), below in zip(of_operation, shares / shares[-1], strict=True):
            sizes[at] = size // SECTOR_SIZE, round(below * SHARES)
            at += 1
    return sizes


def _spread(nr_blocks: int) -> int:
    """How far apart the places of two ranks are that follow each other: no place is left out."""
    spread = max(1, int(nr_blocks * 0.6180339887))
    while np.gcd(spread, nr_blocks) != 1:
        spread += 1
    return spread


def _shape_of_trace(state: np.ndarray, trace: np.ndarray, timed: bool) -> None:
    """Raises ValueError if an entry lies outside of the region."""
    ends = trace["sector"] + trace["nr_sectors"]
    if len(ends) == 0 or int(ends.max()) > int(state["region"][0]):
        raise ValueError(
            f"the trace needs {int(ends.max(initial=0)) * SECTOR_SIZE} bytes, and there are"
            f" {int(state['region'][0]) * SECTOR_SIZE}"
        )
    known = (BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_DISCARD, BLKIF_OP_FLUSH_DISKCACHE)
    assert np.isin(trace["operation"], known).all(), "an operation that no trace has"
    unit = np.gcd.reduce(np.concatenate([trace["sector"], trace["nr_sectors"]]))
    state["distribution"], state["timed"] = REPLAY, timed
    state["unit_sectors"] = max(1, int(unit))
