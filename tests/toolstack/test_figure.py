"""The figure's pictures and its report, from made-up numbers."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator import experiment
from simulator.cpus import KINDS
from toolstack import pictures, whatif
from toolstack.figure import LINES, Detail, figure_points, predictions
from toolstack.figure_report import PICTURES, write_report


@pytest.fixture
def frame() -> pd.DataFrame:
    """Persistent grows by 100,000 a guest; all else peaks at 4 guests."""
    rows = []
    for point in figure_points():
        peak = 600_000 - 10_000 * (point.guests - 4) ** 2
        iops = 100_000 * point.guests if point.mode == "persistent" else peak
        extra = {"iops": float(iops), "ipis_per_request": 1.0, "saturated": "memory"}
        rows.append({**asdict(point), **extra})
    return pd.DataFrame(rows)


def test_predictions_say_how_far_they_are_off(frame: pd.DataFrame) -> None:
    rows = {row["what"]: row for row in predictions(frame)}
    assert rows["5 guests, non-persistent: IOPS"]["off"] == "-9.2%"
    assert rows["10 guests, non-persistent: IOPS"]["off"] == "-40.0%"
    assert rows["10 guests, non-persistent: IOPS"]["kind"] == "prediction"
    assert rows["peak, non-persistent: guests"]["simulated"] == "4"
    assert rows["persistent: falls at (guests)"]["simulated"] == "nowhere"
    below = rows["persistent not above non-persistent, from 2 guests on"]
    assert below["simulated"] == "[2, 3, 4, 5]"


def test_fewer_guests_are_a_figure_too(frame: pd.DataFrame) -> None:
    fewer = frame[frame.guests.isin([3, 10, 12])]
    rows = {row["what"]: row for row in predictions(fewer)}
    assert "5 guests, non-persistent: IOPS" not in rows
    assert rows["10 guests, non-persistent: IOPS"]["off"] == "-40.0%"
    assert rows["peak, non-persistent: guests"]["simulated"] == "3"
    assert rows["persistent not above non-persistent, from 2 guests on"]["simulated"] == "[3]"
    assert rows["persistent, 12 guests: IOPS"]["simulated"] == "1,200,000"
    assert {point.guests for point in figure_points(guests=[3, 10])} == {3, 10}


def test_the_report_is_one_file_that_needs_nothing_else(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    shares, matrix = np.full((24, len(KINDS)), 0.1), np.ones((24, 24))
    details = [Detail("one", shares, matrix), Detail("two", shares, matrix)]
    for name, picture in (
        ("iops", pictures.throughput(frame, LINES, experiment.PUBLISHED)),
        ("ipis", pictures.interrupts(frame, LINES)),
        ("cpus", pictures.cpu_time(details, KINDS)),
        ("heatmap", pictures.heat_map(details)),
    ):
        pictures.save(picture, tmp_path / name)
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": []}))
    write_report(tmp_path, predictions(frame), frame, {"persistent": "trace.json"})
    text = (tmp_path / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(re.findall('src="data:image/png;base64,', text)) == len(PICTURES) == 4
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in text and "Undefined" not in text
    assert "block_layer_ns" in text and "fitted" in text


def test_a_picture_is_the_same_file_each_time(frame: pd.DataFrame, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pictures.save(pictures.interrupts(frame, LINES), tmp_path / name)
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_where_persistent_grants_pay_is_a_ratio_by_vcpus_and_guests(tmp_path: Path) -> None:
    rows = [
        {**asdict(point), "iops": float(point.dom0_vcpus if point.mode == "persistent" else 2)}
        for point in whatif.whatif_points("2012")
    ]
    gain = whatif.gains(pd.DataFrame(rows), "2012", 4096)
    assert gain.loc[1, 1] == 0.5 and gain.loc[256, 64] == 128
    assert gain.shape == (len(whatif.FULL.vcpus), len(whatif.FULL.guests))
    pictures.save(pictures.contours({"4k": gain}, "title", whatif.TIE), tmp_path / "whatif")
    assert (tmp_path / "whatif.png").stat().st_size > 10_000
