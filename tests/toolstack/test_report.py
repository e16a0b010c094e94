"""The tables and the words, on a narrow console, a wide one, and one that knows only ASCII."""

import io
from typing import Any

import pytest
from rich.console import Console

from tests.toolstack.stand_in import StandIn
from toolstack.loadspec import LoadSpec
from toolstack.report import BLOCKS, bars, caveat, print_report, reading
from toolstack.results import Run, build_run
from toolstack.topology import MODES, Mode, Topology
from toolstack.words import number


def run_of(mode: Mode, spec: LoadSpec | None = None, **settings: Any) -> Run:
    machine = StandIn(Topology(**settings).with_mode(mode))
    before = machine.snapshot()
    spec = spec or LoadSpec(ios=4000)
    *_, after = machine.load(spec)
    machine.close()
    assert machine.booted is not None and machine.closed is not None
    return build_run(
        machine.topology,
        spec,
        booted=machine.booted,
        started=before,
        finished=after,
        closed=machine.closed,
    )


def text_of(runs: list[Run], width: int = 80, left: int = 0, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    print_report(Console(file=file, width=width), runs, [left] * len(runs))
    return raw.getvalue().decode(encoding)


def row(text: str, name: str, nth: int = 0) -> list[str]:
    """The cells of the nth row with this name."""
    found = [line for line in text.splitlines() if line.strip().startswith(name + " ")]
    return found[nth].strip().removeprefix(name).split()


@pytest.fixture(scope="module")
def both() -> list[Run]:
    return [run_of("non-persistent", guests=2), run_of("persistent", guests=2)]


@pytest.fixture(scope="module")
def largest() -> list[Run]:
    return [run_of(mode, guests=64, dom0_vcpus=256) for mode in MODES]


@pytest.mark.parametrize("width", [80, 120])
def test_no_line_is_wider_than_the_console(largest: list[Run], width: int) -> None:
    assert max(map(len, text_of(largest, width).splitlines())) <= width


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_short(largest: list[Run], width: int) -> None:
    assert "…" not in text_of(largest, width)


@pytest.mark.parametrize("width", [80, 120])
def test_modes_stand_side_by_side(both: list[Run], width: int) -> None:
    text = text_of(both, width)
    assert any(line.split() == ["non-persistent", "persistent"] for line in text.splitlines())
    assert row(text, "map operations") == ["1,000", "0"]
    assert row(text, "TLB flushes") == ["1,000", "0"]
    assert row(text, "IPIs") == ["23,000", "0"]
    assert row(text, "requests") == ["8,000", "8,000"]
    assert row(text, "p99.9") == ["49.9", "49.9"]


def test_rates_are_of_the_run_s_numbers(both: list[Run]) -> None:
    text = text_of(both)
    assert row(text, "IOPS") == ["4,000", "4,000"]
    assert row(text, "MB/s") == ["16.4", "16.4"]
    assert row(text, "CPU seconds a million requests") == ["250", "250"]


def test_the_host_s_own_shootdowns_stand_beside_the_simulated_ones(both: list[Run]) -> None:
    text = text_of(both)
    assert row(text, "simulated flushes") == ["8,000", "0"]
    assert row(text, "simulated IPIs") == ["184,000", "0"]
    assert row(text, "host's own shootdowns *") == ["28", "28"]
    assert "this machine's kernel really made so many" in text


def test_a_host_that_counts_no_shootdowns_is_a_dash(both: list[Run]) -> None:
    unknown = {**both[0], "counters": {**both[0]["counters"], "host_tlb_shootdowns": None}}
    assert row(text_of([unknown]), "host's own shootdowns *") == ["-"]


@pytest.mark.parametrize("left", [0, 3])
def test_what_stays_mapped_is_shown_after_the_tear_down(both: list[Run], left: int) -> None:
    text = text_of(both, left=left)
    assert row(text, "grants left mapped (must be 0)") == [str(left), str(left)]


def test_interrupts_are_drawn_for_each_cpu(both: list[Run]) -> None:
    line = next(line for line in text_of(both).splitlines() if BLOCKS[-1] * 23 in line)
    assert line.split() == ["non-persistent", "0", "8,000", "8,000", BLOCKS[0] + BLOCKS[-1] * 23]


@pytest.mark.parametrize(("width", "a_line"), [(80, 32), (120, 64)])
def test_many_cpus_wrap_at_a_round_number(largest: list[Run], width: int, a_line: int) -> None:
    lines = text_of(largest, width).splitlines()
    full = [line for line in lines if line.split()[-1:] == [BLOCKS[-1] * a_line]]
    assert len(full) == 2 * (256 // a_line - 1)  # of two modes; the first line starts with a dot


def test_without_interrupts_there_is_nothing_to_draw() -> None:
    assert "each of dom0's CPUs" not in text_of([run_of("persistent")])


def test_a_file_that_knows_only_ascii_gets_digits_for_bars(both: list[Run]) -> None:
    assert "0" + "9" * 23 in text_of(both, encoding="ascii")


def test_bars_are_relative_to_the_largest_and_only_zero_looks_like_zero() -> None:
    assert bars([0, 1, 500, 1000], 1000, "0123456789", 64) == "0149"
    assert bars([1, 1, 1], 1, "09", 2) == "99\n9"


def test_the_reading_says_what_a_request_cost_and_how_the_modes_compare(both: list[Run]) -> None:
    assert reading(both) == (
        "A request cost 1.00 maps, 1.00 flushes and 23.0 IPIs in non-persistent mode;"
        " 0 maps, 0 flushes and 0 IPIs in persistent mode;"
        " persistent did 1.00 times the IOPS of non-persistent."
    )


def test_a_run_without_requests_is_read_as_such() -> None:
    machine = StandIn(Topology())
    moment = machine.snapshot()
    run = build_run(
        machine.topology,
        LoadSpec(),
        booted=moment,
        started=moment,
        finished=moment,
        closed=moment,
    )
    assert "persistent did none" in reading([run])
    assert row(text_of([run]), "IPIs") == ["-"]


def test_modes_that_map_are_said_to_be_slower_here_than_on_xen(both: list[Run]) -> None:
    words = " ".join(text_of(both).split())
    assert "A hypercall here is a message between processes and not a trap" in words
    assert "IOPS of non-persistent are lower than on Xen" in words


def test_nothing_is_excused_where_nothing_is_mapped(both: list[Run]) -> None:
    assert caveat(both[1:]) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0"),
        (0.0, "0"),
        (0.001, "<0.01"),
        (0.125, "0.12"),
        (7, "7"),
        (7.5, "7.50"),
        (23.04, "23.0"),
        (1234567.8, "1,234,568"),
    ],
)
def test_numbers_keep_three_digits_and_zero_is_exactly_none(value: float | None, text: str) -> None:
    assert number(value) == text


