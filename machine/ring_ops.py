"""How a ring's page is mapped and unmapped: the structs of both hypercalls.

Owns: their form, the same in dom0's process and in the simulator.
"""

import numpy as np

from common import abi
from common.not_done import GNTST_UNFILLED


def map_ring_op(host_address: int, ring_ref: int, domid: int) -> np.ndarray:
    """GNTTABOP_map_grant_ref of a ring's page."""
    op = np.zeros(1, abi.GNTTAB_MAP_GRANT_REF)
    op["host_addr"], op["flags"] = host_address, abi.GNTMAP_HOST_MAP
    op["ref"], op["dom"], op["status"] = ring_ref, domid, GNTST_UNFILLED
    return op


def unmap_ring_op(mapped: np.ndarray) -> np.ndarray:
    """The GNTTABOP_unmap_grant_ref of what a map has `mapped`."""
    op = np.zeros(1, abi.GNTTAB_UNMAP_GRANT_REF)
    op["host_addr"], op["handle"] = mapped["host_addr"], mapped["handle"]
    op["status"] = GNTST_UNFILLED
    return op
