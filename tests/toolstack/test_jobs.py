"""Which load runs on which disk."""

from pathlib import Path
from typing import Any

import pytest

from toolstack.disks import Disk
from toolstack.jobs import jobs_on, load_of, load_plan, region_of
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


# --- a load's shape ---------------------------------------------------------------------------


def one_disk(target: str) -> list[Disk]:
    return Settings(guests=1, disks=[target]).every_disk()


@pytest.mark.parametrize(
    ("target", "load", "complaint"),
    [
        ("ram:1m", {"size": "2m"}, "size: 2m from 0 on is more than guest 1's xvda has, 1m"),
        ("ram:1m", {"offset": "1m"}, "size: 4k from 1m on is more than guest 1's xvda has, 1m"),
        ("ram:1m", {"offset": "8k", "size": "1m"}, "size: 1m from 8k on is more than"),
        (
            "ram:1m,sector-size=4096",
            {"offset": 512, "size": "8k"},
            "offset: 512 is no multiple of guest 1's xvda's sector-size, 4096",
        ),
        (
            "ram:1m,sector-size=4096",
            {"bssplit": "4k/50:512/50"},
            "bs: 512 is no multiple of guest 1's xvda's sector-size, 4096",
        ),
    ],
)
def test_a_region_or_a_size_that_is_not_the_disk_s_is_refused(
    target: str, load: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError) as told:
        jobs_on(LoadSpec(**load), one_disk(target))
    assert str(told.value).startswith(complaint)


@pytest.mark.parametrize(
    ("entries", "complaint"),
    [
        (
            "f read 1048576 512",
            "it reaches to 1049088 bytes, and guest 1's xvda has 1048576 for it",
        ),
        ("f trim 0 4096", "rw: randrw discards, and guest 1's xvda is ram, which cannot"),
    ],
)
def test_a_trace_that_the_disk_cannot_do_is_refused(
    entries: str, complaint: str, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    trace.write_text(f"fio version 2 iolog\nf add\nf write 0 512\n{entries}\n")
    with pytest.raises(ConfigError, match=complaint):
        jobs_on(LoadSpec(replay=str(trace)), one_disk("ram:1m"))
    with pytest.raises(ConfigError, match="rw: randrw writes to guest 1's xvda, which"):
        jobs_on(LoadSpec(replay=str(trace)), one_disk("ram:1m,access=ro"))


def test_what_a_guest_is_told_of_a_shape() -> None:
    spec = LoadSpec(
        bssplit="4k/50:8k/50", offset="1m", size="50%", loops=2, rate_iops="100,200",
        random_distribution="pareto:0.2", thinktime=7, thinktime_blocks=3, startdelay_s=1,
        ramp_time_s=2,
    )  # fmt: skip
    plan = load_plan(spec, 1, True)
    assert (plan.bs, plan.offset, plan.size, plan.loops) == (8192, 1 << 20, "50%", 2)
    assert (plan.distribution, plan.skew, plan.rate_iops) == ("pareto", 0.2, (100, 200))
    assert (plan.thinktime_us, plan.thinktime_blocks) == (7, 3)
    assert (plan.startdelay_s, plan.ramp_s, plan.is_shaped) == (1.0, 2.0, True)
    plain = load_plan(LoadSpec(), 1, True)
    assert (plain.size, plain.loops, plain.is_shaped) == ("100%", 0, False)
    based = load_plan(LoadSpec(size="1m", time_based=True, runtime_s=1), 1, True)
    assert (based.size, based.loops) == (1 << 20, 0)


def test_where_a_job_s_region_lies() -> None:
    (disk,) = one_disk("ram:1m")
    for load, region in (
        ({}, (0, 1 << 20)),
        ({"offset": "25%", "size": "50%"}, (1 << 18, 1 << 19)),
        ({"offset": "512k"}, (1 << 19, 1 << 19)),
        ({"offset": 4096, "size": 8192}, (4096, 8192)),
    ):
        (job,) = jobs_on(LoadSpec(**load), [disk])
        assert region_of(job) == region
