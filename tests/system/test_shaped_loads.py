"""Loads with a shape, job files and traces on real machines."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.histogram import BUCKETS
from tests.system.conftest import grantlab
from toolstack.loadspec import ConfigError, LoadSpec
from toolstack.topology import RunningMachine, Topology

pytestmark = pytest.mark.system

# Debian's package fio-examples; each of these runs as it is.
EXAMPLES = Path(os.environ.get("FIO_EXAMPLES", "/usr/share/doc/fio/examples"))
RUN = (
    "aio-read", "fio-rand-RW", "fio-rand-read", "fio-rand-write", "fio-seq-RW", "fio-seq-read",
    "fio-seq-write", "fixed-rate-submission", "fsx", "iometer-file-access-server",
    "ssd-test", "tiobench-example", "zipf",
)  # fmt: skip


@pytest.fixture
def machine() -> Any:
    with Topology(guests=2, dom0_vcpus=2, disks=["ram:4m", "ram:4m"]).start() as machine:
        yield machine


def done(machine: RunningMachine, load: LoadSpec) -> dict[str, Any]:
    """What a load counts on guest 1's first disk."""
    running = machine.load(load)
    before = machine.snapshot()
    *_, after = running
    counted = after.frontend[1][0], before.frontend[1][0]
    found = {name: int(counted[0][name]) - int(counted[1][name]) for name in counted[0].dtype.names}
    assert (found["io_errors"], found["verify_errors"]) == (0, 0)
    found["seconds"] = after.at_s - before.at_s
    found["by"] = (after.latency[1][0] - before.latency[1][0]).reshape(-1, BUCKETS).sum(axis=1)
    return found


def test_every_shape_at_once_is_verified(machine: RunningMachine) -> None:
    load = LoadSpec(
        bssplit="512/20:4k/60:44k/20,8k", offset="25%", size="50%", time_based=True,
        runtime_s=0.5, random_distribution="zipf:1.1", fsync=64, thinktime=100,
        thinktime_blocks=50, startdelay_s=0.1,
    )  # fmt: skip
    found = done(machine, load)
    assert found["ios"] == found["by"].sum() > 100 and found["seconds"] > 0.6
    assert found["by"][0] / found["ios"] == pytest.approx(0.7, abs=0.1)


@pytest.mark.parametrize("vdev", [("xvda",), ("xvda", "xvdb")])
def test_a_rate_is_kept_alone_and_in_company(machine: RunningMachine, vdev: Any) -> None:
    load = LoadSpec(rw="randread", rate_iops=2000, vdev=vdev, runtime_s=0.5)
    found = done(machine, load)
    assert 0 < found["ios"] <= 1050  # a busy host may make it late, nothing makes it early


def test_a_paced_load_stops_at_once(machine: RunningMachine) -> None:
    running = machine.load(LoadSpec(startdelay_s=50, runtime_s=1), every_s=0.1)
    next(running)
    began = next(running).at_s
    running.close()
    assert machine.snapshot().at_s - began < 40  # of the 50 that it would have waited


def test_a_region_ends_a_load_after_its_loops(machine: RunningMachine) -> None:
    found = done(machine, LoadSpec(rw="write", size="1m", loops=3, vdev="xvda"))
    assert (found["ios"], found["bytes_written"]) == (768, 3 << 20)


def test_a_trace_is_replayed_in_its_time(machine: RunningMachine, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    lines = [
        f"{at * 1000} f {'write' if at % 3 else 'read'} {at % 9 * 8192} 8192" for at in range(300)
    ]
    trace.write_text("\n".join(["fio version 3 iolog", "0 f add", *lines, ""]))
    load = {"replay": str(trace), "vdev": "xvda"}
    found = done(machine, LoadSpec(**load))
    assert found["by"].tolist() == [100, 200, 0] and found["bytes_read"] == 100 * 8192
    assert found["seconds"] >= 0.299
    assert done(machine, LoadSpec(replay_no_stall=True, loops=20, **load))["ios"] == 6000
    trace.write_text("fio version 3 iolog\n0 f add\n0 f read 8388608 512\n")
    with pytest.raises(ConfigError, match=r"replay: '.*': it reaches to 8389120 bytes"):
        machine.load(LoadSpec(**load))


def test_what_is_done_in_the_ramp_is_not_counted(run_base: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    command = f"--guests 1 --persistent --ramp-time 0.6 --runtime 0.4 --json {file} --quiet"
    ran = grantlab(*command.split(), run_base=run_base)
    assert ran.returncode == 0, ran.stderr
    (run,) = json.loads(file.read_text())["runs"]
    assert 0.3 < run["totals"]["seconds"] < 40
    assert run["counters"]["setup"]["bytes_copied_by_guest"] > 1 << 20  # the ramp's
    assert run["guests"][0]["disks"][0]["operations"]["read"]["ios"] > 0


def test_a_job_file_s_stages_and_fio_s_output(run_base: str, tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.fio"
    jobs.write_text(
        "[global]\nsize=1m\nverify=md5\ndirect=1\n[fill]\nrw=write\n[read]\nstonewall\nrw=read\n"
        "[also]\nrw=randwrite\nbs=8k\n"
    )
    command = f"--guests 2 --persistent --job {jobs} --output-format json"
    ran = grantlab(*command.split(), run_base=run_base)
    assert ran.returncode == 0, ran.stderr
    assert "of no effect here: direct" in ran.stderr
    found = json.loads(ran.stdout)["jobs"]
    assert [(job["jobname"], job["groupid"]) for job in found] == [
        ("fill", 0), ("fill", 0), ("fill", 0), ("fill", 0),
        ("read", 1), ("also", 1), ("read", 1), ("also", 1),
    ]  # fmt: skip
    assert {job["error"] for job in found} == {0}
    assert [found[at]["read"]["total_ios"] for at in (0, 4)] == [0, 256]
    assert [found[at]["write"]["io_bytes"] for at in (0, 4, 5)] == [1 << 20, 0, 1 << 20]


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs Debian's fio-examples")
@pytest.mark.parametrize("name", RUN)
def test_an_example_of_fio_s_runs_as_it_is(name: str, run_base: str) -> None:
    command = f"--guests 1 --persistent --runtime 0.3 --quiet --job {EXAMPLES / name}.fio"
    if name.startswith("fio-") or name == "ssd-test":  # 10 GiB: more than a host may have
        command += " --disk null:10g"
    ran = grantlab(*command.split(), run_base=run_base)
    assert ran.returncode == 0, ran.stderr
    assert "IOPS" in ran.stdout


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="needs Debian's fio-examples")
def test_every_other_one_is_refused_in_one_line_that_names_the_option() -> None:
    for path in sorted(EXAMPLES.glob("*.fio")):
        if path.stem not in RUN:
            with pytest.raises(
                ConfigError, match=r"^job: '.*\.fio'.*: [a-z\[]|^disk: 1 of 100g|^disk: 1 of 25g"
            ) as told:
                Topology(guests=1).with_disks_for(LoadSpec.stages_of(str(path)))
            assert "\n" not in str(told.value)
