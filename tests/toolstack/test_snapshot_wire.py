"""A snapshot goes over a wire, and is the same."""

from dataclasses import fields

import msgpack
import numpy as np

from common.counters import (
    BACKEND_COUNTERS,
    CPU_COUNTERS,
    FRONTEND_COUNTERS,
    HYPERVISOR_COUNTERS,
)
from toolstack.snapshot import Snapshot, difference, only
from toolstack.snapshot_wire import from_plain, to_plain


def filled(dtype: np.dtype[np.void], rows: int, first: int) -> np.ndarray:
    names = dtype.names or ()
    flat = np.arange(first, first + rows * len(names), dtype=np.uint64)
    return np.frombuffer(flat.tobytes(), dtype).copy()


def snapshot(at_s: float = 1.5, first: int = 0) -> Snapshot:
    disks = {1: 2, 2: 1, 7: 3}
    return Snapshot(
        at_s=at_s,
        frontend={d: filled(FRONTEND_COUNTERS, n, first + d) for d, n in disks.items()},
        backend={d: filled(BACKEND_COUNTERS, n, first + 10 * d) for d, n in disks.items()},
        hypervisor={d: filled(HYPERVISOR_COUNTERS, 1, first + 20 * d) for d in disks},
        latency={d: np.arange(n * 15, dtype=np.uint64).reshape(n, 3, 5) for d, n in disks.items()},
        cpus=filled(CPU_COUNTERS, 4, first),
        host_tlb_shootdowns=None if first else 12,
        cpu_seconds=2.25,
        suspects=frozenset({7}),
    )


def same(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other


def test_it_is_the_same_on_the_other_side() -> None:
    for sent in (snapshot(), snapshot(3.0, 100)):
        got = from_plain(msgpack.unpackb(msgpack.packb(to_plain(sent))))
        for field in fields(Snapshot):
            assert same(getattr(got, field.name), getattr(sent, field.name)), field.name


def test_what_has_come_can_be_reckoned_with() -> None:
    before, after = (from_plain(to_plain(snapshot(at_s, 0))) for at_s in (1.0, 4.0))
    change = difference(after, before)
    assert change.at_s == 3.0
    assert not change.frontend[1]["ios"].any()


def test_only_some_disks_are_counted() -> None:
    whole = snapshot()
    part = only(whole, [(1, 1), (7, 0)])
    assert part.frontend[1][1] == whole.frontend[1][1]
    assert part.backend[7][0] == whole.backend[7][0]
    assert not part.frontend[1][0]["ios"] and not part.frontend[7][2]["ios"]
    assert not part.frontend[2]["requests"].any() and not part.latency[2].any()
    assert np.array_equal(part.latency[7][0], whole.latency[7][0])
    # A guest's own counts are of all its disks; who has none of them here has none.
    assert np.array_equal(part.hypervisor[1], whole.hypervisor[1])
    assert not part.hypervisor[2]["flushes"].any()
    assert np.array_equal(part.cpus, whole.cpus)
    assert whole.frontend[2]["requests"].any()  # which is as it was
