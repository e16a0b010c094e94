"""What people would use instead: fio's `nbd` engine against `nbdkit memory`, on a unix socket.

Owns: starting the two, one measurement, and nothing left behind. Where they are not installed there
is no figure.
"""

import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil

from bench.figure import Figure

NEEDED: Final = ("fio", "nbdkit")
START_TIMEOUT_S: Final = 10.0


def missing() -> list[str]:
    """Which of the programs are not there."""
    return [name for name in NEEDED if not shutil.which(name)]


def fio_with_nbdkit(rw: str, iodepth: int, seconds: float, disk_mib: int = 64) -> Figure:
    """4-KiB random I/O at 70 % reads where mixed, as grantlab's loads are."""
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
            done = subprocess.run(
                [
                    "fio", "--name=peer", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}",
                    f"--rw={rw}", "--rwmixread=70", "--bs=4k", f"--iodepth={iodepth}",
                    "--time_based", f"--runtime={max(1, round(seconds))}", "--ramp_time=1",
                    f"--size={disk_mib}M", "--randrepeat=0", "--output-format=json",
                ],
                capture_output=True, text=True, check=True, cwd=directory,
            )  # fmt: skip
            used = psutil.Process(server.pid).cpu_times()
        finally:
            server.kill()
            server.wait()
    return _figure(json.loads(done.stdout[done.stdout.index("{") :]), used.user + used.system)


def _figure(said: dict[str, Any], server_cpu_s: float) -> Figure:
    job = said["jobs"][0]
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
