"""How a client and an NBD server come to terms: bytes in, bytes out (newstyle, fixed or not).

Owns: the order of the handshake, and what is made of a server's answers. Structured replies are
asked for, then the export with its block sizes (OPT_GO); a server without OPT_GO is asked by
OPT_EXPORT_NAME, which it answers by its end if it has no such export.
Rules: no socket, no clock. Nothing that a server says is believed: each length is bounded before
its bytes are waited for, and so is the number of answers. What is wrong is a LocalFault, one line.
"""

from collections.abc import Generator
from typing import Final, NamedTuple

from common.faults import LocalFault
from common.nbd_uri import STRING_MAX
from common.nbd_wire import (
    BLOCK_SIZE_INFO,
    BLOCK_SIZE_MAX,
    CLIENT_FLAGS,
    EXPORT_INFO,
    EXPORT_NAME_REPLY,
    FLAG_FIXED_NEWSTYLE,
    FLAG_HAS_FLAGS,
    FLAG_NO_ZEROES,
    GREETING,
    IHAVEOPT,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NBDMAGIC,
    OLDSTYLE,
    OPT_ABORT,
    OPT_EXPORT_NAME,
    OPT_GO,
    OPT_STRUCTURED_REPLY,
    OPTION,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    PAYLOAD_MAX,
    REP_ACK,
    REP_ERR_BLOCK_SIZE_REQD,
    REP_ERR_INVALID,
    REP_ERR_PLATFORM,
    REP_ERR_POLICY,
    REP_ERR_SHUTDOWN,
    REP_ERR_TLS_REQD,
    REP_ERR_TOO_BIG,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_ERROR,
    REP_INFO,
    ZEROES_BYTES,
)

REPLY_MAX: Final = 2 * STRING_MAX  # bytes of an option's reply: a name or a message, and more
REPLIES_MAX: Final = 64  # to one option

_REFUSALS: Final = {
    REP_ERR_POLICY: "its policy forbids export {name}",
    REP_ERR_INVALID: "it finds the request for export {name} invalid",
    REP_ERR_PLATFORM: "its platform does not support export {name}",
    REP_ERR_TLS_REQD: "it demands TLS, which there is not",
    REP_ERR_UNKNOWN: "export {name} is not there",
    REP_ERR_SHUTDOWN: "it is shutting down",
    REP_ERR_BLOCK_SIZE_REQD: "it demands block sizes that it was asked for",
    REP_ERR_TOO_BIG: "the name of export {name} is too long for it",
}


class Export(NamedTuple):
    """nr_bytes: its size; flags: the transmission flags; structured: replies are; min_block: what
    each offset and length is a multiple of; max_payload: bytes of one request at most."""

    nr_bytes: int
    flags: int
    structured: bool = False
    min_block: int = 1
    max_payload: int = PAYLOAD_MAX


class _Reply(NamedTuple):
    type: int
    data: bytes


# What is yielded: bytes to send, and how many are to be received next.
_Steps = Generator[tuple[bytes, int], bytes, Export]


