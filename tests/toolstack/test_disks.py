"""What disks guests have, and how one that cannot be is told."""

from typing import Any

import pytest

from common.targets import FORM as TARGETS
from toolstack.disks import DISKS_MAX, FORM, VDEVS, DiskSpec, device_of
from toolstack.loadspec import ConfigError
from toolstack.settings import Settings


def error_of(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_of(machine: Settings, domid: int = 1) -> list[str]:
    return [f"{disk.vdev} {disk.spec.params}" for disk in machine.disks_of(domid)]


def test_without_a_word_a_guest_has_one_ram_disk() -> None:
    assert names_of(Settings()) == ["xvda ram:64m"]
    assert names_of(Settings(disk_mib=16), 4) == ["xvda ram:16m"]


@pytest.mark.parametrize(
    ("written", "spec", "size"),
    [
        ("ram:512", {"target": "ram:512"}, 512),
        ("ram:64M", {"target": "ram:64m"}, 64 << 20),
        ("null:64g", {"target": "null:64g"}, 64 << 30),
        (
            "ram:4k,name=boot,vdev=xvdc,access=ro",
            {"target": "ram:4k", "name": "boot", "vdev": "xvdc", "access": "ro"},
            4096,
        ),
        ({"target": "ram:1m", "access": "ro"}, {"target": "ram:1m", "access": "ro"}, 1 << 20),
    ],
)
def test_a_disk_is_what_is_written(written: Any, spec: dict[str, str], size: int) -> None:
    found = DiskSpec.of(written)
    assert found == DiskSpec(**spec)
    assert found.size == size
    assert DiskSpec.of(found.text()) == found


SIZES = "has a size that is no multiple of 512 in 512..64g"


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("", f"target: ':' is not {TARGETS}"),
        ("cow:x", f"target: 'cow:x' is not {TARGETS}"),
        ("file:/x,cache=unsafe", "cache: 'unsafe' is not one of writeback, none"),
        ("ram:1m,cache=none", "cache: ram has no such option; allowed are name, sector-size"),
        ("ram:1m,sector-size=520", "sector-size: '520' is not one of 512, 4096"),
        ("nbd://h/x,timeout=x", "timeout: 'x' is not above 0, at most 3600 (seconds)"),
        ("ram:", f"target: 'ram:' is not {TARGETS}"),
        ("ram:1q", "target: 'ram:1q' is not ram:SIZE, as in ram:64m"),
        ("ram:100", f"target: 'ram:100' {SIZES}"),
        ("ram:0", f"target: 'ram:0' {SIZES}"),
        ("null:65g", f"target: 'null:65g' {SIZES}"),
        ("ram:1m,vdev=sda", "vdev: 'sda' is not in xvda..xvdp"),
        ("ram:1m,vdev=xvdq", "vdev: 'xvdq' is not in xvda..xvdp"),
        ("ram:1m,access=w", "access: 'w' is not one of ro, rw"),
        ("ram:1m,name=a/b", "name: 'a/b' is not 1..32 letters, digits, '_', '.' or '-'"),
        ("null:1m,name=a", "name: null has no such option; allowed are sector-size"),
        ("ram:1m,ro", f"is not {FORM}"),
        ("ram:1m,rw=read", f"is not {FORM}"),
        ("ram:1m,vdev=xvda,vdev=xvdb", f"is not {FORM}"),
        (7, f"is not {FORM}"),
        ({"target": "ram:1m", "vdevs": 1}, "vdevs: no such setting; allowed are target, name"),
    ],
)
def test_a_disk_that_cannot_be_is_named_with_what_is_allowed(written: Any, complaint: str) -> None:
    line = error_of(disks=[written])
    assert line.startswith("disk: ")
    assert complaint in line


