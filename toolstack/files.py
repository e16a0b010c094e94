"""The files that results are written to: JSON, and a table of all rings as CSV or Parquet.

Owns: that a file is written whole or not at all, and what a row of the table is: a ring's figures
of a run, behind the settings that made them.
"""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from toolstack.loadspec import ConfigError
from toolstack.results import SCHEMA, Run

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
    for option in WRITERS:
        if flags[option] is not None:
            check_writable(flags[option], option)


def write_outputs(flags: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Write them. Raises ConfigError."""
    for option in WRITERS:
        if flags[option] is not None:
            write(flags[option], option, runs)


def write(path: str | Path, option: str, runs: Sequence[Run]) -> None:
    """Write `runs` to `path` whole or not at all, in the form that `option` (of WRITERS) names.

    Raises ConfigError.
    """
    check_writable(path, option)
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    try:
        temporary.write_bytes(WRITERS[option](runs))
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
        settings = {
            k: v for k, v in run["config"].items() if not isinstance(v, (list, tuple, dict))
        }
        for guest in run["guests"]:
            for disk in guest["disks"]:
                for ring in disk["rings"]:
                    rows.append(
                        {
                            **settings,
                            **(disk["load"] or {}),
                            "domid": guest["domid"],
                            "suspect": guest["suspect"],
                            **{name: disk[name] for name in OF_A_DISK},
                            "ring": ring["ring"],
                            **_figures(ring),
                        }
                    )
    return rows


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
    text = json.dumps({"schema": SCHEMA, "runs": list(runs)}, indent=2, allow_nan=False)
    return f"{text}\n".encode()


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
WRITERS: Final = {"json": _as_json, "csv": _as_csv, "parquet": _as_parquet}


def _temporary(target: Path) -> Path:
    """In the same directory, so that the rename is atomic."""
    return target.with_name(f".{target.name}.{os.getpid()}")
