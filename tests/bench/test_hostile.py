"""What sieges come to: what is left behind, which bars are missed, the table. No machine runs."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.footprint import ENDLESS, TOOLSTACK, Footprint
from bench.hostile import Pair, print_rows, row_of, write_json
from bench.siege import MAPPINGS_SLACK, MEMORY_SLACK, Siege, left_behind

MIB = 1 << 20
CALM = {name: Footprint(100 * MIB, 20, 500) for name in (*ENDLESS, TOOLSTACK)}


def siege(
    iops: float = 1000.0,
    most: dict[str, Footprint] = CALM,
    after: dict[str, Footprint] = CALM,
    handshake_s: float = 0.1,
) -> Siege:
    return Siege(iops, 10, False, [0.05, handshake_s], [], CALM, most, after)


def of(name: str, **changes: int) -> dict[str, Footprint]:
    return {**CALM, name: CALM[name]._replace(**changes)}


@pytest.mark.parametrize(
    ("after", "left"),
    [
        (CALM, []),
        (of("dom0", memory=100 * MIB + MEMORY_SLACK, mappings=500 + MAPPINGS_SLACK), []),
        (of("dom0", memory=90 * MIB, mappings=300), []),
        (of("dom0", memory=109 * MIB), ["dom0: +9 MiB"]),
        (of("hypervisor", descriptors=21), ["hypervisor: +1 descriptors"]),
        (of("hypervisor", descriptors=19), []),
        (of("xenstored", mappings=565), ["xenstored: +65 mappings"]),
    ],
)
def test_what_is_left_behind_is_named(after: dict[str, Footprint], left: list[str]) -> None:
    assert left_behind(CALM, after) == left


@pytest.mark.parametrize(
    ("attacked", "missed"),
    [
        (siege(), []),
        (siege(iops=800.0), []),
        (siege(iops=799.0), ["kept 0.80"]),
        (siege(handshake_s=0.5), ["handshake 0.50 s"]),
        (siege(most=of("dom0", memory=164 * MIB)), []),
        (siege(most=of("dom0", memory=165 * MIB)), ["dom0 +65 MiB"]),
        (siege(most=of("xenstored", descriptors=256)), ["256 descriptors"]),
        (siege(after=of("dom0", descriptors=22)), ["dom0: +2 descriptors"]),
    ],
)
def test_each_bar_can_be_missed(attacked: Siege, missed: list[str]) -> None:
    assert row_of("ring-overrun", [Pair(attacked, siege())]).missed == missed


def test_of_several_rounds_what_is_kept_is_the_median_and_all_else_the_worst() -> None:
    pairs = [
        Pair(siege(iops=iops, handshake_s=s, after=after), siege(handshake_s=0.2))
        for iops, s, after in (
            (500.0, 0.3, CALM),
            (900.0, 0.1, of("dom0", descriptors=21)),
            (950.0, 0.2, CALM),
        )
    ]
    row = row_of("store-deep", pairs)
    assert (row.kept, row.handshake_s, row.beside_reference_s) == (0.9, 0.3, 0.2)
    assert row.left == ["dom0: +1 descriptors"]


def test_the_table_fits_and_marks_what_is_missed(tmp_path: Path) -> None:
    bad = siege(10.0, of("hypervisor", memory=2000 * MIB, descriptors=300), handshake_s=12.25)
    done = {
        "hypercall-unread-ports": [Pair(bad, siege())],
        "stats-garbage": [Pair(siege(), siege())],
    }
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    print_rows(console, [row_of(name, pairs) for name, pairs in done.items()])
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    grown = ["1900.0!", "0.0", "0.0", "0.0"]
    assert cells["hypercall-unread-ports"] == [
        "0.01!", *grown, "300!", "12.25!", "clean",
    ]  # fmt: skip
    assert not any("!" in cell for cell in cells["stats-garbage"])
    write_json(tmp_path / "hostile.json", "persistent", done)
    document = json.loads((tmp_path / "hostile.json").read_text())
    assert document["rows"][0]["grown"]["hypervisor"] == 1900 * MIB
    attacked = document["sieges"]["stats-garbage"][0]["attacked"]
    assert attacked["before"]["dom0"] == {"memory": 100 * MIB, "descriptors": 20, "mappings": 500}
