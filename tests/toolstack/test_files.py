"""The files of results: whole or not at all; JSON, and a table of rings."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from tests.toolstack.stand_in import StandIn
from toolstack.files import WRITERS, check_writable, ring_rows, write
from toolstack.loadspec import LoadSpec
from toolstack.results import Run, build_run
from toolstack.topology import ConfigError, Topology


def run_of(**settings: object) -> Run:
    """Two guests, of which the second has a null disk besides."""
    own = [{"domid": 2, "disks": ["ram:1m", "null:1m"]}]
    machine = StandIn(Topology(guests=2, guest=own, **settings))
    spec = LoadSpec(bs="8k", job=[{"vdev": "xvda"}, {"vdev": "xvdb", "rw": "randread", "bs": 512}])
    before = machine.snapshot()
    *_, after = machine.load(spec)
    return build_run(
        machine.topology, spec, booted=before, started=before, finished=after, closed=after
    )


RUNS = [run_of(), run_of(persistent=False)]


def test_a_row_is_a_ring_with_its_settings_and_figures() -> None:
    rows = ring_rows(RUNS)
    assert len(rows) == 2 * 3
    assert [(row["mode"], row["domid"], row["vdev"]) for row in rows[2:4]] == [
        ("persistent", 2, "xvdb"),
        ("non-persistent", 1, "xvda"),
    ]
    null = rows[2]
    assert (null["target"], null["access"], null["verified"], null["ring"]) == (
        "null:1m", "rw", False, 0,
    )  # fmt: skip
    assert (null["rw"], null["bs"], rows[0]["rw"], rows[0]["bs"]) == (
        "randread",
        512,
        "randrw",
        8192,
    )
    assert (null["requests"], null["iops"], null["guests"]) == (4000, 2000.0, 2)
    assert null["latency_us_p50"] == pytest.approx(50, rel=0.02)
    assert rows[3]["map_ops"] == 4000 and rows[3]["setup_map_ops"] == 0
    assert len({tuple(row) for row in rows}) == 1  # the same columns
    assert not any(isinstance(value, (list, dict)) for row in rows for value in row.values())
    assert "flushes" not in null and "ipis_by_cpu" not in null


def test_the_table_is_the_same_as_csv_and_as_parquet(tmp_path: Path) -> None:
    rows = ring_rows(RUNS)
    write(tmp_path / "a.csv", "csv", RUNS)
    write(tmp_path / "a.parquet", "parquet", RUNS)
    with open(tmp_path / "a.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert found == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    frame = pd.read_parquet(tmp_path / "a.parquet")
    assert list(frame) == list(rows[0])
    assert frame["map_ops"].tolist() == [row["map_ops"] for row in rows]


@pytest.mark.parametrize("option", WRITERS)
def test_nothing_that_ran_is_a_file_all_the_same(option: str, tmp_path: Path) -> None:
    write(tmp_path / "out", option, [])
    assert (tmp_path / "out").exists()


def test_the_file_is_schema_2_with_every_run(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write(path, "json", RUNS)
    told = json.loads(path.read_text())
    assert "bins" not in path.read_text() and len(told["runs"]) == len(RUNS)
    for found, run in zip(told["runs"], RUNS, strict=True):
        assert found["totals"] == run["totals"] and found["config"] == run["config"]
        assert found["guests"][1]["disks"][0]["rings"] == run["guests"][1]["disks"][0]["rings"]
    assert told["schema"] == 2


def test_an_older_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    write(path, "json", RUNS)
    assert json.loads(path.read_text())["schema"] == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link_and_its_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    write(link, "json", [])
    assert link.is_symlink()
    assert json.loads(target.read_text())["runs"] == []


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "out.json"
    with pytest.raises(ConfigError, match=r"json: '.*out.json' cannot be written: '.*none' is no"):
        write(path, "json", [])


@pytest.mark.parametrize("path", ["/dev/null", "/"])
def test_what_is_no_regular_file_is_never_replaced(path: str) -> None:
    with pytest.raises(ConfigError, match="is not a regular file"):
        check_writable(path)


def test_asking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.json")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_the_file_system_refuses_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: File name too long"):
        check_writable(tmp_path / ("x" * 300))
