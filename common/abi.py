"""Byte layouts and constants of Xen's public headers, for x86-64, little-endian.

Owns: every dtype that crosses a domain boundary, and the numbers that go into it.
Rule: a layout's size is asserted beside it, so a wrong one cannot be imported.
Never knows: who reads or writes these bytes.

Sources: Xen's public `io/ring.h`, `io/blkif.h`, `grant_table.h`, `event_channel.h`, `xen.h`,
`io/xenbus.h`.
"""

from typing import Final

import numpy as np

XEN_PAGE_SIZE: Final = 4096
SECTOR_SIZE: Final = 512  # blkif counts in these, whatever the disk's own sector size
SECTORS_PER_PAGE: Final = XEN_PAGE_SIZE // SECTOR_SIZE

DOMID_0: Final = 0
DOMID_FIRST_RESERVED: Final = 0x7FF0
DOMID_SELF: Final = 0x7FF0


def _layout(size: int, **fields: tuple[object, int]) -> np.dtype[np.void]:
    """A dtype from `name=(format, offset)`; its size must be the published one."""
    dtype = np.dtype(
        {
            "names": list(fields),
            "formats": [fmt for fmt, _ in fields.values()],
            "offsets": [offset for _, offset in fields.values()],
            "itemsize": size,
        }
    )
    assert dtype.itemsize == size
    return dtype


# --- io/blkif.h -------------------------------------------------------------------------------

BLKIF_OP_READ: Final = 0
BLKIF_OP_WRITE: Final = 1
BLKIF_OP_WRITE_BARRIER: Final = 2
BLKIF_OP_FLUSH_DISKCACHE: Final = 3
BLKIF_OP_DISCARD: Final = 5
BLKIF_DISCARD_SECURE: Final = 1  # of a discard's `flag`
BLKIF_OP_INDIRECT: Final = 6

BLKIF_RSP_OKAY: Final = 0
BLKIF_RSP_ERROR: Final = -1
BLKIF_RSP_EOPNOTSUPP: Final = -2

VDISK_READONLY: Final = 4  # of the backend's `info`

BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
BLKIF_MAX_SECTORS_PER_REQUEST: Final = BLKIF_MAX_SEGMENTS_PER_REQUEST * SECTORS_PER_PAGE

BLKIF_SEGMENT: Final = _layout(8, gref=("<u4", 0), first_sect=("u1", 4), last_sect=("u1", 5))

BLKIF_REQUEST: Final = _layout(
    112,
    operation=("u1", 0),
    nr_segments=("u1", 1),
    handle=("<u2", 2),
    id=("<u8", 8),
    sector_number=("<u8", 16),
    seg=((BLKIF_SEGMENT, (BLKIF_MAX_SEGMENTS_PER_REQUEST,)), 24),
)

BLKIF_REQUEST_DISCARD: Final = _layout(
    112,
    operation=("u1", 0),
    flag=("u1", 1),
    handle=("<u2", 2),
    id=("<u8", 8),
    sector_number=("<u8", 16),
    nr_sectors=("<u8", 24),
)

BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8

BLKIF_REQUEST_INDIRECT: Final = _layout(
    64,
    operation=("u1", 0),
    indirect_op=("u1", 1),
    nr_segments=("<u2", 2),
    id=("<u8", 8),
    sector_number=("<u8", 16),
    handle=("<u2", 24),
    indirect_grefs=(("<u4", (BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,)), 28),
)

BLKIF_RESPONSE: Final = _layout(16, id=("<u8", 0), operation=("u1", 8), status=("<i2", 10))

# --- io/ring.h --------------------------------------------------------------------------------

SRING_HEADER_SIZE: Final = 64

BLKIF_SRING_HEADER: Final = _layout(
    SRING_HEADER_SIZE,
    req_prod=("<u4", 0),
    req_event=("<u4", 4),
    rsp_prod=("<u4", 8),
    rsp_event=("<u4", 12),
)


def blkif_ring_size(pages: int) -> int:
    """Slots of a ring of `pages` pages: the largest power of two that fits (`__RD32` in ring.h).

    Raises ValueError unless `pages` is 1, 2, 4, 8 or 16.
    """
    if pages not in (1, 2, 4, 8, 16):
        raise ValueError(f"ring pages: {pages} is not one of 1, 2, 4, 8, 16")
    fit = (pages * XEN_PAGE_SIZE - SRING_HEADER_SIZE) // BLKIF_REQUEST.itemsize
    return 1 << (fit.bit_length() - 1)


BLKIF_RING_SIZE: Final = blkif_ring_size(1)
assert BLKIF_RING_SIZE == 32

# What blkback keeps mapped at most for one ring (Linux 0a8704a51f).
BLKIF_MAX_PERSISTENT_GRANTS: Final = BLKIF_RING_SIZE * BLKIF_MAX_SEGMENTS_PER_REQUEST
assert BLKIF_MAX_PERSISTENT_GRANTS == 352

# --- grant_table.h ----------------------------------------------------------------------------

GTF_INVALID: Final = 0
GTF_PERMIT_ACCESS: Final = 1
GTF_ACCEPT_TRANSFER: Final = 2
GTF_TYPE_MASK: Final = 3
GTF_READONLY: Final = 4
GTF_READING: Final = 8
GTF_WRITING: Final = 16

GNTTAB_NR_RESERVED_ENTRIES: Final = 8  # grefs 0-7 belong to the console, xenstore and firmware

GRANT_ENTRY_V1: Final = _layout(8, flags=("<u2", 0), domid=("<u2", 2), frame=("<u4", 4))
GRANT_ENTRIES_PER_FRAME: Final = XEN_PAGE_SIZE // GRANT_ENTRY_V1.itemsize
assert GRANT_ENTRIES_PER_FRAME == 512

