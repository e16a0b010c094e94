"""fio's job files: each option's meaning, inheritance, stages, and one line for what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from toolstack.fio_job import JobFile, sections
from toolstack.fio_job import read_job_file as read
from toolstack.loadspec import ConfigError, LoadSpec

FILE = """\
; a comment
[global]
# another
bs=8k
iodepth = 16   ; with a note
runtime=30
time_based
direct=1
ioengine=libaio

[reader]
rw=randread
filename=xvda

[writer]
RW=randwrite
bs=64k
filename=/dev/xvdb
direct=0
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "jobs.fio"
        path.write_text(text)
        return str(path)

    return write


def read_job_file(path: str) -> JobFile:
    return read(path, LoadSpec)


def one(write: Any, options: str) -> LoadSpec:
    """The load of one job with these options."""
    return LoadSpec.from_job_file(write("[job]\n" + options))


def test_jobs_have_what_is_global_and_their_own(write: Any) -> None:
    found = read_job_file(write(FILE))
    (stage,) = found.stages
    reader, writer = stage.jobs
    assert (reader.rw, reader.bs, reader.iodepth, reader.vdev) == ("randread", 8192, 16, ("xvda",))
    assert (writer.rw, writer.bs, writer.iodepth, writer.vdev) == (
        "randwrite",
        65536,
        16,
        ("xvdb",),
    )
    assert (reader.runtime_s, reader.time_based, reader.name) == (30.0, True, "reader")
    assert found.no_effect == ["direct", "ioengine"]


def test_only_what_stands_above_a_job_is_global_for_it() -> None:
    text = "[global]\nbs=4k\n[a]\n[global]\nbs=8k\niodepth=3\n[b]\nrw=write\n"
    jobs = sections(text)
    assert [(job.name, [(said.name, said.value) for said in job.said]) for job in jobs] == [
        ("a", [("bs", "4k")]),
        ("b", [("bs", "4k"), ("bs", "8k"), ("iodepth", "3"), ("rw", "write")]),
    ]


def test_without_a_word_a_job_is_fio_s_default(write: Any) -> None:
    spec = one(write, "")
    assert (spec.rw, spec.bs, spec.iodepth, spec.verify, spec.rwmixread) == (
        "read",
        4096,
        1,
        False,
        50,
    )
    assert (spec.runtime_s, spec.loops, spec.ends_by_amount) == (None, 1, True)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("readwrite=rw", {"rw": "rw"}),
        ("rw=readwrite\nrwmixwrite=20", {"rw": "rw", "rwmixread": 80}),
        ("rwmixread=90", {"rwmixread": 90}),
        ("blocksize=512", {"bs": 512}),
        ("bs=4k,8k", {"bssplit": (((4096, 100.0),), ((8192, 100.0),)), "bs": 8192}),
        ("bssplit=4k/50:8k/50", {"bs": 8192}),
        ("bsrange=4k-4k", {"bs": 4096}),
        ("size=20%\noffset=1m", {"size": "20%", "offset": 1 << 20, "loops": None}),
        ("size=32m\nloops=3", {"size": 32 << 20, "loops": 3}),
        ("number_ios=7", {"ios": 7, "loops": 1}),
        ("runtime=2m\nramp_time=500ms\nstartdelay=3", {
            "runtime_s": 120.0, "ramp_time_s": 0.5, "startdelay_s": 3.0, "loops": 1}),
        ("timeout=5\ntime_based=1", {"runtime_s": 5.0, "loops": None, "time_based": True}),
        ("runtime=5\ntime_based=0", {"loops": 1, "time_based": False}),
        ("rate_iops=1000", {"rate_iops": (1000, 1000)}),
        ("rate_iops=,50", {"rate_iops": (0, 50)}),
        ("random_distribution=zipf:1.1", {"random_distribution": "zipf:1.1"}),
        ("verify=crc32c", {"verify": True}),
        ("verify=md5\ndo_verify=1", {"verify": True}),
        ("verify=0", {"verify": False}),
        ("thinktime=50\nthinktime_blocks=8", {"thinktime": 50, "thinktime_blocks": 8}),
        ("thinktime=2ms", {"thinktime": 2000}),
        ("fsync=16", {"fsync": 16}),
        ("iodepth=8\nnumjobs=4", {"iodepth": 32, "loops": 4}),
        ("iodepth=8\nnumjobs=4\nsize=1m", {"iodepth": 32, "loops": 4, "size": 1 << 20}),
        ("filename=xvda:/dev/xvdc", {"vdev": ("xvda", "xvdc")}),
        ("randseed=7", {"seed": 7}),
    ],
)  # fmt: skip
def test_what_an_option_means(write: Any, options: str, expected: dict[str, Any]) -> None:
    found = one(write, options)
    assert {name: getattr(found, name) for name in expected} == expected


