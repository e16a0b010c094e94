"""What the toolstack has written for a disk: what is missing is waited for, what is wrong is said.

(What dom0 does about it: tests/system/test_careless_directories.py.)
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.plug import NEEDED, open_disk, parse_name, read_plug
from common.faults import LocalFault, PeerFault

SOUND = {
    "state": b"1",
    "online": b"1",
    "frontend": b"/local/domain/7/device/vbd/51712",
    "frontend-id": b"7",
    "mode": b"w",
    "params": b"ram:3",
    "type": b"phy",
}


def test_a_directory_with_all_that_is_needed_has_its_params() -> None:
    assert read_plug(SOUND, 7, 51712) == b"ram:3"
    disk = open_disk(b"ram:3")
    assert disk.nr_sectors == 3 * 2048
    disk.close()


@pytest.mark.parametrize("key", NEEDED)
def test_what_is_missing_is_waited_for(key: str) -> None:
    assert read_plug({k: v for k, v in SOUND.items() if k != key}, 7, 51712) is None


@given(st.sets(st.sampled_from(NEEDED), max_size=len(NEEDED) - 1))
def test_half_a_directory_is_never_an_error(keys: set[str]) -> None:
    assert read_plug({key: SOUND[key] for key in keys}, 7, 51712) is None


@pytest.mark.parametrize("state", [b"0", b"2", b"4", b"5", b"6", b"", b"x", b"01"])
def test_only_initialising_is_new(state: bytes) -> None:
    assert read_plug({**SOUND, "state": state}, 7, 51712) is None


def test_what_is_being_detached_is_not_begun() -> None:
    assert read_plug({**SOUND, "online": b"0"}, 7, 51712) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("frontend", b""),
        ("frontend", b"/local/domain/8/device/vbd/51712"),
        ("frontend", b"/local/domain/7/device/vbd/51712/"),
        ("frontend", b"/local/domain/7/device/vbd/51713"),
        ("frontend", b"\xff\0" * 2000),
        ("frontend-id", b""),
        ("frontend-id", b"07"),
        ("frontend-id", b"8"),
        ("mode", b"r"),
        ("mode", b""),
    ],
)
def test_what_is_wrong_is_named_in_a_short_line(key: str, value: bytes) -> None:
    with pytest.raises(PeerFault, match=rf"^{key} b'") as error:
        read_plug({**SOUND, key: value}, 7, 51712)
    assert len(str(error.value)) < 160


@pytest.mark.parametrize(
    "params",
    [
        b"",
        b"foo",
        b"ram",
        b"ram:",
        b"ram:0",
        b"ram:-1",
        b"ram:1.5",
        b"ram: 1",
        b"ram:1\n",
        b"RAM:1",
        b"file:/etc/passwd",
        b"ram:1000000000000",
        b"ram:8796093022207",
        b"ram:8796093022208",
        b"ram:" + b"9" * 4000,
    ],
)
def test_params_that_name_no_disk_are_said_to(params: bytes) -> None:
    with pytest.raises((LocalFault, PeerFault), match=r"^params b'") as error:
        open_disk(params)
    assert len(str(error.value)) < 160


@pytest.mark.parametrize(
    ("name", "number"),
    [("0", 0), ("51712", 51712), ("051712", None), ("-1", None), ("", None), ("x", None)],
)
def test_a_number_has_one_name(name: str, number: int | None) -> None:
    assert parse_name(name, 0xFFFFFFFF) == number


def test_a_name_that_str_takes_for_a_digit_is_none() -> None:
    assert parse_name("\u00b2", 100) is None  # "²".isdigit() is True, and int("²") a ValueError
    assert parse_name("101", 100) is None