GNTTABOP_MAP_GRANT_REF: Final = 0
GNTTABOP_UNMAP_GRANT_REF: Final = 1
GNTTABOP_SETUP_TABLE: Final = 2
GNTTABOP_COPY: Final = 5
GNTTABOP_QUERY_SIZE: Final = 6

GNTMAP_DEVICE_MAP: Final = 1
GNTMAP_HOST_MAP: Final = 2
GNTMAP_READONLY: Final = 4

GNTCOPY_SOURCE_GREF: Final = 1
GNTCOPY_DEST_GREF: Final = 2

GNTST_OKAY: Final = 0
GNTST_GENERAL_ERROR: Final = -1
GNTST_BAD_DOMAIN: Final = -2
GNTST_BAD_GNTREF: Final = -3
GNTST_BAD_HANDLE: Final = -4
GNTST_BAD_VIRT_ADDR: Final = -5
GNTST_BAD_DEV_ADDR: Final = -6
GNTST_NO_DEVICE_SPACE: Final = -7
GNTST_PERMISSION_DENIED: Final = -8
GNTST_BAD_PAGE: Final = -9
GNTST_BAD_COPY_ARG: Final = -10
GNTST_ADDRESS_TOO_BIG: Final = -11
GNTST_EAGAIN: Final = -12
GNTST_NO_SPACE: Final = -13

GNTTAB_MAP_GRANT_REF: Final = _layout(
    32,
    host_addr=("<u8", 0),
    flags=("<u4", 8),
    ref=("<u4", 12),
    dom=("<u2", 16),
    status=("<i2", 18),
    handle=("<u4", 20),
    dev_bus_addr=("<u8", 24),
)

GNTTAB_UNMAP_GRANT_REF: Final = _layout(
    24, host_addr=("<u8", 0), dev_bus_addr=("<u8", 8), handle=("<u4", 16), status=("<i2", 20)
)

# `u` is a union of a gref (u32) and a gmfn (xen_pfn_t, u64): read `ref` or `gmfn` by the flag.
GNTTAB_COPY_PTR: Final = _layout(
    16, ref=("<u4", 0), gmfn=("<u8", 0), domid=("<u2", 8), offset=("<u2", 10)
)
GNTTAB_COPY: Final = _layout(
    40,
    source=(GNTTAB_COPY_PTR, 0),
    dest=(GNTTAB_COPY_PTR, 16),
    len=("<u2", 32),
    flags=("<u2", 34),
    status=("<i2", 36),
)

GNTTAB_SETUP_TABLE: Final = _layout(
    24, dom=("<u2", 0), nr_frames=("<u4", 4), status=("<i2", 8), frame_list=("<u8", 16)
)

GNTTAB_QUERY_SIZE: Final = _layout(
    16, dom=("<u2", 0), nr_frames=("<u4", 4), max_nr_frames=("<u4", 8), status=("<i2", 12)
)

# --- event_channel.h --------------------------------------------------------------------------

EVTCHNOP_BIND_INTERDOMAIN: Final = 0
EVTCHNOP_CLOSE: Final = 3
EVTCHNOP_SEND: Final = 4
EVTCHNOP_STATUS: Final = 5
EVTCHNOP_ALLOC_UNBOUND: Final = 6
EVTCHNOP_UNMASK: Final = 9
EVTCHNOP_RESET: Final = 10

EVTCHNSTAT_CLOSED: Final = 0
EVTCHNSTAT_UNBOUND: Final = 1
EVTCHNSTAT_INTERDOMAIN: Final = 2

EVTCHN_2L_NR_CHANNELS: Final = 4096

EVTCHN_ALLOC_UNBOUND: Final = _layout(8, dom=("<u2", 0), remote_dom=("<u2", 2), port=("<u4", 4))
EVTCHN_BIND_INTERDOMAIN: Final = _layout(
    12, remote_dom=("<u2", 0), remote_port=("<u4", 4), local_port=("<u4", 8)
)
EVTCHN_CLOSE: Final = _layout(4, port=("<u4", 0))
EVTCHN_SEND: Final = _layout(4, port=("<u4", 0))
EVTCHN_UNMASK: Final = _layout(4, port=("<u4", 0))
EVTCHN_RESET: Final = _layout(2, dom=("<u2", 0))
# u.unbound.dom and u.interdomain.dom share offset 16; u.interdomain.port is at 20.
EVTCHN_STATUS: Final = _layout(
    24,
    dom=("<u2", 0),
    port=("<u4", 4),
    status=("<u4", 8),
    vcpu=("<u4", 12),
    remote_dom=("<u2", 16),
    remote_port=("<u4", 20),
)

# --- xen.h ------------------------------------------------------------------------------------

HYPERVISOR_GRANT_TABLE_OP: Final = 20
HYPERVISOR_EVENT_CHANNEL_OP: Final = 32
HYPERVISOR_DOMCTL: Final = 36

# shared_info: 32 vcpu_info of 64 bytes, then the two-level event words.
SHARED_INFO: Final = _layout(
    XEN_PAGE_SIZE, evtchn_pending=(("<u8", (64,)), 2048), evtchn_mask=(("<u8", (64,)), 2560)
)

# --- io/xenbus.h ------------------------------------------------------------------------------

XENBUS_STATE_UNKNOWN: Final = 0
XENBUS_STATE_INITIALISING: Final = 1
XENBUS_STATE_INIT_WAIT: Final = 2
XENBUS_STATE_INITIALISED: Final = 3
XENBUS_STATE_CONNECTED: Final = 4
XENBUS_STATE_CLOSING: Final = 5
XENBUS_STATE_CLOSED: Final = 6
XENBUS_STATE_RECONFIGURING: Final = 7
XENBUS_STATE_RECONFIGURED: Final = 8
