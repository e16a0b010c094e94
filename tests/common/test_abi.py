"""Every layout against the published numbers, and against a page that a real Linux wrote."""

from pathlib import Path

import numpy as np
import pytest

from common import abi
from common.xenstore_wire import MessageType

GOLDEN_RING = Path(__file__).parents[1] / "golden/ring-page.bin"

# layout, its size, and (field, offset, size in bytes)
LAYOUTS: dict[str, tuple[np.dtype, int, list[tuple[str, int, int]]]] = {
    "segment": (
        abi.BLKIF_SEGMENT,
        8,
        [("gref", 0, 4), ("first_sect", 4, 1), ("last_sect", 5, 1)],
    ),
    "request": (
        abi.BLKIF_REQUEST,
        112,
        [
            ("operation", 0, 1),
            ("nr_segments", 1, 1),
            ("handle", 2, 2),
            ("id", 8, 8),
            ("sector_number", 16, 8),
            ("seg", 24, 88),
        ],
    ),
    "discard": (
        abi.BLKIF_REQUEST_DISCARD,
        112,
        [
            ("operation", 0, 1),
            ("flag", 1, 1),
            ("handle", 2, 2),
            ("id", 8, 8),
            ("sector_number", 16, 8),
            ("nr_sectors", 24, 8),
        ],
    ),
    "indirect": (
        abi.BLKIF_REQUEST_INDIRECT,
        64,
        [
            ("operation", 0, 1),
            ("indirect_op", 1, 1),
            ("nr_segments", 2, 2),
            ("id", 8, 8),
            ("sector_number", 16, 8),
            ("handle", 24, 2),
            ("indirect_grefs", 28, 32),
        ],
    ),
    "response": (abi.BLKIF_RESPONSE, 16, [("id", 0, 8), ("operation", 8, 1), ("status", 10, 2)]),
    "sring": (
        abi.BLKIF_SRING_HEADER,
        64,
        [("req_prod", 0, 4), ("req_event", 4, 4), ("rsp_prod", 8, 4), ("rsp_event", 12, 4)],
    ),
    "grant_entry_v1": (
        abi.GRANT_ENTRY_V1,
        8,
        [("flags", 0, 2), ("domid", 2, 2), ("frame", 4, 4)],
    ),
    "gnttab_map_grant_ref": (
        abi.GNTTAB_MAP_GRANT_REF,
        32,
        [
            ("host_addr", 0, 8),
            ("flags", 8, 4),
            ("ref", 12, 4),
            ("dom", 16, 2),
            ("status", 18, 2),
            ("handle", 20, 4),
            ("dev_bus_addr", 24, 8),
        ],
    ),
    "gnttab_unmap_grant_ref": (
        abi.GNTTAB_UNMAP_GRANT_REF,
        24,
        [("host_addr", 0, 8), ("dev_bus_addr", 8, 8), ("handle", 16, 4), ("status", 20, 2)],
    ),
    "gnttab_copy_ptr": (
        abi.GNTTAB_COPY_PTR,
        16,
        [("ref", 0, 4), ("gmfn", 0, 8), ("domid", 8, 2), ("offset", 10, 2)],
    ),
    "gnttab_copy": (
        abi.GNTTAB_COPY,
        40,
        [("source", 0, 16), ("dest", 16, 16), ("len", 32, 2), ("flags", 34, 2), ("status", 36, 2)],
    ),
    "gnttab_setup_table": (
        abi.GNTTAB_SETUP_TABLE,
        24,
        [("dom", 0, 2), ("nr_frames", 4, 4), ("status", 8, 2), ("frame_list", 16, 8)],
    ),
    "gnttab_query_size": (
        abi.GNTTAB_QUERY_SIZE,
        16,
        [("dom", 0, 2), ("nr_frames", 4, 4), ("max_nr_frames", 8, 4), ("status", 12, 2)],
    ),
    "evtchn_alloc_unbound": (
        abi.EVTCHN_ALLOC_UNBOUND,
        8,
        [("dom", 0, 2), ("remote_dom", 2, 2), ("port", 4, 4)],
    ),
    "evtchn_bind_interdomain": (
        abi.EVTCHN_BIND_INTERDOMAIN,
        12,
        [("remote_dom", 0, 2), ("remote_port", 4, 4), ("local_port", 8, 4)],
    ),
    "evtchn_close": (abi.EVTCHN_CLOSE, 4, [("port", 0, 4)]),
    "evtchn_send": (abi.EVTCHN_SEND, 4, [("port", 0, 4)]),
    "evtchn_unmask": (abi.EVTCHN_UNMASK, 4, [("port", 0, 4)]),
    "evtchn_reset": (abi.EVTCHN_RESET, 2, [("dom", 0, 2)]),
    "evtchn_status": (
        abi.EVTCHN_STATUS,
        24,
        [
            ("dom", 0, 2),
            ("port", 4, 4),
            ("status", 8, 4),
            ("vcpu", 12, 4),
            ("remote_dom", 16, 2),
            ("remote_port", 20, 4),
        ],
    ),
    "shared_info": (
        abi.SHARED_INFO,
        4096,
        [("evtchn_pending", 2048, 512), ("evtchn_mask", 2560, 512)],
    ),
}

