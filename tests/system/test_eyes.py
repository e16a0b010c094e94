"""Eyes on a machine that stays: its metrics, and `top` on a real terminal, to the machine's end."""

import asyncio
import fcntl
import http.client
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from textual.widgets import DataTable

from tests.patience import PATIENCE_S, eventually
from tests.system.conftest import ROOT, environment, grantlab
from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.names import machine_names
from toolstack.seen import see
from toolstack.top_screen import Top

pytestmark = pytest.mark.system

LEAVES_SCREEN = b"\x1b[?1049l"


@pytest.fixture
def staying(run_base: str) -> Iterator[AttachedMachine]:
    topology = Topology(guests=2, disks=["ram:4m", "ram:4m"], dom0_vcpus=2, persistent=False)
    up(topology, "eyes", lambda _: None)
    with attach("eyes") as machine:
        yield machine
    if "eyes" in machine_names():
        attach("eyes").down()


class OnUnixSocket(http.client.HTTPConnection):
    """http.client's, over a unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(self._path)


def values(text: str) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(path: str) -> dict[tuple[str, ...], float]:
    client = OnUnixSocket(path)
    client.request("GET", "/metrics")
    response = client.getresponse()
    assert response.status == 200
    found = values(response.read().decode())
    client.close()
    return found


@contextmanager
def on_a_terminal(command: str, run_base: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A program on a terminal of 80 by 24: the process, and the terminal's other end."""
    terminal, its_end = pty.openpty()
    fcntl.ioctl(its_end, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "toolstack", *command.split()],
        cwd=ROOT,
        env={**environment(run_base), "TERM": "xterm-256color"},
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
    )
    try:
        yield process, terminal
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(its_end)


def read_until(terminal: int, holds: object) -> bytes:
    """What is written to the terminal, until `holds` of it."""
    shown, deadline = b"", time.monotonic() + PATIENCE_S
    while not holds(shown):  # type: ignore[operator]
        assert time.monotonic() < deadline, shown[-2000:]
        if select.select([terminal], [], [], 0.05)[0]:
            shown += os.read(terminal, 1 << 16)
    return shown


def test_metrics_and_the_screen_show_what_the_machine_counts(
    staying: AttachedMachine, run_base: str
) -> None:
    list(staying.load(LoadSpec(ios=200)))
    done = grantlab("metrics", "eyes", "--once", run_base=run_base)
    assert (done.returncode, done.stderr) == (0, "")
    found, snapshot = values(done.stdout), staying.snapshot()
    for domid in (1, 2):
        for number, vdev in enumerate(("xvda", "xvdb")):
            for who, rows in (("frontend", snapshot.frontend), ("backend", snapshot.backend)):
                for name in ("requests", "segments"):
                    counted = found[f"grantlab_{who}_{name}_total", str(domid), vdev]
                    assert counted == rows[domid][name][number] > 0
            operations = [
                found["grantlab_latency_seconds_count", str(domid), each, vdev]
                for each in ("read", "write")
            ]
            assert sum(operations) == found["grantlab_frontend_ios_total", str(domid), vdev] == 200
        for name in ("map_ops", "unmap_ops", "flushes", "ipis"):
            counted = found[f"grantlab_hypervisor_{name}_total", str(domid)]
            assert counted == snapshot.hypervisor[domid][name][0] > 0
    received = [found["grantlab_cpu_ipis_received_total", cpu] for cpu in "01"]
    assert received == snapshot.cpus["ipis_received"].tolist()
    the_screen_shows_what_it_does(staying)


def the_screen_shows_what_it_does(staying: AttachedMachine) -> None:
    app = Top("eyes", see(staying), lambda: see(staying), every_s=0.2)

    async def drive() -> None:
        async with app.run_test(size=(80, 24)) as pilot:
            deadline = time.monotonic() + PATIENCE_S

            def cell(row: str, column: str, table: str = "guests") -> str:
                shown = app.query_one(f"#{table}", DataTable).get_cell(row, column)
                return str(shown.plain)

            while not (
                cell("guest-1", "maps/r")[:3] in ("0.9", "1.0")
                and cell("guest-1", "IPIs/r")[:3] in ("0.9", "1.0")  # two CPUs: one is another's
                and cell("guest-1", "p99 us") != "-"
                and cell("1:xvda", "ring", "disks").split()[1] != "0/32"
            ):
                assert time.monotonic() < deadline
                await pilot.pause(0.05)

    with attach("eyes") as other, closing(other.load(LoadSpec(runtime_s=600), 0.05)) as load:
        next(load)
        asyncio.run(drive())
    assert app.failure == ""


def test_eyes_are_on_a_machine_until_it_goes(staying: AttachedMachine, run_base: str) -> None:
    path = str(Path(run_base, "s"))
    serving = subprocess.Popen(
        [sys.executable, "-m", "toolstack", "metrics", "eyes", "--socket", path],
        cwd=ROOT,
        env=environment(run_base),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert serving.stdout is not None
    assert serving.stdout.readline().startswith(f"metrics of eyes: curl --unix-socket {path} ")

    with on_a_terminal("top eyes", run_base) as (hung_up, terminal):
        read_until(terminal, lambda shown: b"guest-2" in shown)
        os.kill(hung_up.pid, signal.SIGHUP)  # what the end of a terminal sends
        assert hung_up.wait(PATIENCE_S) == -signal.SIGHUP

    with on_a_terminal("top eyes", run_base) as (top, terminal):
        with closing(staying.load(LoadSpec(runtime_s=600, iodepth=32), every_s=0.05)) as load:
            next(load)
            before = scraped(path)
            eventually(
                lambda: any(scraped(path)["grantlab_ring_requests", "1", vdev] > 0
                            for vdev in ("xvda", "xvdb"))
            )  # fmt: skip
            after = scraped(path)
            name = ("grantlab_frontend_ios_total", "2", "xvdb")
            assert after[name] > before[name]
            assert before["grantlab_loads",] == 1
            # A guest's row, with one map and one flush a request or nearly so.
            row = re.compile(rb"guest-2.{0,40}?running.{0,400}?(0\.9|1\.)\d", re.DOTALL)
            shown = read_until(terminal, row.search)
            assert LEAVES_SCREEN not in shown
        staying.down()
        read_until(terminal, lambda shown: LEAVES_SCREEN in shown and b"error" in shown)
        assert top.wait(PATIENCE_S) == 1
        local_modes = termios.tcgetattr(terminal)[3]
        assert local_modes & termios.ECHO and local_modes & termios.ICANON

    assert serving.wait(PATIENCE_S) == 1
    said = serving.communicate()[1]
    assert said == "grantlab: error: machine 'eyes' is gone, and its metrics are served no more\n"
    assert not os.path.lexists(path)
