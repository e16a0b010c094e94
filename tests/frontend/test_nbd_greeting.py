"""A client and an export come to terms; with dom0's own client, too, which is another's code."""

import pytest

from backend.nbd_negotiation import Negotiation
from common.faults import LocalFault, PeerFault
from common.nbd_wire import (
    BLOCK_SIZE_INFO,
    CLIENT_FLAGS,
    EXPORT_INFO,
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
    REP_ACK,
    REP_ERR_INVALID,
    REP_ERR_UNKNOWN,
    REP_ERR_UNSUP,
    REP_INFO,
    REP_SERVER,
)
from frontend.nbd_greeting import OPTION_MAX, OPTIONS_MAX, Greeting, Offer

OFFER = Offer(1 << 20, 0x123, 512, 4096, 1 << 25)
STARTTLS = 5


def option(number: int, data: bytes = b"") -> bytes:
    return OPTION.pack(IHAVEOPT, number, len(data)) + data


def asked(name: bytes = b"", *infos: int) -> bytes:
    """The data of OPT_GO and OPT_INFO."""
    listed = b"".join(info.to_bytes(2, "big") for info in infos)
    return len(name).to_bytes(4, "big") + name + len(infos).to_bytes(2, "big") + listed


def replies(data: bytes) -> list[tuple[int, int, bytes]]:
    """(option, type, data) of each."""
    found = []
    while data:
        _, number, type_, length = OPTION_REPLY.unpack(data[: OPTION_REPLY.size])
        found.append((number, type_, data[OPTION_REPLY.size :][:length]))
        data = data[OPTION_REPLY.size + length :]
    return found


@pytest.fixture
def greeting() -> Greeting:
    greeting = Greeting(OFFER)
    assert GREETING.unpack(greeting.opening) == (NBDMAGIC, IHAVEOPT, 3)
    assert greeting.take(CLIENT_FLAGS.pack(3)) == b""
    return greeting


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_dom0s_client_agrees_with_it_whatever_way_the_bytes_are_cut(at_once: int) -> None:
    server, client = Greeting(OFFER), Negotiation("")
    to_client = server.opening
    while client.export is None:
        to_server = client.take(to_client)
        to_client = b""
        for at in range(0, len(to_server), at_once):
            to_client += server.take(to_server[at : at + at_once])
    assert client.export == (1 << 20, 0x123, True, 512, 1 << 25)
    assert server.agreed and server.structured and server.rest == b""


def test_what_follows_the_greeting_is_kept(greeting: Greeting) -> None:
    greeting.take(option(OPT_GO, asked()) + b"a request")
    assert greeting.agreed and greeting.rest == b"a request" and not greeting.structured


def test_infos_are_told_to_who_asks(greeting: Greeting) -> None:
    export = EXPORT_INFO.pack(INFO_EXPORT, 1 << 20, 0x123)
    answer = replies(greeting.take(option(OPT_INFO, asked(b"", 77))))
    assert answer == [(OPT_INFO, REP_INFO, export), (OPT_INFO, REP_ACK, b"")]
    assert not greeting.agreed
    sizes = BLOCK_SIZE_INFO.pack(INFO_BLOCK_SIZE, 512, 4096, 1 << 25)
    answer = replies(greeting.take(option(OPT_GO, asked(b"", INFO_BLOCK_SIZE))))
    assert answer == [(OPT_GO, REP_INFO, export), (OPT_GO, REP_INFO, sizes), (OPT_GO, REP_ACK, b"")]
    assert greeting.agreed


@pytest.mark.parametrize(
    ("number", "data", "types"),
    [
        (OPT_LIST, b"", [REP_SERVER, REP_ACK]),
        (OPT_LIST, b"x", [REP_ERR_INVALID]),
        (OPT_STRUCTURED_REPLY, b"x", [REP_ERR_INVALID]),
        (OPT_GO, asked(b"other"), [REP_ERR_UNKNOWN]),
        (OPT_GO, b"", [REP_ERR_INVALID]),
        (OPT_GO, asked()[:-1], [REP_ERR_INVALID]),
        (OPT_GO, asked() + b"\0\3", [REP_ERR_INVALID]),
        (OPT_GO, b"\xff\xff\xff\xff\0\0", [REP_ERR_INVALID]),
        (STARTTLS, b"", [REP_ERR_UNSUP]),
        (99, bytes(1000), [REP_ERR_UNSUP]),
    ],
)
def test_what_is_refused_has_no_consequence(
    greeting: Greeting, number: int, data: bytes, types: list[int]
) -> None:
    answer = replies(greeting.take(option(number, data)))
    assert [type_ for _, type_, _ in answer] == types
    assert not greeting.agreed and not greeting.over and not greeting.structured
    greeting.take(option(OPT_GO, asked()))
    assert greeting.agreed


def test_by_name_there_is_no_refusal(greeting: Greeting) -> None:
    with pytest.raises(PeerFault, match="an export that is not there"):
        greeting.take(option(OPT_EXPORT_NAME, b"other"))


@pytest.mark.parametrize(("flags", "zeroes"), [(1, 124), (3, 0)])
def test_by_name_zeroes_come_unless_they_are_not_wanted(flags: int, zeroes: int) -> None:
    greeting = Greeting(OFFER)
    answer = greeting.take(CLIENT_FLAGS.pack(flags) + option(OPT_EXPORT_NAME))
    assert answer == (1 << 20).to_bytes(8, "big") + b"\x01\x23" + bytes(zeroes)
    assert greeting.agreed


def test_who_leaves_is_told_so(greeting: Greeting) -> None:
    assert replies(greeting.take(option(OPT_ABORT))) == [(OPT_ABORT, REP_ACK, b"")]
    assert greeting.over and not greeting.agreed


@pytest.mark.parametrize(
    "sent",
    [
        CLIENT_FLAGS.pack(0),  # no fixed newstyle
        CLIENT_FLAGS.pack(0x13),  # flags that nobody knows
        CLIENT_FLAGS.pack(3) + b"GET / HTTP/1.1\r\n",
        CLIENT_FLAGS.pack(3) + OPTION.pack(IHAVEOPT, OPT_GO, OPTION_MAX + 1),
        CLIENT_FLAGS.pack(3) + option(99) * OPTIONS_MAX,
        CLIENT_FLAGS.pack(3) + option(OPT_GO, asked()) + bytes(1 << 20),
    ],
)
def test_who_breaks_the_form_is_not_gone_on_with(sent: bytes) -> None:
    with pytest.raises(PeerFault):
        Greeting(OFFER).take(sent)


def test_an_export_of_another_name_is_told_of_to_dom0s_client() -> None:
    server, client = Greeting(OFFER), Negotiation("other")
    to_client = server.opening
    with pytest.raises(LocalFault, match="'other' is not there"):
        for _ in range(10):
            to_client = server.take(client.take(to_client))