CONSTANTS = {
    "XEN_PAGE_SIZE": 4096,
    "SECTOR_SIZE": 512,
    "SECTORS_PER_PAGE": 8,
    "DOMID_0": 0,
    "DOMID_FIRST_RESERVED": 0x7FF0,
    "DOMID_SELF": 0x7FF0,
    "BLKIF_OP_READ": 0,
    "BLKIF_OP_WRITE": 1,
    "BLKIF_OP_WRITE_BARRIER": 2,
    "BLKIF_OP_FLUSH_DISKCACHE": 3,
    "BLKIF_OP_DISCARD": 5,
    "BLKIF_OP_INDIRECT": 6,
    "VDISK_READONLY": 4,
    "BLKIF_DISCARD_SECURE": 1,
    "BLKIF_RSP_OKAY": 0,
    "BLKIF_RSP_ERROR": -1,
    "BLKIF_RSP_EOPNOTSUPP": -2,
    "BLKIF_MAX_SEGMENTS_PER_REQUEST": 11,
    "BLKIF_MAX_SECTORS_PER_REQUEST": 88,
    "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST": 8,
    "BLKIF_RING_SIZE": 32,
    "BLKIF_MAX_PERSISTENT_GRANTS": 352,
    "SRING_HEADER_SIZE": 64,
    "GTF_INVALID": 0,
    "GTF_PERMIT_ACCESS": 1,
    "GTF_ACCEPT_TRANSFER": 2,
    "GTF_TYPE_MASK": 3,
    "GTF_READONLY": 4,
    "GTF_READING": 8,
    "GTF_WRITING": 16,
    "GNTTAB_NR_RESERVED_ENTRIES": 8,
    "GRANT_ENTRIES_PER_FRAME": 512,
    "GNTTABOP_MAP_GRANT_REF": 0,
    "GNTTABOP_UNMAP_GRANT_REF": 1,
    "GNTTABOP_SETUP_TABLE": 2,
    "GNTTABOP_COPY": 5,
    "GNTTABOP_QUERY_SIZE": 6,
    "GNTMAP_DEVICE_MAP": 1,
    "GNTMAP_HOST_MAP": 2,
    "GNTMAP_READONLY": 4,
    "GNTCOPY_SOURCE_GREF": 1,
    "GNTCOPY_DEST_GREF": 2,
    "GNTST_OKAY": 0,
    "GNTST_GENERAL_ERROR": -1,
    "GNTST_BAD_DOMAIN": -2,
    "GNTST_BAD_GNTREF": -3,
    "GNTST_BAD_HANDLE": -4,
    "GNTST_BAD_VIRT_ADDR": -5,
    "GNTST_BAD_DEV_ADDR": -6,
    "GNTST_NO_DEVICE_SPACE": -7,
    "GNTST_PERMISSION_DENIED": -8,
    "GNTST_BAD_PAGE": -9,
    "GNTST_BAD_COPY_ARG": -10,
    "GNTST_ADDRESS_TOO_BIG": -11,
    "GNTST_EAGAIN": -12,
    "GNTST_NO_SPACE": -13,
    "EVTCHNOP_BIND_INTERDOMAIN": 0,
    "EVTCHNOP_CLOSE": 3,
    "EVTCHNOP_SEND": 4,
    "EVTCHNOP_STATUS": 5,
    "EVTCHNOP_ALLOC_UNBOUND": 6,
    "EVTCHNOP_UNMASK": 9,
    "EVTCHNOP_RESET": 10,
    "EVTCHNSTAT_CLOSED": 0,
    "EVTCHNSTAT_UNBOUND": 1,
    "EVTCHNSTAT_INTERDOMAIN": 2,
    "EVTCHN_2L_NR_CHANNELS": 4096,
    "HYPERVISOR_GRANT_TABLE_OP": 20,
    "HYPERVISOR_EVENT_CHANNEL_OP": 32,
    "HYPERVISOR_DOMCTL": 36,
    "XENBUS_STATE_UNKNOWN": 0,
    "XENBUS_STATE_INITIALISING": 1,
    "XENBUS_STATE_INIT_WAIT": 2,
    "XENBUS_STATE_INITIALISED": 3,
    "XENBUS_STATE_CONNECTED": 4,
    "XENBUS_STATE_CLOSING": 5,
    "XENBUS_STATE_CLOSED": 6,
    "XENBUS_STATE_RECONFIGURING": 7,
    "XENBUS_STATE_RECONFIGURED": 8,
}

