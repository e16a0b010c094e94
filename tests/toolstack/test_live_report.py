"""`report`: what was seen of a machine, as one HTML file."""

import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.toolstack.stand_in import snapshot
from toolstack import live_pictures
from toolstack.commands import cli
from toolstack.live_report import Seen, page
from toolstack.snapshot import Snapshot
from toolstack.topology import Topology


def moment(at_s: float, requests: int, ipis: int) -> Snapshot:
    done = {"ios": requests, "requests": requests}
    return snapshot(
        at_s,
        frontend={1: done},
        hypervisor={1: {"map_ops": requests, "unmap_ops": requests, "flushes": requests,
                        "ipis": ipis, "grants_mapped": 3}},
        latency={1: (50,) * (requests // 100)},
        ipis_received=(0, ipis),
    )  # fmt: skip


MOMENTS = [moment(10.0, 0, 0), moment(10.5, 500, 1500), moment(11.0, 500, 1500)]


def seen(failure: str = "") -> Seen:
    domains = [
        {"domid": 1, "name": "guest-1", "state": "running", "failure": "", "grants_mapped": 3},
        {"domid": 2, "name": "guest-2", "state": "dead", "failure": failure, "grants_mapped": 0},
    ]
    disk = {"vdev": "xvda", "target": "ram:4m", "access": "rw", "state": "Connected",
            "grants_kept": 3}  # fmt: skip
    disks = [{"domid": domid, **disk} for domid in (1, 2)]
    return Seen(
        "box",
        {"state": "running"},
        {"domains": domains, "disks": disks, "loads": 1},
        Topology(guests=2, dom0_vcpus=2, persistent=False),
        MOMENTS[0],
        MOMENTS,
    )


def rows(text: str) -> list[list[str]]:
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.S)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in found]


def test_it_needs_nothing_else() -> None:
    text = page(seen())
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert len(re.findall('src="data:image/png;base64,', text)) == 3
    assert all(source.startswith("data:") for source in sources)
    assert "<script" not in text and "Undefined" not in text


def test_a_disk_s_figures_are_of_what_was_seen_of_it() -> None:
    found = rows(page(seen()))
    (one,) = (row for row in found if row[:2] == ["1", "xvda"])
    assert one[2:6] == ["ram:4m", "Connected", "3", "500"]  # in a second
    assert one[6].startswith(("49.", "50.")) and one[8] == "0"
    (other,) = (row for row in found if row[:2] == ["2", "xvda"])
    assert other[5:8] == ["0", "-", "-"]


def test_a_disk_that_has_come_meanwhile_has_no_figures_yet() -> None:
    machine = seen()
    machine.status["disks"].append({**machine.status["disks"][0], "vdev": "xvdb"})
    assert rows(page(machine)) == rows(page(seen()))


def test_counts_are_for_1000_requests_and_since_it_was_connected() -> None:
    found = {row[0]: row[1:] for row in rows(page(seen())) if len(row) == 3}
    assert found["TLB flushes"] == ["1,000", "1,000"]
    assert found["IPIs"] == ["3,000", "3,000"]


def test_what_a_guest_died_of_is_text() -> None:
    text = page(seen(failure="<script>alert(1)</script>"))
    assert "<script" not in text and "&lt;script&gt;" in text


def test_what_a_request_costs_is_of_each_moment_and_unknown_where_there_was_none() -> None:
    lines = {line.get_label(): line for line in live_pictures.costs(MOMENTS).axes[0].lines}
    assert list(lines) == ["maps", "unmaps", "copies", "flushes", "IPIs"]
    for name, cost in (("maps", 1.0), ("copies", 0.0), ("IPIs", 3.0)):
        first, second = lines[name].get_ydata()
        assert first == cost and np.isnan(second)


def test_ipis_are_by_cpu_and_moment() -> None:
    (mesh,) = live_pictures.ipis(MOMENTS).axes[0].collections
    assert mesh.get_array().tolist() == [[0, 0], [3000, 0]]


def test_more_disks_than_colours_are_one_line() -> None:
    for disks, lines in ((live_pictures.LINES_MAX, live_pictures.LINES_MAX), (15, 1)):
        labels = {(1, at): f"1:{at}" for at in range(disks)}
        moments = [snapshot(at, frontend={1: [{"ios": at * 10}] * disks}, disks=disks)
                   for at in (1, 2)]  # fmt: skip
        drawn = live_pictures.throughput(moments, labels).axes[0].lines
        assert len(drawn) == lines
        assert sum(line.get_ydata()[0] for line in drawn) == 10 * disks


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("nobody", "machine 'nobody' is not up; machines that are: none"),
        ("a/b", "name: 'a/b' is not 1..32 letters"),
        ("nobody --seconds 0", "report: seconds: '0' is not in 0.25..3600"),
        ("nobody --out /none/such.html", "out: '/none/such.html' cannot be written"),
        ("nobody --out .", "out: '.' is not a regular file"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    arguments: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["report", *arguments.split()])
    assert done.exit_code == 2 and done.stderr.startswith(f"grantlab: error: {line}")
    assert done.stderr.count("\n") == 1 and list(tmp_path.iterdir()) == []
