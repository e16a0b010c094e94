"""Messages as bytes, and back, however the stream is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.xenstore_wire import (
    HEADER,
    XENSTORE_ABS_PATH_MAX,
    XENSTORE_PAYLOAD_MAX,
    XENSTORE_REL_PATH_MAX,
    MessageType,
    Packet,
    Parser,
    pack,
    pack_strings,
    unpack_strings,
)

U32 = st.integers(0, 2**32 - 1)
PACKETS = st.builds(Packet, U32, U32, U32, st.binary(max_size=80))
STRINGS = st.lists(st.binary(max_size=10).filter(lambda raw: b"\0" not in raw), max_size=6)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks = []
    for size in sizes:
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


def test_the_limits_are_xens() -> None:
    limits = (XENSTORE_PAYLOAD_MAX, XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX)
    assert limits == (4096, 3072, 2048)


def test_a_message_is_four_words_and_its_payload() -> None:
    packet = Packet(MessageType.WRITE, 0x01020304, 5, b"/a\0value")
    assert pack(packet) == (
        b"\x0b\0\0\0" + b"\x04\x03\x02\x01" + b"\x05\0\0\0" + b"\x08\0\0\0" + b"/a\0value"
    )


@given(st.lists(PACKETS, max_size=5), st.lists(st.integers(0, 40), max_size=20))
def test_a_stream_gives_its_packets_however_it_is_cut(
    packets: list[Packet], sizes: list[int]
) -> None:
    parser = Parser()
    found: list[Packet] = []
    for chunk in cut(b"".join(map(pack, packets)), sizes):
        found += parser.feed(chunk)
    assert found == packets
    assert parser.broken is None


def test_a_packet_is_delivered_with_its_last_byte_and_not_before() -> None:
    parser, data = Parser(), pack(Packet(1, 2, 3, b"abc"))
    assert [parser.feed(data[i : i + 1]) for i in range(len(data))] == [
        *([[]] * (len(data) - 1)),
        [Packet(1, 2, 3, b"abc")],
    ]


@pytest.mark.parametrize("length", [0, 1, 4095, 4096])
def test_a_payload_up_to_the_limit_goes_through(length: int) -> None:
    packet = Packet(MessageType.READ, 1, 0, b"x" * length)
    assert Parser().feed(pack(packet)) == [packet]


@pytest.mark.parametrize("length", [4097, 65536, 2**31, 2**32 - 1])
def test_a_payload_over_the_limit_breaks_the_stream_for_good(length: int) -> None:
    good = pack(Packet(MessageType.READ, 1, 0, b"/a\0"))
    parser = Parser()
    found = parser.feed(good + good + HEADER.pack(2, 1, 0, length) + good)
    assert found == [Packet(MessageType.READ, 1, 0, b"/a\0")] * 2
    assert parser.broken == f"a payload of {length} bytes is over 4096"
    assert parser.feed(good) == []
    assert parser.broken == f"a payload of {length} bytes is over 4096"


def test_a_break_is_seen_with_the_headers_last_byte() -> None:
    parser, header = Parser(), HEADER.pack(2, 1, 0, 4097)
    parser.feed(header[:-1])
    assert parser.broken is None
    parser.feed(header[-1:])
    assert parser.broken is not None


def test_we_send_no_payload_over_the_limit() -> None:
    with pytest.raises(AssertionError):
        pack(Packet(MessageType.WRITE, 1, 0, bytes(4097)))


@given(STRINGS)
def test_strings_come_back_as_they_went(strings: list[bytes]) -> None:
    assert unpack_strings(pack_strings(*strings)) == strings


@pytest.mark.parametrize(
    ("payload", "strings"),
    [(b"", []), (b"\0", [b""]), (b"a\0b\0", [b"a", b"b"]), (b"a\0b", [b"a"]), (b"ab", [])],
)
def test_bytes_behind_the_last_nul_belong_to_no_string(
    payload: bytes, strings: list[bytes]
) -> None:
    assert unpack_strings(payload) == strings