# slot of the golden page: id, operation, sector, gref
GOLDEN_SLOTS = [
    (15, 0, 16944, 55),
    (2, 1, 1296, 46),
    (19, 1, 1304, 59),
    (17, 0, 1800, 57),
    (30, 1, 14376, 70),
    (26, 1, 6032, 66),
    (12, 1, 32112, 52),
    (31, 1, 32128, 71),
    (29, 0, 32144, 69),
    (20, 1, 32152, 60),
    (18, 0, 11192, 58),
    (1, 0, 19144, 45),
    (3, 0, 6040, 44),
    (0, 0, 32160, 43),
    (8, 0, 32168, 48),
    (14, 0, 14616, 54),
    (5, 0, 32184, 42),
    (9, 0, 6464, 49),
    (10, 1, 32392, 50),
    (4, 0, 32400, 47),
    (22, 0, 12592, 62),
    (23, 0, 32024, 63),
    (24, 1, 32032, 64),
    (25, 1, 19136, 65),
    (28, 1, 17376, 68),
    (7, 0, 1288, 73),
    (6, 0, 32048, 175),
    (13, 0, 6024, 53),
    (27, 1, 11104, 67),
    (21, 0, 14368, 61),
    (11, 1, 9384, 51),
    (16, 1, 32104, 56),
]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_has_the_published_size_and_offsets(name: str) -> None:
    dtype, size, fields = LAYOUTS[name]
    assert dtype.itemsize == size
    assert dtype.fields is not None
    found = [(field, at, kind.itemsize) for field, (kind, at, *_) in dtype.fields.items()]
    assert found == fields


def test_every_layout_there_is_has_been_checked() -> None:
    there = {name for name, value in vars(abi).items() if isinstance(value, np.dtype)}
    checked = [dtype for dtype, _, _ in LAYOUTS.values()]
    assert {name for name in there if any(vars(abi)[name] is dtype for dtype in checked)} == there


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_has_the_published_value(name: str) -> None:
    assert getattr(abi, name) == CONSTANTS[name]


def test_every_constant_there_is_has_been_checked() -> None:
    assert {name for name, value in vars(abi).items() if isinstance(value, int)} == set(CONSTANTS)


