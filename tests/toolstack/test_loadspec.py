"""What a load may be."""

from typing import Any

import pytest

from toolstack.loadspec import BS_MAX, LoadSpec, size_text
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
