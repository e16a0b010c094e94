"""The bench's arithmetic: cases kept apart, ratios within a round, words for what was measured."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import peers
from bench.contest import DEPTHS, GUESTS, MODES, RWS, Sample, case_of, medians, plan
from bench.figure import Figure
from bench.limit import requests_a_second
from bench.pictures import draw
from bench.roundtrip import shared_memory_us, zeromq_us
from bench.verdict import find, print_verdict, ratios


def machine(who: str, iops: float, guests: int = 1, iodepth: int = 32) -> Sample:
    figure = Figure(iops, 10.0, 90.0, 2e6 / iops)._asdict()
    return {
        "who": who,
        "guests": guests,
        "rw": "randrw",
        "bs": 4096,
        "iodepth": iodepth,
        **figure,
    }


def round_of(limit: float, *samples: Sample) -> list[Sample]:
    return [{"who": "limit", "iops": limit}, *samples]


def test_a_case_is_all_that_is_no_figure() -> None:
    assert case_of(machine("persistent", 5.0, guests=8)) == "persistent 8 randrw 4096 32"


def test_a_ratio_is_to_the_limit_of_its_own_round() -> None:
    """A machine that is twice as fast in one round moves no ratio."""
    rounds = [round_of(limit, machine("persistent", limit / 4)) for limit in (100.0, 200.0, 900.0)]
    found = medians(rounds)["persistent 1 randrw 4096 32"]
    assert (found["of_limit"], found["iops"]) == (0.25, 50.0)


def test_one_bad_round_in_five_moves_no_median() -> None:
    rounds = [
        round_of(100.0, machine("persistent", iops)) for iops in (40.0, 1.0, 42.0, 41.0, 43.0)
    ]
    assert medians(rounds)["persistent 1 randrw 4096 32"]["iops"] == 41.0


def results() -> dict[str, Sample]:
    return medians(
        [
            round_of(
                4e6,
                machine("persistent", 1e6),
                machine("persistent", 8e5, guests=8),
                machine("persistent", 5e5, iodepth=1),
                machine("non-persistent", 2e4),
                {"who": "fio + nbdkit", "rw": "randrw", "iodepth": 32,
                 **Figure(1e5, 200.0, 700.0, 18.0)._asdict()},
                {"who": "grantlab, spin off", "guests": 1, "iodepth": 1,
                 **Figure(5e3, 150.0, 400.0, 200.0)._asdict()},
                {"who": "zeromq ping-pong", "us": 100.0},
                {"who": "shared-memory ping-pong", "us": 0.5},
                {"who": "memory", "mode": "persistent", "guests": 8, "mib": 10.0},
            )
        ]
    )  # fmt: skip


def test_the_verdict_says_each_ratio_there_is() -> None:
    assert ratios(results()) == [
        "8 guests: 0.80 of one guest's IOPS, 1.25 times its CPU a request",
        "depth 32: 10.0 times fio + nbdkit, for 0.11 of its CPU a request",
        "depth 1, blocking: 200.0 us a request, 2.0 times a bare zeromq ping-pong of 100.00 us",
        "depth 1, spinning: 2.0 us a request, 4.0 times a bare shared-memory ping-pong of 0.50 us",
        "8 guests: 10.0 MiB resident each (PSS)",
    ]


def test_what_was_not_measured_is_left_out() -> None:
    assert ratios(medians([round_of(1.0)])) == []
    assert find(results(), "persistent", guests=3) is None


def test_the_table_has_a_row_for_each_case() -> None:
    console = Console(width=200, record=True)
    print_verdict(console, results())
    text = console.export_text()
    assert "1,000,000" in text
    assert "0.250" in text


def test_the_table_is_legible_on_80_columns() -> None:
    widest = machine("non-persistent", 12_345_678.0, guests=16)
    widest |= {"rw": "randwrite", "p50_us": 25_313.4, "p99_us": 125_313.4}
    console = Console(width=80, record=True)
    print_verdict(console, medians([round_of(4e6, widest, *results().values())]))
    lines = console.export_text().splitlines()
    row = next(line for line in lines if "16 randwrite" in line)
    assert row.split() == [
        *["non-persistent", "16", "randwrite", "4k", "32"],
        *["12,345,678", "3.086", "25,313", "125,313", "0.2"],
    ]
    header = next(line for line in lines if "IOPS" in line and "case" in line)
    assert header.split("  ")[-1].strip() == "CPU s"


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    draw(tmp_path / "bench.png", results())
    assert (tmp_path / "bench.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_whole_plan_is_what_the_issue_asks_for() -> None:
    whole = plan(quick=False, seconds=1.0)
    assert whole.guests == GUESTS == (1, 2, 4, 8, 16)
    loads = {(load.rw, load.bs, load.iodepth) for load in whole.loads}
    assert {(rw, 4096, depth) for rw in RWS for depth in DEPTHS} < loads
    assert {bs for _, bs, _ in loads} == {4096, 65536, 1 << 20}
    assert set(MODES) == {"persistent", "non-persistent", "grant-copy"}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_limit_moves_blocks(threads: int) -> None:
    assert requests_a_second(0.05, threads=threads, disk_mib=1) > 0


def test_bare_round_trips_take_some_time() -> None:
    assert shared_memory_us() > 0
    assert zeromq_us() > 0


@pytest.mark.skipif(bool(peers.missing()), reason=f"not installed: {', '.join(peers.missing())}")
def test_fio_does_its_load_on_nbdkits_memory() -> None:
    figure: Any = peers.fio_with_nbdkit("randrw", 4, 1.0, disk_mib=8)
    assert figure.iops > 0
    assert 0 < figure.p50_us <= figure.p99_us
    assert figure.cpu_s_per_million > 0
