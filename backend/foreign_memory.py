"""dom0's address space: a granted frame is really mapped into it, and really unmapped.

Owns: a range of host addresses set aside for foreign pages (Linux: ballooned pages), in slots of
one page. A map puts one frame of a guest's RAM into its slot (`mmap`, MAP_FIXED); an unmap puts
nothing back in its place (PROT_NONE), which drops the page and, if it was touched, shoots down the
TLBs of dom0's other threads, exactly as `munmap` would, but leaves the slot ours: after a plain
`munmap` another thread's allocation could settle there, and the next MAP_FIXED would destroy it.

The calls go to the C library from compiled code: one compiled call a batch, no GIL.
"""

import ctypes
import mmap
from typing import Final

import numpy as np
from numba import types

from common.abi import GNTMAP_READONLY, GNTST_OKAY, XEN_PAGE_SIZE
from common.compiled import kernel
from common.copying import byte_view

MAP_FIXED: Final = 0x10
MAP_NORESERVE: Final = 0x4000
PROT_NONE: Final = 0
PROT_READ: Final = int(mmap.PROT_READ)
PROT_WRITE: Final = int(mmap.PROT_WRITE)
FRAME: Final = int(mmap.MAP_SHARED) | MAP_FIXED
NOTHING: Final = int(mmap.MAP_PRIVATE) | int(mmap.MAP_ANONYMOUS) | MAP_FIXED | MAP_NORESERVE

_mmap = types.ExternalFunction(
    "mmap",
    types.uintp(types.uintp, types.uintp, types.intc, types.intc, types.intc, types.int64),
)


@kernel
def map_granted(fd: int, ops: np.ndarray, first: int, end: int) -> int:
    """Map each granted one of `ops[first:end]` at its host_addr; returns how many failed.

    fd: the RAM of the domain all of them name; ops: GNTTAB_MAP_GRANT_REF, after the hypercall.
    """
    failed = 0
    for index in range(first, end):
        op = ops[index]
        if op.status != GNTST_OKAY:
            continue
        protection = PROT_READ if op.flags & GNTMAP_READONLY else PROT_READ | PROT_WRITE
        address = _mmap(
            np.uint64(op.host_addr),
            np.uint64(XEN_PAGE_SIZE),
            np.int32(protection),
            np.int32(FRAME),
            np.int32(fd),
            np.int64(op.dev_bus_addr),
        )
        failed += np.uint64(address) != np.uint64(op.host_addr)
    return failed


@kernel
def unmap_slots(ops: np.ndarray, count: int) -> int:
    """Empty the slots of `count` unmap `ops`; returns how many failed.

    To be called before the unmap hypercall: once that returns, the guest may reuse the page.
    """
    failed = 0
    for index in range(count):
        host_addr = np.uint64(ops[index].host_addr)
        address = _mmap(
            host_addr,
            np.uint64(XEN_PAGE_SIZE),
            np.int32(PROT_NONE),
            np.int32(NOTHING),
            np.int32(-1),
            np.int64(0),
        )
        failed += np.uint64(address) != host_addr
    return failed


class Balloon:
    """`nr_slots` page-sized host addresses, empty: touching one is a fault."""

    def __init__(self, nr_slots: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._libc = libc
        self.nr_slots = nr_slots
        address = libc.mmap(None, nr_slots * XEN_PAGE_SIZE, PROT_NONE, NOTHING & ~MAP_FIXED, -1, 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"cannot set {nr_slots} pages of addresses aside")
        self.address = int(address)

    def page_table(self) -> np.ndarray:
        """Where each slot's bytes are reached (u64): at its host address, here."""
        offsets = np.arange(self.nr_slots, dtype=np.uint64) * np.uint64(XEN_PAGE_SIZE)
        return np.uint64(self.address) + offsets

    def view(self, slot: int) -> np.ndarray:
        """The mapped page in `slot`, u8, shape (4096,). Dangles once the slot is emptied."""
        return byte_view(self.address + slot * XEN_PAGE_SIZE, XEN_PAGE_SIZE)

    def close(self) -> None:
        """Give all slots up."""
        self._libc.munmap(self.address, self.nr_slots * XEN_PAGE_SIZE)
