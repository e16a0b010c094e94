"""What the toolstack has written for a disk: what is missing is waited for, what is wrong is said.

(What dom0 does about it: tests/system/test_careless_directories.py.)
"""

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.plug import NEEDED, Plug, open_disk, parse_name, read_plug, target_of
from backend.stores import NullStore, RamStore, RamStores, Store
from common.faults import LocalFault, PeerFault

SOUND = {
    "state": b"1",
    "online": b"1",
    "frontend": b"/local/domain/7/device/vbd/51712",
    "frontend-id": b"7",
    "mode": b"w",
    "params": b"ram:3m",
    "type": b"phy",
}


def test_a_directory_with_all_that_is_needed_has_its_params() -> None:
    assert read_plug(SOUND, 7, 51712) == Plug(b"ram:3m", False)


def opened(params: bytes, rams: RamStores | None = None, device: int = 51712) -> Store:
    store = open_disk(target_of(params), 7, device, rams or RamStores(), False)
    return cast(Store, store)


@pytest.mark.parametrize(
    ("params", "kind", "nr_sectors"),
    [
        (b"ram:3m", RamStore, 6144),
        (b"ram:512", RamStore, 1),
        (b"ram:4K", RamStore, 8),
        (b"ram:1g,name=some-thing_2.0", RamStore, 2 << 20),
        (b"null:64g", NullStore, 64 << 21),
    ],
)
def test_a_target_names_a_store_and_its_size(
    params: bytes, kind: type[Store], nr_sectors: int
) -> None:
    disk = opened(params)
    assert isinstance(disk, kind) and disk.nr_sectors == nr_sectors
    disk.close()


@pytest.mark.parametrize(("mode", "read_only"), [(b"w", False), (b"w!", False), (b"r", True)])
def test_a_disk_is_writable_or_read_only(mode: bytes, read_only: bool) -> None:
    assert read_plug({**SOUND, "mode": mode}, 7, 51712) == Plug(b"ram:3m", read_only)


def test_disks_of_one_name_are_one_store_and_others_have_their_own() -> None:
    rams = RamStores()
    one, other = (opened(b"ram:4k,name=x", rams, device) for device in (51712, 51728))
    alone = [opened(b"ram:4k", rams, device) for device in (51712, 51728)]
    for disk in (one, other, *alone):
        assert disk.memory is not None
        disk.memory[:] += 1
    assert [int(disk.memory[9]) for disk in (one, other, *alone)] == [2, 2, 1, 1]  # type: ignore
    with pytest.raises(LocalFault, match="store x has 4096 bytes, and not 8192"):
        opened(b"ram:8k,name=x", rams)
    for disk in (one, other, *alone):
        disk.close()
    opened(b"ram:8k,name=x", rams).close()  # of the old one nothing is left


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
        ("mode", b"x"),
        ("mode", b"rw"),
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
        b"\xff\xfe",
        b"volatile:nbd://h/x",
        b"nbd:",
        b"ram:",
        b"ram:0",
        b"ram:-1",
        b"ram:1.5",
        b"ram:513",
        b"ram:64g,",
        b"ram:65g",
        b"ram:68719477248",
        b"ram:1m,name=",
        b"ram:1m,name=a/b",
        b"ram:1m,name=" + b"a" * 33,
        b"ram:1m,access=ro",
        b"null:1m,name=x",
        b"null:0",
        b"ram:1t",
        b"ram:999999999999g",
        b"ram:" + b"9" * 4000,
    ],
)
def test_params_that_name_no_disk_are_said_to(params: bytes) -> None:
    with pytest.raises(PeerFault, match=r"^params b'") as error:
        opened(params)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "number"),
    [("0", 0), ("51712", 51712), ("051712", None), ("-1", None), ("", None), ("x", None)],
)
def test_a_number_has_one_name(name: str, number: int | None) -> None:
    assert parse_name(name, 0xFFFFFFFF) == number


def test_a_name_that_str_takes_for_a_digit_is_none() -> None:
    assert parse_name("\u00b2", 100) is None  # "²".isdigit() is True, and int("²") a ValueError
    assert parse_name("101", 100) is None
