"""Many simulated points at once: through Dask, resumable, with live progress, into Parquet.

Owns: what a point is, and the file of those that are done. Rules: a row belongs to the model that
made it (a hash of its sources), and one that is there is not computed again; the file is whole at
every moment, so that a sweep which was stopped goes on where it was.
"""

import gc
import hashlib
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import dask
import pandas as pd
from distributed import Client, LocalCluster, as_completed
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from simulator import experiment
from simulator.config import Config
from toolstack.loadspec import ConfigError

ROOT: Final = Path(__file__).parents[1]
MODEL: Final = ("common", "hypervisor", "frontend", "backend", "simulator")
SAVE_EVERY_S: Final = 2.0
CONNECT_TIMEOUT_S: Final = 10


@dataclass(frozen=True)
class Point:
    """One configuration of a sweep."""

    line: str  # what the figure calls it
    mode: str
    flush_policy: str
    era: str
    guests: int
    dom0_vcpus: int = experiment.PUBLISHED_VCPUS
    bs: int = 4096
    runtime_s: float = experiment.RUNTIME_S
    seed: int = 1

    @property
    def weight(self) -> int:
        """Roughly how long it takes: the long ones go first."""
        return self.guests * (self.mode == "grant-copy" or self.flush_policy == "precise")


KEY: Final = ("model", *(field.name for field in fields(Point)))


def model_hash() -> str:
    """Changes whenever anything does that could change a result."""
    digest = hashlib.sha256()
    for package in MODEL:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def run_point(point: Point) -> dict[str, Any]:
    """Simulate one point, wherever Dask has sent it."""
    plan = experiment.plan(bs=point.bs, runtime_s=point.runtime_s, seed=point.seed)
    row = experiment.measure(
        Config(
            plan,
            point.mode,
            point.guests,
            point.dom0_vcpus,
            flush_policy=point.flush_policy,
            era=point.era,
        )
    )
    gc.collect()  # a machine is a ring of references, and a large one
    return {**row, **asdict(point)}


def sweep(
    points: Sequence[Point],
    path: Path,
    scheduler: str | None,
    workers: int | None,
    console: Console,
) -> pd.DataFrame:
    """Every point's row, computed now or found in `path`.

    scheduler: an existing cluster's address; workers: how many processes here (None: one a core).
    """
    model = model_hash()
    done = _read(path)
    keys = {_key({"model": model, **asdict(point)}): point for point in points}
    found = {_key(row): row for row in done if _key(row) in keys}
    missing = [point for key, point in keys.items() if key not in found]
    missing.sort(key=lambda point: -point.weight)
    kept = [row for row in done if row["model"] == model]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task(path.stem, total=len(points), completed=len(found))
        saved_at = time.monotonic()
        for row in _compute(missing, scheduler, workers):
            kept.append({"model": model, **row})
            found[_key(kept[-1])] = kept[-1]
            what = f"{row['line']}, {row['era']}, guests {row['guests']}"
            progress.update(task, advance=1, description=what)
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                _write(path, kept)
                saved_at = time.monotonic()
    _write(path, kept)
    return pd.DataFrame([found[key] for key in keys])


def _compute(points: list[Point], scheduler: str | None, workers: int | None) -> Any:
    """The rows, in the order in which they are done."""
    if not points:
        return
    if scheduler is not None:
        with _client(scheduler) as client:
            yield from _results(client, points)
        return
    run_point(points[-1])  # so that what is compiled is compiled once, and found by the workers
    with (
        tempfile.TemporaryDirectory(prefix="grantlab-") as scratch,  # Dask leaves its own behind
        dask.config.set(temporary_directory=scratch),
        LocalCluster(
            workers,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,  # what fails is raised; the rest is how it takes leave
        ) as cluster,
        Client(cluster) as client,
    ):
        yield from _results(client, points)


def _client(scheduler: str) -> Client:
    try:
        return Client(scheduler, timeout=CONNECT_TIMEOUT_S)
    except (OSError, TimeoutError, ValueError) as error:
        reason = str(error).split(":", maxsplit=1)[0]
        raise ConfigError(f"scheduler: '{scheduler}' cannot be reached: {reason}") from None


def _results(client: Client, points: list[Point]) -> Any:
    for future in as_completed(client.map(run_point, points, pure=False)):
        yield future.result()


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = pd.read_parquet(path).to_dict("records")
    return rows if rows and set(KEY) <= set(rows[0]) else []


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    pd.DataFrame(rows).to_parquet(temporary, index=False)
    temporary.replace(path)
