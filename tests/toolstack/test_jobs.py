"""Which load runs on which disk."""

from typing import Any

import pytest

from toolstack.jobs import jobs_on, load_of
from toolstack.loadspec import ConfigError, LoadSpec
from toolstack.settings import Settings

MACHINE = Settings(
    guests=2,
    guest=[
        {"disks": ["ram:1m,name=a", "null:1m"]},
        {"disks": ["ram:1m", "ram:64k,access=ro", "ram:1m,name=a,access=ro"]},
    ],
)


def shared_out(load: Any) -> dict[str, str]:
    found = jobs_on(load_of(load), MACHINE.every_disk())
    return {f"{job.disk.domid} {job.disk.vdev}": job.spec.rw for job in found}


def error_of(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        shared_out(LoadSpec(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_load_runs_on_every_disk() -> None:
    disks = ["1 xvda", "1 xvdb", "2 xvda", "2 xvdb", "2 xvdc"]
    assert shared_out(LoadSpec(rw="randread")) == dict.fromkeys(disks, "randread")


def test_or_on_those_that_it_names() -> None:
    assert list(shared_out(LoadSpec(vdev="xvda"))) == ["1 xvda", "2 xvda"]
    assert list(shared_out(LoadSpec(vdev=["xvda", "xvdb"], domid=1))) == ["1 xvda", "1 xvdb"]


def test_jobs_run_at_once_and_what_they_do_not_say_is_the_load_s() -> None:
    jobs = [{"vdev": "xvda"}, {"vdev": ["xvdb"], "domid": 2, "rw": "read", "runtime": 2}]
    load = LoadSpec(rw="write", bs="8k", ios=5, job=jobs)
    assert shared_out(load) == {"1 xvda": "write", "2 xvda": "write", "2 xvdb": "read"}
    assert [(job.bs, job.ios, job.runtime_s) for job in load.jobs] == [
        (8192, 5, None),
        (8192, 5, 2),
    ]
    assert LoadSpec(**load.given()) == load


def test_a_list_of_loads_is_jobs() -> None:
    loads = [LoadSpec(vdev="xvda"), LoadSpec(rw="read", vdev="xvdb")]
    assert shared_out(loads) == {
        "1 xvda": "randrw", "2 xvda": "randrw", "1 xvdb": "read", "2 xvdb": "read",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {},
            "rw: randrw writes to guest 2's xvdb, which is access=ro; read and"
            " randread are allowed",
        ),
        ({"rw": "read", "bs": "128k"}, "bs: 128k is more than all of guest 2's xvdb, 64k"),
        ({"vdev": "xvdd"}, "vdev: xvdd is no disk there is"),
        ({"domid": 3}, "vdev: any of guest 3 is no disk there is"),
        ({"vdev": "xvdc", "domid": 1}, "vdev: xvdc of guest 1 is no disk there is"),
        ({"vdev": "sda"}, "vdev: 'sda' is not in xvda..xvdp"),
        ({"domid": True}, "domid: True is not in 1..64"),
        (
            {"rw": "read", "job": [{"vdev": "xvda"}, {"domid": 1}]},
            "job: guest 1's xvda has two; a disk has one at most",
        ),
        ({"job": [{"bs": 1}]}, "job: bs: 1 is not a multiple of 512 in 512..1m"),
        ({"job": [{"vdevs": 1}]}, "job: vdevs: no such setting; allowed are rw"),
        ({"job": [{"job": [{}]}]}, "job: {'job': [{}]} is not a table without jobs of its own"),
        ({"job": 3}, "job: 3 is not a list of tables"),
        ({"vdev": "xvda", "job": [{}]}, "vdev: is for a load of no jobs, or for a job"),
    ],
)
def test_what_cannot_run_is_named(settings: dict[str, Any], line: str) -> None:
    assert error_of(**settings).startswith(line)


def verified(load: LoadSpec) -> dict[str, tuple[bool, str]]:
    """By disk: is it verified, and whose writes must be known for that?"""
    found = jobs_on(load, MACHINE.every_disk())
    return {
        f"{job.disk.domid} {job.disk.vdev}": (job.verified, str(job.after or "")) for job in found
    }


def test_a_null_disk_keeps_nothing_that_could_be_verified() -> None:
    found = verified(LoadSpec(rw="read"))
    assert [found[disk] for disk in ("1 xvda", "1 xvdb", "2 xvda", "2 xvdb")] == [
        (True, ""), (False, ""), (True, ""), (True, ""),
    ]  # fmt: skip
    assert not any(each for each, _ in verified(LoadSpec(rw="read", verify=False)).values())


def test_another_s_store_is_verified_if_nobody_writes_to_it_meanwhile() -> None:
    reader = {"domid": 2, "vdev": "xvdc", "rw": "read"}
    known = (True, "guest 1's xvda")
    assert verified(LoadSpec(job=[reader]))["2 xvdc"] == known
    assert verified(LoadSpec(job=[reader, {"domid": 1, "rw": "read"}]))["2 xvdc"] == known
    assert verified(LoadSpec(job=[reader, {"domid": 1}]))["2 xvdc"] == (False, "")
    assert verified(LoadSpec(job=[reader, {"domid": 1}]))["1 xvda"] == (True, "")


def test_a_store_that_nobody_may_write_to_is_zeros() -> None:
    machine = Settings(guests=2, disks=["ram:1m,name=a,access=ro"])
    jobs = jobs_on(LoadSpec(rw="read"), machine.every_disk())
    assert [(job.verified, job.after) for job in jobs] == [(True, None)] * 2


def test_every_disk_has_its_own_seed() -> None:
    machine = Settings(guests=64, disks=["ram:1m"] * 16)
    seeds = {job.seed for job in jobs_on(LoadSpec(), machine.every_disk())}
    assert len(seeds) == 64 * 16