class Negotiation:
    """With a server that has just been connected to, for the export `name`.

    `export` is None until it is there; no byte of the server's comes after that unasked.
    """

    def __init__(self, name: str) -> None:
        self.export: Export | None = None
        self.parting = b""  # what is to be sent if it is given up
        self._name = name
        self._steps = self._all_steps()
        self._got = bytearray()
        self._asked_by_name = False
        _, self._wanted = next(self._steps)

    def take(self, data: bytes) -> bytes:
        """What the server has sent; returns what to send. Raises LocalFault."""
        self._got += data
        to_send = b""
        while self.export is None and len(self._got) >= self._wanted:
            now = bytes(self._got[: self._wanted])
            del self._got[: self._wanted]
            try:
                more, self._wanted = self._steps.send(now)
                to_send += more
            except StopIteration as done:
                self.export = done.value
        if self.export is not None and self._got:
            raise LocalFault("it sends more than was asked for: it is broken")
        return to_send

    def ended(self) -> LocalFault:
        """What it means that the server has ended the connection."""
        if self._asked_by_name:
            return LocalFault(f"export {self._named()} is not there: it ended the connection")
        return LocalFault("it ended the connection before it was agreed on anything")

    def _named(self) -> str:
        return repr(self._name)

    def _all_steps(self) -> _Steps:
        greeting = yield b"", GREETING.size
        magic, kind, server_flags = GREETING.unpack(greeting)
        if magic != NBDMAGIC:
            raise LocalFault("it is no NBD server")
        if kind != IHAVEOPT:
            old = kind == OLDSTYLE
            raise LocalFault("it is an oldstyle server" if old else "it is no NBD server")
        flags = server_flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
        opening = CLIENT_FLAGS.pack(flags)
        if not flags & FLAG_FIXED_NEWSTYLE:  # it ends the connection at any other option
            return (yield from self._by_name(opening, flags, False))
        self.parting = _option(OPT_ABORT)
        reply = yield from self._ask(opening + _option(OPT_STRUCTURED_REPLY), OPT_STRUCTURED_REPLY)
        if reply.type in (REP_ERR_TLS_REQD, REP_ERR_SHUTDOWN):
            raise self._refused(reply.type)
        structured = reply.type == REP_ACK
        export = yield from self._go(structured)
        if export is None:
            return (yield from self._by_name(b"", flags, structured))
        return export

    def _by_name(self, opening: bytes, flags: int, structured: bool) -> _Steps:
        """OPT_EXPORT_NAME."""
        self._asked_by_name, self.parting = True, b""
        asked = opening + _option(OPT_EXPORT_NAME, self._name.encode())
        answer = yield asked, EXPORT_NAME_REPLY.size
        if not flags & FLAG_NO_ZEROES:
            yield b"", ZEROES_BYTES
        nr_bytes, export_flags = EXPORT_NAME_REPLY.unpack(answer)
        return _export(nr_bytes, export_flags, structured)

    def _go(self, structured: bool) -> Generator[tuple[bytes, int], bytes, Export | None]:
        """OPT_GO; None if the server does not know it."""
        name = self._name.encode()
        asked = len(name).to_bytes(4, "big") + name + b"\0\1" + INFO_BLOCK_SIZE.to_bytes(2, "big")
        infos: dict[int, bytes] = {}
        to_send = _option(OPT_GO, asked)
        for _ in range(REPLIES_MAX):
            reply = yield from self._ask(to_send, OPT_GO)
            to_send = b""
            if reply.type == REP_ERR_UNSUP:
                return None
            if reply.type == REP_ACK:
                self.parting = b""
                return _of_infos(infos, structured)
            if reply.type != REP_INFO or len(reply.data) < 2:
                raise self._refused(reply.type)
            infos[int.from_bytes(reply.data[:2], "big")] = reply.data
        raise LocalFault("it answers without an end: it is broken")

    def _ask(self, to_send: bytes, option: int) -> Generator[tuple[bytes, int], bytes, _Reply]:
        """One reply to `option`."""
        header = yield to_send, OPTION_REPLY.size
        magic, of_option, type_, length = OPTION_REPLY.unpack(header)
        if magic != OPTION_REPLY_MAGIC or of_option != option:
            raise LocalFault("it answers what was not asked: it is broken")
        if length > REPLY_MAX:
            raise LocalFault(f"its answer has {length} bytes: it is broken")
        data = (yield b"", length) if length else b""
        return _Reply(type_, data)

    def _refused(self, type_: int) -> LocalFault:
        if type_ in _REFUSALS:
            return LocalFault(_REFUSALS[type_].format(name=self._named()))
        if type_ & REP_ERROR:
            return LocalFault(f"it refuses export {self._named()} (error {type_ - REP_ERROR})")
        return LocalFault("it answers what was not asked: it is broken")


def _option(option: int, data: bytes = b"") -> bytes:
    return OPTION.pack(IHAVEOPT, option, len(data)) + data


def _of_infos(infos: dict[int, bytes], structured: bool) -> Export:
    info = infos.get(INFO_EXPORT, b"")
    if len(info) != EXPORT_INFO.size:
        raise LocalFault("it does not say how large the export is: it is broken")
    _, nr_bytes, flags = EXPORT_INFO.unpack(info)
    export = _export(nr_bytes, flags, structured)
    if (info := infos.get(INFO_BLOCK_SIZE, b"")) == b"":
        return export
    if len(info) != BLOCK_SIZE_INFO.size:
        raise LocalFault("its block sizes have no known form: it is broken")
    _, smallest, _, most = BLOCK_SIZE_INFO.unpack(info)
    if smallest.bit_count() != 1 or smallest > BLOCK_SIZE_MAX or most < smallest:
        raise LocalFault(f"its blocks have {smallest} to {most} bytes: it is broken")
    most = min(most, PAYLOAD_MAX)
    return export._replace(min_block=smallest, max_payload=most - most % smallest)


def _export(nr_bytes: int, flags: int, structured: bool) -> Export:
    if nr_bytes >= 1 << 63:
        raise LocalFault(f"its export has {nr_bytes} bytes: it is broken")
    return Export(nr_bytes, flags if flags & FLAG_HAS_FLAGS else 0, structured)