@pytest.mark.parametrize(
    ("dtype", "field"),
    [
        (abi.BLKIF_RESPONSE, "status"),
        (abi.GNTTAB_MAP_GRANT_REF, "status"),
        (abi.GNTTAB_UNMAP_GRANT_REF, "status"),
        (abi.GNTTAB_COPY, "status"),
        (abi.GNTTAB_SETUP_TABLE, "status"),
        (abi.GNTTAB_QUERY_SIZE, "status"),
    ],
)
def test_a_status_is_a_signed_16_bit_word(dtype: np.dtype, field: str) -> None:
    assert dtype[field] == np.dtype("<i2")


def test_all_else_is_unsigned_and_little_endian() -> None:
    def leaves(dtype: np.dtype) -> list[tuple[str, np.dtype]]:
        found = []
        for name, (kind, *_) in (dtype.fields or {}).items():
            found += leaves(kind.base) if kind.base.fields else [(name, kind.base)]
        return found

    for dtype, _, _ in LAYOUTS.values():
        for name, kind in leaves(dtype):
            assert name == "status" or kind.kind == "u"
            assert kind == kind.newbyteorder("<")


def test_a_request_has_room_for_11_segments_and_an_indirect_one_for_8_pages() -> None:
    assert abi.BLKIF_REQUEST["seg"].shape == (11,)
    assert abi.BLKIF_REQUEST_INDIRECT["indirect_grefs"].shape == (8,)


def test_a_copys_gref_and_frame_number_are_one_union() -> None:
    copy = np.zeros(1, abi.GNTTAB_COPY)
    copy["source"]["gmfn"] = 0x1_2345_6789
    assert copy["source"]["ref"][0] == 0x2345_6789


@pytest.mark.parametrize(("pages", "slots"), [(1, 32), (2, 64), (4, 128), (8, 256), (16, 512)])
def test_a_ring_has_the_largest_power_of_two_of_slots_that_fits(pages: int, slots: int) -> None:
    assert abi.blkif_ring_size(pages) == slots


@pytest.mark.parametrize("pages", [-1, 0, 3, 5, 17, 32])
def test_a_ring_of_another_number_of_pages_is_refused(pages: int) -> None:
    with pytest.raises(ValueError, match=f"ring pages: {pages} is not one of 1, 2, 4, 8, 16"):
        abi.blkif_ring_size(pages)


def test_the_golden_ring_is_read_as_linux_wrote_it() -> None:
    page = GOLDEN_RING.read_bytes()
    assert len(page) == 4096
    header = np.frombuffer(page, abi.BLKIF_SRING_HEADER, count=1)[0]
    assert header.item() == (9300, 9301, 9300, 9301)
    requests = np.frombuffer(page, abi.BLKIF_REQUEST, count=32, offset=64)
    for index, (id_, operation, sector, gref) in enumerate(GOLDEN_SLOTS):
        response = np.frombuffer(page, abi.BLKIF_RESPONSE, count=1, offset=64 + 112 * index)[0]
        assert response.item() == (id_, operation, 0)
        assert requests[index]["sector_number"] == sector
        assert requests[index]["seg"][0].item() == (gref, 0, 7)


def test_xenstores_message_types_have_their_wire_numbers() -> None:
    assert {kind.name: kind.value for kind in MessageType} == {
        "CONTROL": 0,
        "DIRECTORY": 1,
        "READ": 2,
        "GET_PERMS": 3,
        "WATCH": 4,
        "UNWATCH": 5,
        "TRANSACTION_START": 6,
        "TRANSACTION_END": 7,
        "INTRODUCE": 8,
        "RELEASE": 9,
        "GET_DOMAIN_PATH": 10,
        "WRITE": 11,
        "MKDIR": 12,
        "RM": 13,
        "SET_PERMS": 14,
        "WATCH_EVENT": 15,
        "ERROR": 16,
        "IS_DOMAIN_INTRODUCED": 17,
        "RESUME": 18,
        "SET_TARGET": 19,
        "RESET_WATCHES": 21,
        "DIRECTORY_PART": 22,
    }
