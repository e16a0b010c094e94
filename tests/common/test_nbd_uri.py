"""NBD URIs: what is one, and what is said of what is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.nbd_uri import NbdUri, parse_nbd_uri


@pytest.mark.parametrize(
    "text, uri",
    [
        ("nbd+unix:///disk?socket=/run/nbd.sock", NbdUri("disk", "/run/nbd.sock", "", 0)),
        ("nbd+unix:///?socket=/a%20b", NbdUri("", "/a b", "", 0)),
        ("nbd+unix:///?socket=/a+b=c&d", None),
        ("nbd+unix:///?socket=/a+b=c", NbdUri("", "/a+b=c", "", 0)),
        ("nbd+unix:///?socket=%00/abstract", NbdUri("", "\0/abstract", "", 0)),
        ("nbd://example.com:10810/disk", NbdUri("disk", "", "example.com", 10810)),
        ("nbd://example.com/", NbdUri("", "", "example.com", 10809)),
        ("nbd://example.com", NbdUri("", "", "example.com", 10809)),
        ("nbd://example.com//disk", NbdUri("/disk", "", "example.com", 10809)),
        ("nbd://example.com/hello%20world", NbdUri("hello world", "", "example.com", 10809)),
        ("nbd://[::1]:1/x", NbdUri("x", "", "::1", 1)),
        ("nbd://[fe80::1]/x", NbdUri("x", "", "fe80::1", 10809)),
        ("nbd://127.0.0.1/%C3%BC", NbdUri("ü", "", "127.0.0.1", 10809)),
    ],
)
def test_a_uri_is_taken_apart(text: str, uri: NbdUri | None) -> None:
    if uri is None:
        with pytest.raises(ValueError):
            parse_nbd_uri(text)
    else:
        assert parse_nbd_uri(text) == uri


@pytest.mark.parametrize(
    "text, said",
    [
        ("nbds://example.com/x", "no TLS"),
        ("nbds+unix:///x?socket=/s", "no TLS"),
        ("http://example.com/x", "it is not nbd"),
        ("", "it is not nbd"),
        ("nbd+unix://host/x?socket=/s", "three slashes"),
        ("nbd+unix:///x", r"\?socket=PATH"),
        ("nbd+unix:///x?socket=", "1 to 107"),
        ("nbd+unix:///x?socket=/" + "s" * 107, "1 to 107"),
        ("nbd+unix:///x?socket=/s&tls-type=psk", r"\?socket=PATH"),
        ("nbd+unix:///x?sock=/s", r"\?socket=PATH"),
        ("nbd:///x", "a host is needed"),
        ("nbd://joe@example.com/x", "no user"),
        ("nbd://example.com:0/x", "1 to 65535"),
        ("nbd://example.com:65536/x", "[Pp]ort"),
        ("nbd://example.com:ten/x", "[Pp]ort"),
        ("nbd://[::1/x", "IPv6"),
        ("nbd://example.com/x?socket=/s", "for nbd.unix"),
        ("nbd://example.com/x#y", "%23"),
        ("nbd://example.com/x y", "%20"),
        ("nbd://example.com/%zz", "two hex digits"),
        ("nbd://example.com/%ff", "not UTF-8"),
        ("nbd://example.com/%00", "no NUL"),
        ("nbd://example.com/" + "x" * 4097, "4096"),
    ],
)
def test_what_is_none_is_named_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        parse_nbd_uri(text)
    assert repr(text) in str(caught.value) and "\n" not in str(caught.value)


@given(st.text() | st.text().map("nbd://".__add__) | st.text().map("nbd+unix:///?".__add__))
def test_any_text_is_a_uri_or_one_line(text: str) -> None:
    try:
        parse_nbd_uri(text)
    except ValueError as error:
        assert "\n" not in str(error)
