import pytest

from xenstored.permissions import (
    Permission,
    Right,
    alive,
    format_permissions,
    granted_now,
    inherited,
    parse_permissions,
    rights_of,
)
from xenstored.refusal import Refusal

ALL = Right.READ | Right.WRITE | Right.OWNER


def perms(text):
    return parse_permissions(text.encode().split())


@pytest.mark.parametrize(
    ("entries", "domid", "rights"),
    [
        ("n1", 1, ALL),  # the owner has all
        ("n1", 0, ALL),  # and so has domain 0
        ("n1", 2, Right.NONE),
        ("r1", 2, Right.READ),  # the owner's entry says what the others may
        ("w1", 2, Right.WRITE),
        ("b1", 2, Right.READ | Right.WRITE),
        ("n1 r2", 2, Right.READ),
        ("b1 n2", 2, Right.NONE),  # being named can take away
        ("n1 r2", 3, Right.NONE),
        ("n1 r2 w2", 2, Right.READ),  # the first that names it counts
        ("n1 n0", 0, ALL),
        ("r1 n1", 1, ALL),
    ],
)
def test_rights(entries, domid, rights):
    assert rights_of(domid, perms(entries)) == rights


@pytest.mark.parametrize(
    "entry", [b"", b"n", b"x1", b"r-1", b"r1 ", b"R1", b"r99999", b"\xff1", b"1"]
)
def test_a_malformed_entry_is_einval(entry):
    with pytest.raises(Refusal, match="EINVAL"):
        parse_permissions([b"n0", entry])


def test_no_entry_at_all_is_einval():
    with pytest.raises(Refusal, match="EINVAL"):
        parse_permissions([])


def test_formatting_normalises_the_domid():
    assert format_permissions(perms("n0 r007 w2 b3")) == [b"n0", b"r7", b"w2", b"b3"]


def test_a_guest_owns_what_it_creates_and_dom0_leaves_the_owner_as_it_was():
    assert inherited(5, perms("r1 b2"), {}) == perms("r5 b2")
    assert inherited(0, perms("r1 b2"), {}) == perms("r1 b2")


def test_what_is_given_to_a_domain_is_given_for_its_present_life():
    given = granted_now(perms("n1 r2 b3"), {2: 4})
    assert [entry.life for entry in given] == [0, 4, 0]
    assert alive(given, {2: 4}) is given
    assert alive(given, {2: 5}) == perms("n1 b3")
    assert inherited(2, perms("n1"), {2: 4}) == (Permission(2, Right.NONE, 4),)


def test_what_a_released_domain_owned_is_domain_0s():
    assert alive(perms("r1 b2"), {1: 1}) == perms("r0 b2")
