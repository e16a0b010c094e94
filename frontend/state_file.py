"""The state file of a disk: what a `journal` keeps of it, where it outlives everybody.

Owns: the layout: a header, which says what disk it is of, and the two arrays. The toolstack makes
it and opens it (`toolstack/verify_state.py`); the guest maps it and counts there as it goes, so
that the file is right whoever is killed. How long it is, and what is in the header, is believed by
nobody who has not looked.
"""

from typing import Final

import numpy as np

from common.abi import XEN_PAGE_SIZE

MAGIC: Final = b"grantlab"
FORMAT: Final = 1
HEADER_BYTES: Final = XEN_PAGE_SIZE
VERSION_BYTES: Final = 4

STATE_HEADER: Final = np.dtype(
    [
        ("magic", "S8"),
        ("format", "<u4"),
        ("domid", "<u4"),
        ("disk", "<u4"),  # its number in the guest
        ("device", "<u4"),
        ("name", "<u4"),  # `pattern.disk_name`: what is written says it is of
        ("pad", "<u4"),
        ("nr_sectors", "<u8"),
        ("target", "S256"),
    ]
)


def state_bytes(nr_sectors: int) -> int:
    """How long the file of such a disk is."""
    return HEADER_BYTES + 2 * VERSION_BYTES * nr_sectors


def state_arrays(state: np.ndarray, nr_sectors: int) -> tuple[np.ndarray, np.ndarray]:
    """`flushed` and `issued` (u32 a sector) of a file that is mapped, u8. Raises ValueError if it
    is not that of so many sectors."""
    if len(state) != state_bytes(nr_sectors):
        raise ValueError(f"its state file has {len(state)} bytes, and is none of {nr_sectors}")
    flushed, issued = state[HEADER_BYTES:].view(np.uint32).reshape(2, nr_sectors)
    return flushed, issued
