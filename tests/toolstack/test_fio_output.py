"""Results by fio's names: its own form, its own figures, and its own tool reads them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.counters import FRONTEND_COUNTERS
from tests.toolstack.stand_in import latencies, record, snapshot
from toolstack.fio_output import fio_json
from toolstack.latencies import of_operations, summary
from toolstack.loadspec import LoadSpec
from toolstack.results import Run, build_run
from toolstack.topology import Topology

READS = (60,) * 98 + (800, 950)


@pytest.fixture(scope="module")
def run() -> Run:
    """Two seconds; guest 1 does a hundred reads, and guest 2 nothing."""
    nothing = snapshot()
    counted = {"ios": 100, "bytes_read": 409600, "flush_requests": 3}
    done = snapshot(2.0, frontend={1: counted}, latency={1: READS})
    load = LoadSpec(rw="randread", iodepth=8, name="reader")
    moments = {"booted": nothing, "started": nothing, "finished": done, "closed": done}
    return build_run(Topology(guests=2), load, **moments)


def written(runs: list[Run], bins: bool = False) -> Any:
    return json.loads(fio_json(runs, bins))


def test_a_job_is_a_disk_and_a_group_a_run(run: Run) -> None:
    jobs = written([run, run])["jobs"]
    assert [job["groupid"] for job in jobs] == [0, 0, 1, 1]
    assert {job["jobname"] for job in jobs} == {"reader"}
    assert [job["job options"]["filename"] for job in jobs[:2]] == ["guest-1.xvda", "guest-2.xvda"]


def test_figures_are_those_of_the_results(run: Run) -> None:
    job, other = written([run])["jobs"]
    read = job["read"]
    assert (read["total_ios"], read["iops"], read["io_bytes"]) == (100, 50.0, 409600)
    assert (read["bw_bytes"], read["bw"], read["runtime"]) == (204800, 200, 2000)
    clat = read["clat_ns"]
    assert clat["N"] == 100
    assert clat["min"] == pytest.approx(60_000, rel=0.02)
    assert clat["max"] == pytest.approx(950_000, rel=0.02)
    assert clat["mean"] == pytest.approx(np.mean(READS) * 1000, rel=0.02)
    assert clat["stddev"] == pytest.approx(np.std(READS) * 1000, rel=0.02)
    assert clat["percentile"]["99.000000"] == pytest.approx(800_000, rel=0.02)
    assert job["write"]["total_ios"] == job["trim"]["total_ios"] == other["read"]["total_ios"] == 0
    assert job["sync"]["total_ios"] == 3 and job["error"] == other["error"] == 0
    assert job["latency_us"]["100"] == 98.0 and job["latency_us"]["1000"] == 2.0


@pytest.mark.parametrize(
    ("counted", "error"), [({"io_errors": 1}, 5), ({"verify_errors": 2}, 84), ({}, 0)]
)
def test_what_was_wrong_is_an_error(counted: dict[str, int], error: int) -> None:
    nothing, done = snapshot(), snapshot(1.0, frontend={1: counted})
    moments = {"booted": nothing, "started": nothing, "finished": done, "closed": done}
    job = written([build_run(Topology(guests=2), LoadSpec(ios=1), **moments)])["jobs"][0]
    assert job["error"] == error


def test_bins_are_of_json_plus_alone(run: Run) -> None:
    assert "bins" not in written([run])["jobs"][0]["read"]["clat_ns"]
    bins = written([run], bins=True)["jobs"][0]["read"]["clat_ns"]["bins"]
    assert sum(bins.values()) == 100 and list(map(int, bins)) == sorted(map(int, bins))


def test_each_operation_has_its_own() -> None:
    counts = np.stack([latencies(10, 20), latencies(30), latencies()])
    counters = record(FRONTEND_COUNTERS, bytes_read=1024, bytes_written=512, bytes_discarded=7)
    found = of_operations(counts, counters)
    assert [(name, each["ios"], each["bytes"]) for name, each in found.items()] == [
        ("read", 2, 1024),
        ("write", 1, 512),
        ("trim", 0, 7),
    ]
    assert summary(counts[2])["N"] == 0 and summary(counts[2])["bins"] == {}


def form(told: Any) -> Any:
    """Names and kinds of what is told, without what depends on figures."""
    if isinstance(told, dict):
        return {name: form(value) for name, value in told.items() if name != "job options"}
    if isinstance(told, list):
        return [form(told[0])]
    return "number" if isinstance(told, (int, float)) else "text"


FIO = pytest.mark.skipif(shutil.which("fio") is None, reason="needs Debian's fio")


@FIO
def test_it_has_every_name_that_fio_s_own_has(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "fio.json"
    subprocess.run(
        ["fio", "--name=j", "--ioengine=null", "--size=1m", "--rw=randread",
         "--output-format=json", f"--output={file}"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    theirs, ours = form(json.loads(file.read_text())), form(written([run]))
    assert ours == theirs | {name: theirs[name] for name in theirs if name not in ours}
    assert set(theirs) - set(ours) <= {"disk_util"}


CLAT2CSV = shutil.which("fio_jsonplus_clat2csv")


@pytest.mark.skipif(CLAT2CSV is None, reason="needs Debian's fio")
def test_fio_s_own_tool_reads_its_latencies(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plus.json").write_bytes(fio_json([run], bins=True))
    done = subprocess.run(
        ["/usr/bin/python3", str(CLAT2CSV), "plus.json", "lat.csv"],  # Debian's, with its modules
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (table,) = sorted(tmp_path.glob("lat_job0*.csv"))
    head, *lines = [line.split(",") for line in table.read_text().splitlines()]
    at = [name.strip() for name in head].index("read_clat_ns_count")
    assert sum(int(line[at]) for line in lines if line[at].strip()) == 100
