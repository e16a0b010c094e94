"""NBD on the wire, as its two ends have it: numbers, layouts, and fields put and taken, compiled.

Owns: what the protocol's text (`doc/proto.md` of NetworkBlockDevice/nbd) fixes. Everything is
big-endian and nothing is aligned, which Numba knows no dtype for: outside kernels a layout is a
`struct.Struct`, and inside them a field is taken byte by byte, which LLVM makes one load of.
Rules: no clock, no socket, no state.
"""

from struct import Struct
from typing import Final

import numpy as np

from common.compiled import kernel

# --- handshake ----------------------------------------------------------------------------------

NBDMAGIC: Final = 0x4E42444D41474943
IHAVEOPT: Final = 0x49484156454F5054
OLDSTYLE: Final = 0x00420281861253  # what an oldstyle server sends in place of IHAVEOPT
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9

# Of the server's handshake flags, and of the client's: the same two bits.
FLAG_FIXED_NEWSTYLE: Final = 1 << 0
FLAG_NO_ZEROES: Final = 1 << 1

OPT_EXPORT_NAME, OPT_ABORT, OPT_GO, OPT_STRUCTURED_REPLY = 1, 2, 7, 8
OPT_LIST, OPT_INFO = 3, 6

REP_ACK, REP_SERVER, REP_INFO = 1, 2, 3
REP_ERROR: Final = 1 << 31
(
    REP_ERR_UNSUP,
    REP_ERR_POLICY,
    REP_ERR_INVALID,
    REP_ERR_PLATFORM,
    REP_ERR_TLS_REQD,
    REP_ERR_UNKNOWN,
    REP_ERR_SHUTDOWN,
    REP_ERR_BLOCK_SIZE_REQD,
    REP_ERR_TOO_BIG,
) = (REP_ERROR + number for number in range(1, 10))

INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

GREETING: Final = Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS: Final = Struct(">I")
OPTION: Final = Struct(">QII")  # IHAVEOPT, option, length of the data that follows
OPTION_REPLY: Final = Struct(">QIII")  # magic, option, type, length of the data that follows
EXPORT_INFO: Final = Struct(">HQH")  # INFO_EXPORT, size, transmission flags
BLOCK_SIZE_INFO: Final = Struct(">HIII")  # INFO_BLOCK_SIZE, minimum, preferred, maximum payload
EXPORT_NAME_REPLY: Final = Struct(">QH")  # size, transmission flags; then the zeroes
ZEROES_BYTES: Final = 124

BLOCK_SIZE_MAX: Final = 1 << 16  # the largest minimum that there may be
PAYLOAD_MAX: Final = 1 << 25  # what a server takes that says nothing else

# --- transmission -------------------------------------------------------------------------------

FLAG_HAS_FLAGS: Final = 1 << 0
FLAG_READ_ONLY: Final = 1 << 1
FLAG_SEND_FLUSH: Final = 1 << 2
FLAG_SEND_FUA: Final = 1 << 3
FLAG_SEND_TRIM: Final = 1 << 5
FLAG_SEND_WRITE_ZEROES: Final = 1 << 6
FLAG_CAN_MULTI_CONN: Final = 1 << 8

REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM = range(5)
CMD_WRITE_ZEROES: Final = 6

CMD_FLAG_FUA: Final = 1 << 0
CMD_FLAG_NO_HOLE: Final = 1 << 1

REPLY_FLAG_DONE: Final = 1
REPLY_NONE, REPLY_OFFSET_DATA, REPLY_OFFSET_HOLE = range(3)
REPLY_ERROR_BIT: Final = 1 << 15
REPLY_ERROR, REPLY_ERROR_OFFSET = REPLY_ERROR_BIT + 1, REPLY_ERROR_BIT + 2

# Errors are numbers of the protocol's own; those there are happen to be Linux's.
EPERM, EIO, EINVAL, ENOSPC, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 95, 108

REQUEST: Final = Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
SIMPLE_REPLY: Final = Struct(">IIQ")  # magic, error, cookie
STRUCTURED_REPLY: Final = Struct(">IHHQI")  # magic, flags, type, cookie, length of the payload
OFFSET_DATA: Final = Struct(">Q")  # offset; then the data
OFFSET_HOLE: Final = Struct(">QI")  # offset, size
ERROR: Final = Struct(">IH")  # error, length of the message; then that, then perhaps an offset

REQUEST_BYTES: Final = REQUEST.size
SIMPLE_REPLY_BYTES: Final = SIMPLE_REPLY.size
STRUCTURED_REPLY_BYTES: Final = STRUCTURED_REPLY.size
OFFSET_DATA_BYTES: Final = OFFSET_DATA.size
OFFSET_HOLE_BYTES: Final = OFFSET_HOLE.size
ERROR_BYTES: Final = ERROR.size

for layout, nbytes in (
    (GREETING, 18),
    (OPTION, 16),
    (OPTION_REPLY, 20),
    (EXPORT_INFO, 12),
    (BLOCK_SIZE_INFO, 14),
    (EXPORT_NAME_REPLY, 10),
    (REQUEST, 28),
    (SIMPLE_REPLY, 16),
    (STRUCTURED_REPLY, 20),
    (OFFSET_HOLE, 12),
    (ERROR, 6),
):
    assert layout.size == nbytes


@kernel
def take_number(data: np.ndarray, at: int, nbytes: int) -> np.uint64:
    """The number of `nbytes` bytes at `at` of `data` (u8)."""
    number = np.uint64(0)
    for index in range(nbytes):
        number = (number << np.uint64(8)) | np.uint64(data[np.uint64(at + index)])
    return number


@kernel
def put_number(data: np.ndarray, at: int, nbytes: int, number: int) -> None:
    """Write a number of `nbytes` bytes at `at` of `data` (u8)."""
    left = np.uint64(number)
    for index in range(nbytes):
        data[np.uint64(at + nbytes - 1 - index)] = np.uint8(left & np.uint64(0xFF))
        left = left >> np.uint64(8)


@kernel
def put_request(
    data: np.ndarray, at: int, command: int, cookie: int, offset: int, length: int
) -> None:
    """Write a request without flags at `at` of `data` (u8); a write's bytes follow it."""
    put_number(data, at, 4, REQUEST_MAGIC)
    put_number(data, at + 4, 2, 0)
    put_number(data, at + 6, 2, command)
    put_number(data, at + 8, 8, cookie)
    put_number(data, at + 16, 8, offset)
    put_number(data, at + 24, 4, length)


@kernel
def put_simple_reply(data: np.ndarray, at: int, error: int, cookie: int) -> None:
    """Write a simple reply at `at` of `data` (u8); a read's bytes follow it."""
    put_number(data, at, 4, SIMPLE_REPLY_MAGIC)
    put_number(data, at + 4, 4, error)
    put_number(data, at + 8, 8, cookie)


@kernel
def put_chunk(data: np.ndarray, at: int, done: int, type_: int, cookie: int, length: int) -> None:
    """Write the fields that each chunk of a structured reply begins with at `at` of `data` (u8)."""
    put_number(data, at, 4, STRUCTURED_REPLY_MAGIC)
    put_number(data, at + 4, 2, REPLY_FLAG_DONE if done else 0)
    put_number(data, at + 6, 2, type_)
    put_number(data, at + 8, 8, cookie)
    put_number(data, at + 16, 4, length)
