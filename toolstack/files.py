"""The files that results are written to: JSON, ours and fio's, and a table of all rings as CSV or
Parquet.

Owns: that a file is written whole or not at all, and what a row of the table is: a ring's figures
of a run, behind the settings that made them.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from toolstack.fio_output import fio_json
from toolstack.loadspec import ConfigError, shown
from toolstack.results import SCHEMA, Run

OPTIONS: Final = ("json", "csv", "parquet", "output")  # whose value is a file
OF_A_DISK: Final = ("vdev", "target", "access", "verified")
PHASES: Final = ("setup", "teardown")
OF_MORE_THAN_A_RING: Final = (
    "cpu_seconds", "flushes", "flush_entries", "ipis", "ipis_by_cpu", "flush_lock_waits",
    "host_tlb_shootdowns",
)  # fmt: skip


def check_writable(path: str | Path, option: str = "json") -> None:
    """Can a result be written to `path`? Tried, and nothing is left behind. option: whose value it
    is, for people. Raises ConfigError."""
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not os.path.isfile(target):  # unlike pathlib's, these never raise
        raise ConfigError(f"{option}: '{path}' is not a regular file")
    if not os.path.isdir(target.parent):
        raise ConfigError(
            f"{option}: '{path}' cannot be written: '{target.parent}' is no directory"
        )
    attempt = _temporary(target)
    try:
        attempt.touch()
        attempt.unlink()
    except OSError as error:
        raise ConfigError(f"{option}: '{path}' cannot be written: {error.strerror}") from None


def check_outputs(flags: Mapping[str, Any]) -> None:
    """Can all files be written that `flags` name? Raises ConfigError."""
    if flags["output_format"] not in (None, *FORMATS):
        raise ConfigError(
            f"output-format: {shown(flags['output_format'])} is not one of {', '.join(FORMATS)}"
        )
    if flags["output"] is not None and flags["output_format"] is None:
        raise ConfigError(f"output: '{flags['output']}' needs output-format: {', '.join(FORMATS)}")
    for option in OPTIONS:
        if flags[option] is not None:
            check_writable(flags[option], option)


def write_outputs(flags: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Write them. Raises ConfigError."""
    if flags["output_format"] is not None and flags["output"] is None:
        sys.stdout.write(WRITERS[FORMATS[flags["output_format"]]](runs).decode())
    for option in OPTIONS:
        if flags[option] is not None:
            form = FORMATS[flags["output_format"]] if option == "output" else option
            write(flags[option], form, runs)


def write(path: str | Path, option: str, runs: Sequence[Run]) -> None:
    """Write `runs` to `path` whole or not at all, in the form that `option` (of WRITERS) names.

    Raises ConfigError.
    """
    check_writable(path, option.removesuffix("+"))
    write_whole(path, option, WRITERS[option](runs))


def write_whole(path: str | Path, option: str, data: bytes) -> None:
    """Write `data` to `path` whole or not at all. option: whose value it is. Raises ConfigError."""
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{option}: '{path}' cannot be written: {error.strerror}") from None


def ring_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each ring of each run: the settings, whose ring it is, its figures.

    A setting of the load is that of what ran on the disk.
    """
    rows = []
    for run in runs:
        settings = _simple(run["config"])
        for guest in run["guests"]:
            for disk in guest["disks"]:
                for ring in disk["rings"]:
                    rows.append(
                        {
                            **settings,
                            **_simple(disk["load"] or {}),
                            "domid": guest["domid"],
                            "suspect": guest["suspect"],
                            **{name: disk[name] for name in OF_A_DISK},
                            "ring": ring["ring"],
                            **_figures(ring),
                        }
                    )
    return rows


def _simple(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that fit into a table."""
    return {k: v for k, v in settings.items() if not isinstance(v, (list, tuple, dict))}


def _figures(ring: dict[str, Any]) -> dict[str, Any]:
    """A ring's numbers, flat; without those that no ring has."""
    counted = ring["counters"]
    flat = {
        **ring["totals"],
        **{f"latency_us_{name}": value for name, value in ring["latency_us"].items()},
        **{name: value for name, value in counted.items() if name not in PHASES},
        **{f"{phase}_{name}": v for phase in PHASES for name, v in counted[phase].items()},
    }
    return {name: v for name, v in flat.items() if not name.endswith(OF_MORE_THAN_A_RING)}


def _as_json(runs: Sequence[Run]) -> bytes:
    told = [_without_bins(run) for run in runs]
    text = json.dumps({"schema": SCHEMA, "runs": told}, indent=2, allow_nan=False)
    return f"{text}\n".encode()


def _without_bins(told: Any) -> Any:
    """The same without whole histograms, which are fio's json+ (`toolstack/fio_output.py`)."""
    if isinstance(told, dict):
        return {name: _without_bins(value) for name, value in told.items() if name != "bins"}
    return [_without_bins(each) for each in told] if isinstance(told, list) else told


def _as_csv(runs: Sequence[Run]) -> bytes:
    rows, text = ring_rows(runs), io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _as_parquet(runs: Sequence[Run]) -> bytes:
    import pandas as pd  # noqa: PLC0415 - takes a while

    return bytes(pd.DataFrame(ring_rows(runs)).to_parquet(index=False))


# By the option whose value is the file.
WRITERS: Final[dict[str, Callable[[Sequence[Run]], bytes]]] = {
    "json": _as_json,
    "csv": _as_csv,
    "parquet": _as_parquet,
    "output": fio_json,
    "output+": partial(fio_json, bins=True),
}
FORMATS: Final = {"json": "output", "json+": "output+"}  # of --output


def _temporary(target: Path) -> Path:
    """In the same directory, so that the rename is atomic."""
    return target.with_name(f".{target.name}.{os.getpid()}")
