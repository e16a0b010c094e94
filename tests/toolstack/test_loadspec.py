"""What a load may be."""

from typing import Any

import pytest

from toolstack.load_fields import BS_MAX
from toolstack.loadspec import LoadSpec, size_text
from toolstack.topology import ConfigError, Topology


def test_the_defaults_are_five_seconds_of_a_random_mix() -> None:
    spec = LoadSpec()
    assert (spec.rw, spec.rwmixread, spec.bs, spec.iodepth) == ("randrw", 70, 4096, 32)
    assert (spec.runtime_s, spec.ios, spec.seed, spec.verify) == (5.0, None, 1, True)


@pytest.mark.parametrize("rw", ["trim", "randtrim"])
def test_a_trim_changes_what_is_on_the_disk(rw: str) -> None:
    assert LoadSpec(rw=rw).writes and LoadSpec(rw=rw, fsync=8).fsync == 8


def test_a_number_of_ios_alone_means_no_time_limit() -> None:
    assert LoadSpec(ios=100).runtime_s is None


def test_a_number_of_ios_and_a_time_limit_may_both_be_given() -> None:
    spec = LoadSpec(ios=100, runtime_s=2)
    assert (spec.ios, spec.runtime_s) == (100, 2.0)


def test_a_load_without_an_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="runtime: None needs ios"):
        LoadSpec(runtime_s=None)


@pytest.mark.parametrize(
    ("written", "nbytes"),
    [("512", 512), ("4k", 4096), ("64K", 65536), ("1m", 1 << 20), (1536, 1536), (" 8k ", 8192)],
)
def test_a_block_size_is_bytes_or_text_with_a_unit(written: str | int, nbytes: int) -> None:
    assert LoadSpec(bs=written).bs == nbytes


def test_a_split_says_how_large_a_block_is_and_a_job_s_own_size_is_no_split() -> None:
    common = {"bssplit": "4k/50:64k/50"}
    spec = LoadSpec(**common, job=[{"rw": "read"}, {"bs": "8k"}, {"bssplit": "512/100"}])
    assert [job.bs for job in (spec, *spec.jobs)] == [65536, 65536, 8192, 512]
    assert [len(job.bssplit) for job in spec.jobs] == [2, 0, 2]


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"bssplit": "4k/60:8k/60"}, "bssplit: '4k/60:8k/60' has shares of 120 %"),
        ({"bssplit": "2m"}, "bssplit: '2m' has a size that is not a multiple of 512 up to 1m"),
        ({"size": 0}, "size: 0 is nothing"),
        ({"size": "0%"}, "size: '0%' is nothing"),
        ({"offset": 100}, "offset: 100 is not a multiple of 512"),
        ({"size": "200%"}, "size: '200%' is no share: 0%..100%"),
        ({"rate_iops": True}, "rate-iops: True is not I/Os a second"),
        ({"rate_iops": -1}, "rate-iops: -1 is not I/Os a second"),
        ({"random_distribution": "zipf"}, "random-distribution: 'zipf' is not random, zipf:0..10"),
        ({"random_distribution": "pareto:1"}, "random-distribution: 'pareto:1' is not random"),
        ({"random_distribution": "normal:5"}, "random-distribution: 'normal:5' is not random"),
        ({"time_based": True, "runtime_s": None, "ios": 1}, "time-based: true needs runtime"),
        ({"loops": 0}, "loops: 0 is not in 1..1000000000"),
    ],
)
def test_a_shape_that_is_none_is_refused(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as told:
        LoadSpec(**wrong)
    assert str(told.value).startswith(complaint)


@pytest.mark.parametrize(
    ("said", "runtime_s"),
    [
        ({}, 5.0), ({"ios": 1}, None), ({"size": "1m"}, None), ({"loops": 2}, None),
        ({"size": "1m", "time_based": True}, 5.0), ({"size": "1m", "runtime_s": 3}, 3.0),
    ],
)  # fmt: skip
def test_a_load_lasts_as_long_as_nothing_else_ends_it(
    said: dict[str, Any], runtime_s: float | None
) -> None:
    assert LoadSpec(**said).runtime_s == runtime_s


@pytest.mark.parametrize(
    "written", ["", "k", "4kb", "0x200", "-4k", "2m", "1000", 0, 511, BS_MAX + 512, True, 4096.0]
)
def test_a_block_size_that_is_none_is_refused(written: Any) -> None:
    with pytest.raises(ConfigError, match=r"^bs: .* is not a multiple of 512 in 512..1m$"):
        LoadSpec(bs=written)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"rw": "erase"},
            "rw: 'erase' is not one of read, write, rw, trim, randread, randwrite, randrw,"
            " randtrim",
        ),
        ({"fsync": -1}, "fsync: -1 is not in 0..1000000000"),
        ({"fsync": "often"}, "fsync: 'often' is not in 0..1000000000"),
        ({"rwmixread": 101}, "rwmixread: 101 is not in 0..100"),
        ({"iodepth": 0}, "iodepth: 0 is not in 1..256"),
        ({"iodepth": 257}, "iodepth: 257 is not in 1..256"),
        ({"ios": 0}, "ios: 0 is not in 1..1000000000000"),
        ({"runtime_s": 0}, "runtime: 0 is not above 0, at most 1000000"),
        ({"runtime_s": "soon"}, "runtime: 'soon' is not above 0, at most 1000000"),
        ({"runtime_s": float("inf")}, "runtime: inf is not above 0, at most 1000000"),
        ({"seed": -3}, "seed: -3 is not 0 or more"),
        ({"verify": 1}, "verify: 1 is not one of true, false"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoadSpec(**settings)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("iodepth", "bs", "mib"),
    [(1, "512", 1), (256, "4k", 1), (256, "4608", 2), (32, "1m", 32), (256, "1m", 256)],
)
def test_buffers_are_whole_pages_for_each_io_in_flight(iodepth: int, bs: str, mib: int) -> None:
    assert LoadSpec(iodepth=iodepth, bs=bs).buffer_mib == mib


def test_no_load_needs_more_buffers_than_a_guest_may_have() -> None:
    spec = LoadSpec(iodepth=256, bs=BS_MAX)
    assert Topology().with_buffers_for(spec).buffer_mib == spec.buffer_mib


@pytest.mark.parametrize(
    ("nbytes", "text"), [(512, "512"), (4096, "4k"), (1 << 20, "1m"), (1536, "1536")]
)
def test_a_size_is_shown_as_people_write_it(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text
