"""What is counted has one name, one word, and a place in the results."""

import numpy as np
import pytest

from common.counters import (
    BACKEND_COUNTERS,
    CPU_COUNTERS,
    FRONTEND_COUNTERS,
    HYPERVISOR_COUNTERS,
    LEVELS,
)

BLOCKS = [FRONTEND_COUNTERS, BACKEND_COUNTERS, HYPERVISOR_COUNTERS, CPU_COUNTERS]

# What the result format wants summed over a run.
RESULTS = {
    "grants_issued",
    "grants_ended",
    "map_ops",
    "unmap_ops",
    "copy_ops",
    "hypercalls",
    "flushes",
    "flush_entries",
    "flush_lock_waits",
    "ipis",
    "notify_to_back",
    "notify_to_front",
    "bytes_copied_by_guest",
    "persistent_max",
    "overflow_segments",
}


def names(block: np.dtype) -> tuple[str, ...]:
    assert block.names is not None
    return block.names


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_is_naturally_aligned_u64_words_and_nothing_else(block: np.dtype) -> None:
    assert block.fields is not None
    assert [(kind, at) for kind, at, *_ in block.fields.values()] == [
        (np.dtype("<u8"), 8 * index) for index in range(len(block.fields))
    ]
    assert block.itemsize == 8 * len(block.fields)


def test_all_that_the_result_format_names_is_counted_somewhere() -> None:
    assert {name for block in BLOCKS for name in names(block)} >= RESULTS


def test_levels_are_counters_that_exist() -> None:
    assert set(names(BACKEND_COUNTERS) + names(HYPERVISOR_COUNTERS)) >= LEVELS