def test_variables_are_those_of_the_environment(
    write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTH", "7")
    monkeypatch.delenv("NOWHERE", raising=False)
    spec = one(write, "iodepth=${DEPTH}\nbs=${NOWHERE}8k${NOWHERE}")
    assert (spec.iodepth, spec.bs) == (7, 8192)


def test_a_stone_wall_begins_a_stage(write: Any) -> None:
    text = (
        "[global]\nsize=1m\nfilename=xvda\n[a]\nrw=write\n[b]\nstonewall\n"
        "[c]\nstonewall=1\n[d]\nstonewall=0\nfilename=xvdb\n"
    )
    stages = LoadSpec.stages_of(write(text))
    assert [[job.name for job in stage.jobs] for stage in stages] == [["a"], ["b"], ["c", "d"]]
    with pytest.raises(ConfigError, match="is of 3 loads, one after the other"):
        LoadSpec.from_job_file(write(text))


def test_jobs_and_files_without_a_disk_get_one_each(write: Any) -> None:
    jobs = LoadSpec.from_job_file(write("[a]\n[b]\nfilename=xvda\n[c]\nfilename=data\n")).jobs
    assert [job.vdev for job in jobs] == [("xvdc",), ("xvda",), ("xvdb",)]
    stages = LoadSpec.stages_of(
        write("[global]\nfilename=f\n[a]\n[b]\nstonewall\n[c]\nstonewall\nfilename=g\n")
    )
    assert [stage.vdev for stage in stages] == [("xvda",), ("xvda",), ("xvdb",)]
    assert LoadSpec.from_job_file(write("[a]\n")).vdev == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[job]\nbs=4k\nzonemode=zbd\n", "line 3: zonemode: no such option here"),
        (
            "[job]\nverify_pattern=0xff\n",
            "line 2: verify_pattern: what is written is always our own",
        ),
        ("[job]\nrw=read:8k\n", "line 2: rw: 'read:8k' is not one of read, write"),
        ("[job]\nrw=\n", "line 2: rw: has no value"),
        ("[job]\nbs=4q\n", "line 2: bs: is no size"),
        ("[job]\niodepth=x\n", "line 2: iodepth: is no whole number"),
        ("[job]\nfilename=/dev/sda\n", "line 2: filename: '/dev/sda' is no disk of a guest's"),
        ("[job]\nfilename=xvda:xvda\n", "line 2: filename: names one twice"),
        ("[job]\nioengine=cpuio\n", "line 2: ioengine: 'cpuio' does not only read and write"),
        ("[job]\nbsrange=4k-8k\n", "line 2: bsrange: '4k-8k' is a range"),
        ("[job]\ntime_based=perhaps\n", "line 2: time_based: is neither 0 nor 1"),
        ("[job]\nnumjobs=0\n", "line 2: numjobs: 0 is not in 1..256"),
        (
            "\n[a]\niodepth=64\nnumjobs=5\n",
            r"line 2: \[a\]: iodepth x numjobs: 320 is not in 1..256",
        ),
        ("[a]\nbs=1000\n", r"line 1: \[a\]: bs: 1000 is not a multiple of 512"),
        ("[a]\ntime_based\n", r"line 1: \[a\]: time-based: true needs runtime"),
        ("[a]\nrandom_distribution=zoned:1/2\n", r"line 1: \[a\]: random-distribution: 'zoned"),
        ("bs=4k\n", "line 1: 'bs=4k' stands before any"),
        ("[a\n", r"line 1: '\[a' is no \[section\]"),
        ("[a]\ninclude more.fio\n", "line 2: include"),
        ("[global]\nbs=4k\n", r"there is no \[job\] in it"),
        ("", r"there is no \[job\] in it"),
        ("[a]\n" * 17, r"line 17: \[a\]: there are 16 disks at most"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(write: Any, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as told:
        read_job_file(write(text))
    assert "\n" not in str(told.value) and "jobs.fio" in str(told.value)


def test_a_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match="job: '/nowhere' cannot be read: No such file"):
        read_job_file("/nowhere")


@pytest.mark.parametrize("junk", ["\0\x01[=]", "[a]\n=4k\n", "[a]\n=\n", "[]\n", "[ ]\n==\n"])
def test_junk_is_one_line(write: Any, junk: str) -> None:
    with pytest.raises(ConfigError):
        read_job_file(write(junk))
