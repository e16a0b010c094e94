"""One machine, one load, one line of JSON: run as a script, under the version to be measured.

`DIR/run.sh python -P .../one_cell.py '{"mode": ..., "guests": ..., "spin": ..., "seconds": ...}'`
It is this file, whatever version is measured, so it uses only what every version has; the four
figures are by that version's own `bench/figure.py`, which knows its counters. The line also says
which directories the packages came from, for whoever asked to compare with what was meant.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final

# What `bench/contest.py` measures with, too.
MACHINE: Final[dict[str, Any]] = {"dom0_vcpus": 24, "disk_mib": 64}
LOAD: Final[dict[str, Any]] = {"rw": "randrw", "bs": 4096, "iodepth": 32, "verify": False}
# Every page of the disk is there before anything is measured: 64 MiB, once.
FILL: Final[dict[str, Any]] = {**LOAD, "rw": "write", "bs": 1 << 16, "iodepth": 8, "ios": 1024}
WARM_S: Final = 0.5  # until the pool of persistent grants is full and the waiters have adapted
PACKAGES: Final = (
    "common", "hypervisor", "xenstored", "frontend", "backend", "simulator", "toolstack", "bench",
)  # fmt: skip


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """Start the machine, warm it up, measure, close it: figures by name."""
    # Not at the top: a forked process may import this file once more, and is to stay light.
    from bench.figure import measure  # noqa: PLC0415
    from toolstack import LoadSpec, Topology  # noqa: PLC0415

    topology = Topology(guests=asked["guests"], spin=asked["spin"], **MACHINE)
    load = {**LOAD, "runtime_s": asked["seconds"]}
    with topology.with_mode(asked["mode"]).start() as machine:
        measure(machine, LoadSpec(**FILL))
        measure(machine, LoadSpec(**{**load, "runtime_s": WARM_S}))
        return dict(measure(machine, LoadSpec(**load))._asdict())


def roots() -> list[str]:
    """The directories that grantlab's packages have been imported from; one, if all is well."""
    files = [getattr(sys.modules.get(name), "__file__", None) for name in PACKAGES]
    return sorted({str(Path(file).resolve().parents[1]) for file in files if file})


if __name__ == "__main__":
    figures = measured(json.loads(sys.argv[1]))
    print(json.dumps({**figures, "roots": roots()}))