KINDS = ["ram:64m", "null:1g", "ram:64m,name=a_long_name,access=ro"]
JOBS = LoadSpec(
    ios=4000,
    job=[{"vdev": "xvda"}, {"vdev": "xvdb", "rw": "randread"}, {"vdev": "xvdc", "rw": "read"}],
)


@pytest.fixture(scope="module")
def many() -> list[Run]:
    return [run_of(mode, JOBS, guests=64, disks=KINDS) for mode in MODES]


def took(iops: str) -> list[str]:
    """What a line says of that many IOPS."""
    return [iops, "49.9", "49.9", "1,000"]


def test_one_disk_a_guest_needs_no_table_of_disks(both: list[Run]) -> None:
    assert "The disks" not in text_of(both)


@pytest.mark.parametrize("guests", [3, 64])
def test_many_disks_fit_on_80_columns(guests: int) -> None:
    text = text_of([run_of("non-persistent", JOBS, guests=guests, disks=KINDS)], 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_the_longest_figures_fit_on_80_columns() -> None:
    own = [{"domid": 64, "disks": ["ram:65536m,name=long,vdev=xvdp"]}]
    spec = LoadSpec(rw="randwrite", bs="1020k", ios=4000, domid=64)
    run = run_of("non-persistent", spec, guests=64, disks=["ram:65536m"], guest=own)
    run["guests"] = run["guests"][60:]
    (disk,) = run["guests"][-1]["disks"]
    disk["totals"].update(iops=1_234_567.0, verify_errors=12_345)
    disk["latency_us"].update(p50=123_456.0, p99=1_234_567.0)
    disk["counters"]["map_ops"] = 11 * disk["totals"]["requests"]
    text = text_of([run])
    assert "…" not in text and max(map(len, text.splitlines())) <= 80
    assert row(text, "guest-64 xvdp")[-2:] == ["12,345", "bad"]


def test_a_few_disks_have_a_line_each() -> None:
    text = text_of([run_of("non-persistent", JOBS, guests=2, disks=KINDS)])
    assert row(text, "guest-1 xvda") == ["ram:64m", "randrw", "4k", *took("2,000"), "yes"]
    assert row(text, "guest-2 xvdb") == ["null:1g", "randread", "4k", *took("2,000"), "no"]
    assert row(text, "guest-2 xvdc")[:3] == ["ram:64m,~", "ro", "read"]


def test_many_disks_have_a_line_for_those_that_are_alike(many: list[Run]) -> None:
    text = text_of(many)
    assert text.count("The disks, ") == len(many)
    assert row(text, "xvda of 64") == ["ram:64m", "randrw", "4k", *took("128,000"), "yes"]
    assert "guest-1 xvda" not in text


def test_wrong_bytes_and_a_disk_left_alone_are_said() -> None:
    run = run_of("persistent", LoadSpec(vdev="xvda"), guests=1, disks=KINDS)
    run["guests"][0]["disks"][0]["totals"]["verify_errors"] = 3
    text = text_of([run])
    assert row(text, "guest-1 xvda")[-2:] == ["3", "bad"]
    assert row(text, "guest-1 xvdb")[1:2] == ["none"] and row(text, "guest-1 xvdb")[-1] == "-"


def test_the_headline_names_every_job(many: list[Run]) -> None:
    words = " ".join(text_of(many[:1]).split())
    assert "64 guests, 192 disks, dom0 with 24 vCPUs; randrw, 70 % reads, 4k blocks" in words
    assert (
        "on xvda and, at once, randread, 4k blocks, depth 32, 4,000 I/Os a disk, on xvdb" in words
    )
