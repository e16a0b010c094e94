"""xenstore's wire protocol: message types, the header, the limits, and a parser for either end.

Owns: how a message looks. What it means is the business of `common/xenstore.py` (who asks) and of
`xenstored` (who answers).
Rules: sans-I/O. A stream that cannot be followed any more is `broken` for good; the owner closes
it. What was complete before the break is still delivered, however the bytes were cut into chunks.

Source: Xen's `io/xs_wire.h` and `docs/misc/xenstore.txt`.
"""

import struct
from enum import IntEnum
from typing import Final, NamedTuple

XENSTORE_PAYLOAD_MAX: Final = 4096
XENSTORE_ABS_PATH_MAX: Final = 3072
XENSTORE_REL_PATH_MAX: Final = 2048

# struct xsd_sockmsg: type, req_id, tx_id, len (of what follows), each u32, little-endian.
HEADER: Final = struct.Struct("<IIII")
assert HEADER.size == 16


class MessageType(IntEnum):
    """enum xsd_sockmsg_type, without its XS_ prefix."""

    CONTROL = 0
    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    UNWATCH = 5
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    INTRODUCE = 8
    RELEASE = 9
    GET_DOMAIN_PATH = 10
    WRITE = 11
    MKDIR = 12
    RM = 13
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    IS_DOMAIN_INTRODUCED = 17
    RESUME = 18
    SET_TARGET = 19
    RESET_WATCHES = 21
    DIRECTORY_PART = 22


# xsd_errors: an error reply's payload is one of these names; numbers differ between systems.
XSD_ERRORS: Final = frozenset(
    (
        "EINVAL",
        "EACCES",
        "EEXIST",
        "EISDIR",
        "ENOENT",
        "ENOMEM",
        "ENOSPC",
        "EIO",
        "ENOTEMPTY",
        "ENOSYS",
        "EROFS",
        "EBUSY",
        "EAGAIN",
        "EISCONN",
        "E2BIG",
        "EPERM",
    )
)


class Packet(NamedTuple):
    """One message. `type` is any u32: whether it is a MessageType is the receiver's question."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes


def pack(packet: Packet) -> bytes:
    """The bytes of `packet`, whose payload must be within XENSTORE_PAYLOAD_MAX."""
    assert len(packet.payload) <= XENSTORE_PAYLOAD_MAX
    header = HEADER.pack(packet.type, packet.req_id, packet.tx_id, len(packet.payload))
    return header + packet.payload


def pack_strings(*strings: bytes) -> bytes:
    """A payload of NUL-terminated strings."""
    return b"".join(string + b"\0" for string in strings)


def unpack_strings(payload: bytes) -> list[bytes]:
    """The NUL-terminated strings of `payload`; bytes behind the last NUL belong to none."""
    return payload.split(b"\0")[:-1]


class Parser:
    """Turns a byte stream into packets. `broken` says why it cannot go on, or is None."""

    def __init__(self) -> None:
        self.broken: str | None = None
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """Take the next bytes of the stream; returns the packets they complete, in order."""
        if self.broken is not None:
            return []
        self._buffer += data
        packets: list[Packet] = []
        start = 0
        while len(self._buffer) - start >= HEADER.size:
            kind, req_id, tx_id, length = HEADER.unpack_from(self._buffer, start)
            if length > XENSTORE_PAYLOAD_MAX:
                self.broken = f"a payload of {length} bytes is over {XENSTORE_PAYLOAD_MAX}"
                self._buffer.clear()
                return packets
            end = start + HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[start + HEADER.size : end])
            packets.append(Packet(kind, req_id, tx_id, payload))
            start = end
        del self._buffer[:start]
        return packets
