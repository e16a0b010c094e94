"""Room for disks that come later: how much of it a machine has, and what its disks then are."""

import pytest

from toolstack.disks import Disk, DiskSpec
from toolstack.limits import Host, Shape, check_host
from toolstack.listing import _told
from toolstack.loadspec import ConfigError
from toolstack.settings import Settings
from toolstack.topology import Topology, with_spare_disks

TWO = Settings(guests=2, disks=["ram:1m", "ram:2m,vdev=xvdf"], spare_disks=3)


def test_a_guest_has_room_for_its_own_and_some_more() -> None:
    assert [TWO.places_of(domid) for domid in TWO.domids] == [5, 5]
    assert Settings(disks=["ram:1m"] * 15, spare_disks=4).places_of(1) == 16
    assert Settings(disks=["ram:1m"] * 3).places_of(1) == 3


def test_what_is_counted_has_a_row_for_each_number_up_to_the_largest() -> None:
    assert TWO.rows_of(1) == 6  # xvdf's is the last
    assert Settings(disks=["ram:1m"]).rows_of(1) == 1


def test_room_is_counted_as_if_it_were_used() -> None:
    assert Shape.of(TWO).disks == [5, 5]
    taken, free = Shape.of(TWO), Shape.of(Settings(guests=2, disks=["ram:1m"] * 5, buffer_mib=4))
    assert (taken.grant_frames, taken.shared) == (free.grant_frames, free.shared)
    little = Host(None, None, None, Shape.of(Settings(guests=2, buffer_mib=4)).shared)
    with pytest.raises(ConfigError, match="buffer-mib: the machine's shared memory takes"):
        check_host(TWO, little)


def test_disks_come_and_go() -> None:
    disk = Disk(2, 1, "xvdb", DiskSpec(target="null:1m"))
    more = TWO.with_disks_of(2, [*TWO.disks_of(2), disk])
    assert [str(each) for each in more.every_disk()] == [
        "guest 1's xvda", "guest 1's xvdf", "guest 2's xvda", "guest 2's xvdf", "guest 2's xvdb"
    ]  # fmt: skip
    none = more.with_disks_of(1, [])
    assert none.disks_of(1) == [] and len(none.disks_of(2)) == 3
    assert none.buffer_mib == TWO.buffer_mib
    plain = none.model_dump(mode="json", exclude_unset=True)  # as it goes to who asks for it
    assert Settings(**plain).every_disk() == none.every_disk()


def test_a_second_writer_of_a_store_is_refused() -> None:
    disk = Disk(1, 1, "xvdb", DiskSpec(target="ram:1m", name="one"))
    named = TWO.with_disks_of(1, [disk])
    with pytest.raises(ConfigError, match="is written by guest 1's xvdb and guest 2's xvdb"):
        named.with_disks_of(2, [disk._replace(domid=2)])


@pytest.mark.parametrize("wrong", [-1, 16, 99])
def test_how_many_there_may_be(wrong: int) -> None:
    with pytest.raises(ConfigError, match=r"^spare-disks: -?\d+ is not in 0\.\.15$"):
        Settings(spare_disks=wrong)


def test_who_says_nothing_has_what_the_host_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    room = 7

    def check_host(machine: Settings) -> None:
        if Shape.of(machine).rings > room:
            raise ConfigError("too many")

    monkeypatch.setattr("toolstack.limits.check_host", check_host)
    assert with_spare_disks(Topology(guests=2)).spare_disks == 2
    assert with_spare_disks(Topology(guests=3)).spare_disks == 1
    assert with_spare_disks(Topology(guests=4)).spare_disks == 0
    assert with_spare_disks(Topology(guests=4, spare_disks=9)).spare_disks == 9


class Machine:
    """What `ls` asks of one."""

    name, run_dir, xenstore_path = "m", "/run/m", "/run/m/xenstored"
    topology = Topology(guests=1)
    described = {"state": "running", "pid": 1, "since": 0.0, "mode": "persistent"}  # noqa: RUF012


def test_a_listing_outlives_disks_that_come_and_go_meanwhile() -> None:
    def disk(vdev: str, ios: int, at_s: float) -> dict[str, object]:
        return {"domid": 1, "vdev": vdev, "ios": ios, "at_s": at_s}

    before = {"disks": [disk("xvda", 10, 1.0), disk("xvdb", 7, 1.0)], "domains": [], "loads": 0}
    after = {"disks": [disk("xvda", 20, 1.5), disk("xvdc", 9, 1.5)], "domains": [], "loads": 0}
    told = _told(Machine(), before, after)  # type: ignore[arg-type]
    assert [(each["vdev"], each["iops"]) for each in told["disks"]] == [("xvda", 20), ("xvdc", 0)]