def test_a_disk_without_a_name_has_the_next_that_is_free() -> None:
    machine = Settings(disks=["ram:1m", "null:1m,vdev=xvda", "ram:2m", "ram:3m,vdev=xvdb"])
    assert names_of(machine) == ["xvdc ram:1m", "xvda null:1m", "xvdd ram:2m", "xvdb ram:3m"]
    assert [disk.number for disk in machine.disks_of(1)] == [2, 0, 3, 1]  # the vdevs'


def test_numbers_are_xen_s() -> None:
    assert [device_of(vdev) for vdev in ("xvda", "xvdb", "xvdp")] == [51712, 51728, 51952]
    assert len(VDEVS) == DISKS_MAX == 16


def test_a_guest_has_up_to_sixteen() -> None:
    assert len(Settings(disks=["ram:1m"] * 16).disks_of(3)) == 16
    assert error_of(disks=["ram:1m"] * 17) == "disks: 17 are not 1..16, which a guest may have"
    assert error_of(disks=[]) == "disks: 0 are not 1..16, which a guest may have"
    assert error_of(disks="ram:1m") == f"disks: 'ram:1m' is not a list of {FORM}"


def test_no_vdev_is_two_disks() -> None:
    line = error_of(disks=["ram:1m,vdev=xvdb", "null:1m,vdev=xvdb"])
    assert line == "disk: guest 1 has vdev=xvdb twice; a vdev is one disk's"


def test_the_short_form_and_the_long_one_are_not_both_taken() -> None:
    line = error_of(disk_mib=3, disks=["ram:1m"])
    assert line.startswith("disk-mib: 3 is short for the one disk ram:3m, and disks are named")


def test_a_guest_s_own_disks_are_in_place_of_the_common_ones() -> None:
    own = [{"disks": ["null:1m", "null:2m"]}, {"domid": 3, "disks": ["ram:9m"]}, {"domid": 2}]
    machine = Settings(guests=3, disks=["ram:1m"], guest=own)
    assert names_of(machine, 1) == ["xvda null:1m", "xvdb null:2m"]
    assert names_of(machine, 2) == ["xvda ram:1m"]
    assert names_of(machine, 3) == ["xvda ram:9m"]
    assert Settings(**machine.given()) == machine


@pytest.mark.parametrize(
    ("guest", "line"),
    [
        ([{"domid": 3}], "guest: domid 3 is not in 1..2"),
        ([{"domid": 65}], "guest: domid: 65 is not in 1..64"),
        ([{"domid": 2}, {}], "guest: domid 2 is there twice"),
        ([{"disk": "ram:1m"}], "guest: disk: no such setting; allowed are domid, disks"),
        ([{"disks": ["x"]}], f"guest: disk: 'x': target: 'x:' is not {TARGETS}"),
        ([3], "guest: 3 is not a table"),
    ],
)
def test_a_guest_that_cannot_be_is_named(guest: list[Any], line: str) -> None:
    assert error_of(guests=2, guest=guest) == line


def shared(*disks: str) -> dict[str, Any]:
    """A guest for each of `disks`."""
    return {"guests": len(disks), "guest": [{"disks": [disk]} for disk in disks]}


def test_disks_of_one_name_are_one_store() -> None:
    machine = Settings(**shared("ram:1m,name=a", "ram:1m,name=a,access=ro", "ram:1m"))
    assert [disk.key for disk in machine.every_disk()] == ["a", "a", "3/51712"]


def test_disks_of_one_store_have_one_size_and_one_writer() -> None:
    assert error_of(**shared("ram:1m,name=a", "ram:2m,name=a,access=ro")) == (
        "disk: name=a is 1m as guest 1's xvda and 2m as guest 2's xvda;"
        " disks of one name have one size"
    )
    assert error_of(guests=2, disks=["ram:1m,name=a"]) == (
        "disk: name=a is written by guest 1's xvda and guest 2's xvda; of the disks of one name one"
        " may be written, and the others need access=ro"
    )
    assert Settings(disks=["ram:1024k,name=a,access=ro", "ram:1m,name=a,access=ro"])
