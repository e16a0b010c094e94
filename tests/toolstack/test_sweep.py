"""A sweep: through Dask, resumable, and never with another model's rows."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from distributed import LocalCluster
from rich.console import Console

from toolstack import sweep as module
from toolstack.commands import cli
from toolstack.figure import GUESTS, LINES, figure_points
from toolstack.loadspec import ConfigError
from toolstack.sweep import KEY, Point, sweep

QUIET = Console(quiet=True)
POINTS = [
    Point("line", mode, "mask-2012", "2012", guests, 2, runtime_s=0.0002)
    for mode in ("persistent", "non-persistent")
    for guests in (1, 2)
]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """What is computed from now on, in this process."""
    seen: list[Point] = []

    def compute(points: list[Point], *_: Any) -> Any:
        for point in points:
            seen.append(point)
            yield module.run_point(point)

    monkeypatch.setattr(module, "_compute", compute)
    return seen


def test_a_sweep_goes_on_where_it_was(tmp_path: Path, computed: list[Point]) -> None:
    path = tmp_path / "deep" / "sweep.parquet"
    sweep(POINTS[:2], path, None, None, QUIET)
    assert computed == POINTS[:2] or computed == POINTS[:2][::-1]
    computed.clear()
    frame = sweep(POINTS, path, None, None, QUIET)
    assert sorted(computed, key=str) == sorted(POINTS[2:], key=str)
    computed.clear()
    again = sweep(POINTS, path, None, None, QUIET)
    assert computed == []
    pd.testing.assert_frame_equal(frame, again, check_dtype=False)
    assert list(frame.guests) == [1, 2, 1, 2]
    assert set(KEY) <= set(pd.read_parquet(path).columns)


def test_another_models_rows_are_not_believed(
    tmp_path: Path, computed: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sweep.parquet"
    sweep(POINTS[:1], path, None, None, QUIET)
    monkeypatch.setattr(module, "model_hash", lambda: "another")
    sweep(POINTS[:1], path, None, None, QUIET)
    assert computed == POINTS[:1] * 2


def test_a_stopped_sweep_keeps_what_was_done(
    tmp_path: Path, computed: list[Point], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0)

    def stop_at_the_third(point: Point) -> dict[str, Any]:
        if len(computed) == 3:
            raise KeyboardInterrupt
        return real(point)

    real = module.run_point
    monkeypatch.setattr(module, "run_point", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        sweep(POINTS, tmp_path / "sweep.parquet", None, None, QUIET)
    assert len(pd.read_parquet(tmp_path / "sweep.parquet")) == 2


def test_an_existing_cluster_is_used(tmp_path: Path) -> None:
    with LocalCluster(1, processes=False, dashboard_address=":0") as cluster:
        frame = sweep(POINTS, tmp_path / "sweep.parquet", cluster.scheduler_address, None, QUIET)
    assert list(frame["mode"]) == [point.mode for point in POINTS]
    assert (frame.iops > 0).all()


def test_a_cluster_that_is_not_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.2)
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with pytest.raises(ConfigError, match=f"scheduler: '{address}' cannot be reached"):
            sweep(POINTS, tmp_path / "sweep.parquet", address, None, QUIET)


@pytest.mark.parametrize("command", ["figure", "whatif"])
def test_a_directory_that_cannot_be_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(cli, [command, "--out", str(tmp_path / "file" / "x")])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("grantlab: error: out: ")


def test_the_figure_is_fifteen_guests_five_ways_then_and_now() -> None:
    points = figure_points()
    assert len(points) == len(set(points)) == len(GUESTS) * len(LINES) * 2 == 150
