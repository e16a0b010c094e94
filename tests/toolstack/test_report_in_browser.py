"""The figure's report in a real browser: it draws, and has nothing to complain of."""

import os
import shutil
import struct
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator import experiment
from simulator.cpus import KINDS
from toolstack import pictures
from toolstack.figure import LINES, Detail, figure_points, predictions
from toolstack.figure_report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


def test_the_report_draws_without_a_word_on_the_console(tmp_path: Path) -> None:
    extra = {"iops": 1e5, "ipis_per_request": 1.0, "saturated": ""}
    frame = pd.DataFrame([{**asdict(point), **extra} for point in figure_points()])
    detail = Detail("x", np.full((24, len(KINDS)), 0.1), np.ones((24, 24)))
    pictures.save(pictures.throughput(frame, LINES, experiment.PUBLISHED), tmp_path / "iops")
    pictures.save(pictures.interrupts(frame, LINES), tmp_path / "ipis")
    pictures.save(pictures.cpu_time([detail] * 2, KINDS), tmp_path / "cpus")
    pictures.save(pictures.heat_map([detail] * 2), tmp_path / "heatmap")
    (tmp_path / "trace.json").write_text("{}")
    write_report(tmp_path, predictions(frame), frame, {"persistent": "trace.json"})
    shot = tmp_path / "shot.png"
    assert CHROMIUM is not None
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,3000")
    done = subprocess.run(
        [CHROMIUM, *flags, "--enable-logging=stderr", f"--screenshot={shot}",
         f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / 'report.html'}"],
        capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert struct.unpack(">II", shot.read_bytes()[16:24]) == (1300, 3000)
