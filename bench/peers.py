"""What people would use instead: fio's `nbd` engine against `nbdkit memory`, on a unix socket.

Owns: starting the two, one measurement, and nothing left behind. Where they are not installed there
is no figure.
"""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from bench.figure import Figure

NEEDED: Final = ("fio", "nbdkit")
START_TIMEOUT_S: Final = 10.0


def missing() -> list[str]:
    """Which of the programs are not there."""
    return [name for name in NEEDED if not shutil.which(name)]


@contextmanager
def nbdkit(disk_mib: int) -> Iterator[tuple[str, int]]:
    """The URI of so many MiB of memory that it serves, and its process's id."""
    with tempfile.TemporaryDirectory(prefix="gl-") as directory:
        path = f"{directory}/nbd"
        server = subprocess.Popen(
            ["nbdkit", "-f", "-U", path, "memory", f"{disk_mib}M"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while not Path(path).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield f"nbd+unix:///?socket={path}", server.pid
        finally:
            server.kill()
            server.wait()


def fio(rw: str, iodepth: int, seconds: float, disk_mib: int, *flags: str) -> dict[str, Any]:
    """What fio says of its one job: 4-KiB I/O; flags: its engine, and on what."""
    with tempfile.TemporaryDirectory(prefix="gl-") as directory:
        done = subprocess.run(
            [
                "fio", "--name=peer", *flags, f"--rw={rw}", "--bs=4k", f"--iodepth={iodepth}",
                "--time_based", f"--runtime={max(1, round(seconds))}", f"--size={disk_mib}M",
                "--randrepeat=0", "--output-format=json",
            ],
            capture_output=True, text=True, check=True, cwd=directory,
        )  # fmt: skip
    job: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    return job


def fio_with_nbdkit(rw: str, iodepth: int, seconds: float, disk_mib: int = 64) -> Figure:
    """4-KiB random I/O at 70 % reads where mixed, as grantlab's loads are."""
    with nbdkit(disk_mib) as (uri, pid):
        flags = "--ioengine=nbd", f"--uri={uri}", "--rwmixread=70", "--ramp_time=1"
        job = fio(rw, iodepth, seconds, disk_mib, *flags)
        used = psutil.Process(pid).cpu_times()
    return _figure(job, used.user + used.system)


def _figure(job: dict[str, Any], server_cpu_s: float) -> Figure:
    directions = [job[name] for name in ("read", "write") if job[name]["total_ios"]]
    iops = sum(direction["iops"] for direction in directions)
    busiest = max(directions, key=lambda direction: direction["total_ios"])
    percentiles = busiest["clat_ns"]["percentile"]
    run_s = job["job_runtime"] / 1000
    client_cpu_s = (job["usr_cpu"] + job["sys_cpu"]) / 100 * run_s
    # The server's time includes fio's second of ramp.
    requests = iops * run_s
    per_million = (client_cpu_s / requests + server_cpu_s / (iops * (run_s + 1))) * 1e6
    return Figure(
        iops, percentiles["50.000000"] / 1000, percentiles["99.000000"] / 1000, per_million
    )
