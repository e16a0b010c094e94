"""What is made of an NBD server's answers: good ones, refusals, nonsense."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.nbd_negotiation import REPLIES_MAX, Export, Negotiation
from common.faults import LocalFault
from common.nbd_wire import (
    BLOCK_SIZE_INFO,
    EXPORT_INFO,
    EXPORT_NAME_REPLY,
    FLAG_FIXED_NEWSTYLE,
    FLAG_HAS_FLAGS,
    FLAG_NO_ZEROES,
    FLAG_SEND_FLUSH,
    GREETING,
    IHAVEOPT,
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
    REP_ERR_UNSUP,
    REP_ERROR,
    REP_INFO,
    ZEROES_BYTES,
)

HELLO = GREETING.pack(NBDMAGIC, IHAVEOPT, FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
FLAGS = FLAG_HAS_FLAGS | FLAG_SEND_FLUSH
SIZE = 1 << 20


def replied(option: int, type_: int, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, type_, len(data)) + data


def go(type_: int, data: bytes = b"") -> bytes:
    return replied(OPT_GO, type_, data)


STRUCTURED = replied(OPT_STRUCTURED_REPLY, REP_ACK)
INFO = go(REP_INFO, EXPORT_INFO.pack(0, SIZE, FLAGS))
ACK = go(REP_ACK)


def of_blocks(smallest: int, most: int) -> bytes:
    return go(REP_INFO, BLOCK_SIZE_INFO.pack(3, smallest, 4096, most))


def played(said: bytes, name: str = "disk", piece: int = 1 << 20) -> tuple[Negotiation, bytes]:
    """A server that says `said`, whatever it is asked; what it was sent."""
    negotiation, sent = Negotiation(name), b""
    for at in range(0, len(said), piece):
        sent += negotiation.take(said[at : at + piece])
    return negotiation, sent


def options_of(sent: bytes) -> Sequence[tuple[int, bytes]]:
    at, options = 4, []
    while at < len(sent):
        magic, option, length = OPTION.unpack_from(sent, at)
        assert magic == IHAVEOPT
        options.append((option, sent[at + 16 : at + 16 + length]))
        at += 16 + length
    return options


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_an_export_is_agreed_on(piece: int) -> None:
    said = HELLO + STRUCTURED + INFO + of_blocks(512, 5000) + ACK
    negotiation, sent = played(said, piece=piece)
    assert negotiation.export == Export(SIZE, FLAGS, True, 512, 4608)
    assert negotiation.parting == b""
    assert sent[:4] == struct.pack(">I", FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
    asked = struct.pack(">I4sHH", 4, b"disk", 1, 3)
    assert options_of(sent) == [(OPT_STRUCTURED_REPLY, b""), (OPT_GO, asked)]


def test_a_server_without_structured_replies_and_sizes_will_do() -> None:
    unknown = replied(OPT_STRUCTURED_REPLY, REP_ERR_UNSUP, b"what?")
    negotiation, _ = played(HELLO + unknown + INFO + ACK)
    assert negotiation.export == Export(SIZE, FLAGS, False, 1, PAYLOAD_MAX)


def test_infos_that_nobody_asked_for_are_passed_over() -> None:
    negotiation, _ = played(HELLO + STRUCTURED + go(REP_INFO, b"\0\1disk") + INFO + ACK)
    assert negotiation.export is not None and negotiation.export.nr_bytes == SIZE


@pytest.mark.parametrize("flags", [FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES, FLAG_FIXED_NEWSTYLE])
def test_a_server_without_go_is_asked_by_name(flags: int) -> None:
    hello = GREETING.pack(NBDMAGIC, IHAVEOPT, flags)
    unknown = replied(OPT_STRUCTURED_REPLY, REP_ERR_UNSUP) + go(REP_ERR_UNSUP)
    zeroes = b"" if flags & FLAG_NO_ZEROES else bytes(ZEROES_BYTES)
    said = hello + unknown + EXPORT_NAME_REPLY.pack(SIZE, FLAGS) + zeroes
    negotiation, sent = played(said)
    assert negotiation.export == Export(SIZE, FLAGS)
    assert options_of(sent)[-1] == (OPT_EXPORT_NAME, b"disk")
    negotiation, _ = played(said[: -1 if zeroes else len(said)])
    assert (negotiation.export is None) == bool(zeroes)


def test_a_server_that_is_not_fixed_is_asked_by_name_alone() -> None:
    negotiation, sent = played(
        GREETING.pack(NBDMAGIC, IHAVEOPT, 0) + EXPORT_NAME_REPLY.pack(SIZE, 0) + bytes(ZEROES_BYTES)
    )
    assert negotiation.export == Export(SIZE, 0)
    assert sent[:4] == bytes(4) and options_of(sent) == [(OPT_EXPORT_NAME, b"disk")]


def test_without_flags_there_are_none() -> None:
    info = go(REP_INFO, EXPORT_INFO.pack(0, SIZE, FLAG_SEND_FLUSH))
    negotiation, _ = played(HELLO + STRUCTURED + info + ACK)
    assert negotiation.export is not None and negotiation.export.flags == 0


@pytest.mark.parametrize(
    "error, text",
    [
        (2, "its policy forbids export 'disk'"),
        (3, "it finds the request for export 'disk' invalid"),
        (4, "its platform does not support export 'disk'"),
        (5, "it demands TLS, which there is not"),
        (6, "export 'disk' is not there"),
        (7, "it is shutting down"),
        (8, "it demands block sizes that it was asked for"),
        (9, "the name of export 'disk' is too long for it"),
        (77, r"it refuses export 'disk' \(error 77\)"),
    ],
)
def test_a_refusal_is_one_line_and_parted_from(error: int, text: str) -> None:
    negotiation, _ = played(HELLO + STRUCTURED)
    with pytest.raises(LocalFault, match=f"^{text}$"):
        negotiation.take(go(REP_ERROR + error, b"a\nlong\nstory"))
    assert negotiation.parting == OPTION.pack(IHAVEOPT, OPT_ABORT, 0)


def test_a_server_that_wants_tls_first_is_told_apart() -> None:
    with pytest.raises(LocalFault, match="TLS"):
        played(HELLO + replied(OPT_STRUCTURED_REPLY, REP_ERROR + 5))


@pytest.mark.parametrize(
    "said, text",
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "no NBD server"),
        (GREETING.pack(NBDMAGIC, OLDSTYLE, 0), "oldstyle"),
        (GREETING.pack(NBDMAGIC, 1, 0), "no NBD server"),
        (HELLO + bytes(20), "not asked"),
        (HELLO + INFO, "not asked"),
        (HELLO + OPTION_REPLY.pack(OPTION_REPLY_MAGIC, 8, 1, 2**32 - 1), "4294967295 bytes"),
        (HELLO + STRUCTURED + ACK, "how large"),
        (HELLO + STRUCTURED + go(REP_INFO, b"\0\0\1") + ACK, "how large"),
        (HELLO + STRUCTURED + go(REP_INFO, b"\0"), "not asked"),
        (HELLO + STRUCTURED + go(2), "not asked"),
        (HELLO + STRUCTURED + INFO + go(REP_INFO, b"\0\3\0") + ACK, "no known form"),
        (HELLO + STRUCTURED + INFO + of_blocks(0, 4096) + ACK, "0 to 4096"),
        (HELLO + STRUCTURED + INFO + of_blocks(513, 4096) + ACK, "513 to"),
        (HELLO + STRUCTURED + INFO + of_blocks(1 << 17, 1 << 20) + ACK, "131072 to"),
        (HELLO + STRUCTURED + INFO + of_blocks(512, 511) + ACK, "512 to 511"),
        (HELLO + STRUCTURED + go(REP_INFO, EXPORT_INFO.pack(0, 1 << 63, 1)) + ACK, "broken"),
        (HELLO + STRUCTURED + INFO * (REPLIES_MAX + 1), "without an end"),
        (HELLO + STRUCTURED + INFO + ACK + b"x", "more than was asked"),
    ],
)
def test_nonsense_is_one_line(said: bytes, text: str) -> None:
    with pytest.raises(LocalFault, match=text) as caught:
        played(said)
    assert "\n" not in str(caught.value)


def test_an_end_says_what_it_means() -> None:
    negotiation, _ = played(HELLO)
    assert "before it was agreed" in str(negotiation.ended())
    negotiation, _ = played(HELLO + STRUCTURED + go(REP_ERR_UNSUP))
    assert "export 'disk' is not there" in str(negotiation.ended())


PIECES = st.sampled_from([HELLO, STRUCTURED, INFO, ACK, of_blocks(512, 4096), go(REP_ERR_UNSUP)])


@given(st.lists(PIECES | st.binary(max_size=40), max_size=8), st.integers(1, 50), st.text())
def test_any_bytes_are_an_export_or_a_fault(said: list[bytes], piece: int, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    try:
        negotiation, _ = played(b"".join(said), name, piece)
    except LocalFault as fault:
        assert len(str(fault).splitlines()) == 1
    else:
        assert negotiation.export is None or negotiation.export.max_payload > 0
