"""How an export and a client of its come to terms: bytes in, bytes out (fixed newstyle).

Owns: the order of the handshake, the server's side; the client's is dom0's NBD store's.
Rules: no socket, no clock. A client is not trusted: each length is bounded before its bytes are
waited for, and so is the number of options. What cannot be gone on from is a PeerFault, one line.
"""

from collections.abc import Generator
from typing import Final, NamedTuple

from common.faults import PeerFault
from common.nbd_uri import STRING_MAX
from common.nbd_wire import (
    BLOCK_SIZE_INFO,
    CLIENT_FLAGS,
    EXPORT_INFO,
    EXPORT_NAME_REPLY,
    FLAG_FIXED_NEWSTYLE,
    FLAG_NO_ZEROES,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NBDMAGIC,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_INFO,
    OPT_LIST,
    OPT_STRUCTURED_REPLY,
    OPTION,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REP_ACK,
    REP_ERR_INVALID,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_INFO,
    REP_SERVER,
    ZEROES_BYTES,
)

OPTION_MAX: Final = 2 * STRING_MAX  # bytes of an option: a name, and what is asked of it
OPTIONS_MAX: Final = 64
PIPELINED_MAX: Final = 16 * 1024  # bytes that come before they are asked for
OURS: Final = FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES


class Offer(NamedTuple):
    """nr_bytes: of the disk; flags: of transmission; block, preferred, most: INFO_BLOCK_SIZE's."""

    nr_bytes: int
    flags: int
    block: int
    preferred: int
    most: int


class Greeting:
    """With a client that has just connected; `opening` is to be sent to it first.

    agreed: the next bytes are requests; structured: replies are to be; rest: those that have come;
    over: the client has taken its leave.
    """

    def __init__(self, offer: Offer) -> None:
        self.agreed = self.structured = self.over = False
        self._offer, self._got = offer, bytearray()
        self._steps = self._all_steps()
        self.opening, self._wanted = next(self._steps)

    @property
    def rest(self) -> bytes:
        """What has come after the greeting."""
        return bytes(self._got)

    def take(self, data: bytes) -> bytes:
        """What the client has sent; returns what to send. Raises PeerFault."""
        self._got += data
        if len(self._got) > OPTION_MAX + PIPELINED_MAX:
            raise PeerFault("it sends more than it is asked for")
        to_send = b""
        while not (self.agreed or self.over) and len(self._got) >= self._wanted:
            now = bytes(self._got[: self._wanted])
            del self._got[: self._wanted]
            try:
                more, self._wanted = self._steps.send(now)
            except StopIteration as last:
                more = last.value or b""
            to_send += more
        return to_send

    def _all_steps(self) -> Generator[tuple[bytes, int], bytes, bytes]:
        """What is yielded: bytes to send, and how many are to be received next."""
        flags = CLIENT_FLAGS.unpack(
            (yield GREETING.pack(NBDMAGIC, IHAVEOPT, OURS), CLIENT_FLAGS.size)
        )[0]
        if flags & ~OURS or not flags & FLAG_FIXED_NEWSTYLE:
            raise PeerFault(f"its flags are {flags:#x}: it knows no fixed newstyle, or more")
        to_send = b""
        for _ in range(OPTIONS_MAX):
            magic, option, length = OPTION.unpack((yield to_send, OPTION.size))
            if magic != IHAVEOPT:
                raise PeerFault("it sends what is no option")
            if length > OPTION_MAX:
                raise PeerFault(f"its option {option} has {length} bytes")
            data = (yield b"", length) if length else b""
            if option == OPT_EXPORT_NAME:
                return self._by_name(data, flags)
            to_send = self._answered(option, data)
            if self.agreed or self.over:
                return to_send
        raise PeerFault(f"it has more than {OPTIONS_MAX} options")

    def _by_name(self, name: bytes, flags: int) -> bytes:
        """An option that has no way to be refused."""
        if name:
            raise PeerFault("it asks for an export that is not there")
        self.agreed = True
        zeroes = b"" if flags & FLAG_NO_ZEROES else bytes(ZEROES_BYTES)
        return EXPORT_NAME_REPLY.pack(self._offer.nr_bytes, self._offer.flags) + zeroes

    def _answered(self, option: int, data: bytes) -> bytes:
        if option == OPT_ABORT:
            self.over = True
            return _reply(option, REP_ACK)
        if option in (OPT_INFO, OPT_GO):
            return self._described(option, data)
        if option not in (OPT_LIST, OPT_STRUCTURED_REPLY):
            return _reply(option, REP_ERR_UNSUP, b"there is no such option")
        if data:
            return _reply(option, REP_ERR_INVALID, b"the option takes no data")
        if option == OPT_LIST:
            return _reply(option, REP_SERVER, bytes(4)) + _reply(option, REP_ACK)  # one, of no name
        self.structured = True
        return _reply(option, REP_ACK)

    def _described(self, option: int, data: bytes) -> bytes:
        """OPT_INFO and OPT_GO."""
        asked = _asked_infos(data)
        if asked is None:
            return _reply(option, REP_ERR_INVALID, b"the option has no sound form")
        name, infos = asked
        if name:
            return _reply(option, REP_ERR_UNKNOWN, b"there is one export, and it has no name")
        offer = self._offer
        info = EXPORT_INFO.pack(INFO_EXPORT, offer.nr_bytes, offer.flags)
        to_send = _reply(option, REP_INFO, info)
        if INFO_BLOCK_SIZE in infos:
            sizes = offer.block, offer.preferred, offer.most
            to_send += _reply(option, REP_INFO, BLOCK_SIZE_INFO.pack(INFO_BLOCK_SIZE, *sizes))
        self.agreed = option == OPT_GO
        return to_send + _reply(option, REP_ACK)


def _asked_infos(data: bytes) -> tuple[bytes, list[int]] | None:
    """The name, and which infos are asked for; None if this is no such thing."""
    length = int.from_bytes(data[:4], "big")
    name, rest = data[4 : 4 + length], data[4 + length :]
    count = int.from_bytes(rest[:2], "big")
    if len(data) < 6 or len(name) != length or len(rest) != 2 + 2 * count:
        return None
    return name, [int.from_bytes(rest[at : at + 2], "big") for at in range(2, len(rest), 2)]


def _reply(option: int, type_: int, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, type_, len(data)) + data
