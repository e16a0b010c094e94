"""A snapshot as plain values, and back: for who asks a machine from another process.

Owns: the form: an array is its shape and its bytes, whose dtype both ends know by name.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from common.counters import (
    BACKEND_COUNTERS,
    CPU_COUNTERS,
    FRONTEND_COUNTERS,
    HYPERVISOR_COUNTERS,
)
from toolstack.snapshot import Snapshot

# By guest.
BLOCKS: Final[dict[str, Any]] = {
    "frontend": FRONTEND_COUNTERS,
    "backend": BACKEND_COUNTERS,
    "hypervisor": HYPERVISOR_COUNTERS,
    "latency": np.dtype("<u8"),
}


def to_plain(snapshot: Snapshot) -> dict[str, Any]:
    """What `from_plain` takes."""
    return {
        **{name: _packed(getattr(snapshot, name)) for name in BLOCKS},
        "at_s": snapshot.at_s,
        "cpus": snapshot.cpus.tobytes(),
        "host_tlb_shootdowns": snapshot.host_tlb_shootdowns,
        "cpu_seconds": snapshot.cpu_seconds,
        "suspects": sorted(snapshot.suspects),
    }


def from_plain(plain: Mapping[str, Any]) -> Snapshot:
    """The snapshot that was made plain. Raises ValueError, KeyError, TypeError if it was none."""
    blocks = {name: _unpacked(plain[name], dtype) for name, dtype in BLOCKS.items()}
    return Snapshot(
        **blocks,
        at_s=float(plain["at_s"]),
        cpus=np.frombuffer(plain["cpus"], CPU_COUNTERS),
        host_tlb_shootdowns=plain["host_tlb_shootdowns"],
        cpu_seconds=float(plain["cpu_seconds"]),
        suspects=frozenset(plain["suspects"]),
    )


def _packed(blocks: Mapping[int, np.ndarray]) -> list[tuple[int, tuple[int, ...], bytes]]:
    return [(domid, rows.shape, rows.tobytes()) for domid, rows in blocks.items()]


def _unpacked(
    packed: list[tuple[int, list[int], bytes]], dtype: np.dtype[Any]
) -> dict[int, np.ndarray]:
    return {domid: np.frombuffer(raw, dtype).reshape(shape) for domid, shape, raw in packed}
