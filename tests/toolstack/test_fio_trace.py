"""Traces as others write them: iologs, and what blkparse prints."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common import abi
from toolstack import fio_trace
from toolstack.fio_trace import TraceError, read_trace
from toolstack.loadspec import ConfigError, LoadSpec

READ, WRITE = abi.BLKIF_OP_READ, abi.BLKIF_OP_WRITE
TRIM, FLUSH = abi.BLKIF_OP_DISCARD, abi.BLKIF_OP_FLUSH_DISKCACHE

V2 = """\
fio version 2 iolog
/dev/sda add
/dev/sda open
/dev/sda write 4096 8192
/dev/sda wait 50 0
/dev/sda sync
/dev/sda wait 1500 0
/dev/sda read 0 512
/dev/sda wait 1000 0
/dev/sda trim 1048576 4096
/dev/sda datasync 0 0
/dev/sda close
"""
V3 = """\
fio version 3 iolog
0 f add
7 f open
10 f read 512 1024
2500 f write 0 4096
2400 f read 4096 4096
3000 f close
"""
BLKPARSE = """\
  8,0    3        1     1.000000500   697  G   W 223490 + 8 [kjournald]
  8,0    3        2     1.000001000   697  P   R [kjournald]
  8,0    3        3     1.000001829   697  Q  WS 223490 + 8 [kjournald]
  8,0    0        4     1.000002000   697  Q FWFSM 24 + 16 [a b]
  8,0    0        5     1.000001500   697  Q   R 8 + 8 [x]
  8,0    0        6     1.000009000     0  Q   D 800 + 80 [fstrim]
  8,0    0        7     1.000009500     0  Q   FN [x]
  8,0    0        8     1.000010000     0  D  WS 223490 + 8 [x]
  8,0    0        9     1.000020000     0  C  WS 223490 + 8 [0]
  8,0    0       10     1.000030000     0  Q   N [x]
CPU0 (sda):
 Reads Queued:           0,        0KiB\t Writes Queued:           1,        4KiB
"""


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "trace"
        path.write_text(text)
        return str(path)

    return write


def rows(path: str) -> list[tuple[int, ...]]:
    return [tuple(row) for row in read_trace(path).entries.tolist()]


def test_an_iolog_of_version_2_has_waits(write: Any) -> None:
    assert rows(write(V2)) == [
        (0, 8, 16, WRITE),
        (0, 0, 0, FLUSH),
        (1_500_000, 0, 1, READ),
        (2_500_000, 2048, 8, TRIM),
        (2_500_000, 0, 0, FLUSH),
    ]
    trace = read_trace(write(V2))
    assert (trace.largest, trace.writes, trace.trims, trace.reach) == (8192, True, True, 2056 * 512)


def test_one_of_version_3_has_times_in_microseconds_that_never_go_back(write: Any) -> None:
    assert rows(write(V3)) == [
        (10_000, 1, 2, READ),
        (2_500_000, 0, 8, WRITE),
        (2_500_000, 8, 8, READ),
    ]


def test_of_blktrace_what_was_queued_is_taken_in_the_order_of_time(write: Any) -> None:
    assert rows(write(BLKPARSE)) == [
        (0, 8, 8, READ),
        (329, 223490, 8, WRITE),
        (500, 0, 0, FLUSH),
        (500, 24, 16, WRITE),
        (7500, 800, 80, TRIM),
        (8000, 0, 0, FLUSH),
    ]


def test_or_what_was_issued_where_nothing_was_queued(write: Any) -> None:
    issued = "".join(line for line in BLKPARSE.splitlines(True) if " Q " not in line)
    assert rows(write(issued)) == [(0, 223490, 8, WRITE)]


def test_what_is_longer_than_an_io_may_be_is_in_pieces(write: Any) -> None:
    trace = write("fio version 2 iolog\nf add\nf read 0 2621440\n")
    assert [row[1:3] for row in rows(trace)] == [(0, 2048), (2048, 2048), (4096, 1024)]
    assert read_trace(trace).largest == 1 << 20


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "line 1: is neither"),
        ("fio version 1 iolog\n", "line 1: an iolog of version 1"),
        ("fio version 2 iolog\nf read 0 512\n", "line 2: 'f' was not added"),
        ("fio version 2 iolog\nf add\nf read 0\n", "line 3: 'f read 0' is no action"),
        ("fio version 2 iolog\nf add\nf jump 0 512\n", "line 3: 'f jump 0 512' is no action"),
        ("fio version 2 iolog\nf add\nf read x 512\n", "line 3: 'x' is no number"),
        ("fio version 2 iolog\nf add\nf read -1 512\n", "line 3: '-1' is no number"),
        ("fio version 2 iolog\nf add\nf read 99999999999999999999999 512\n", "line 3: '9+' is no"),
        ("fio version 2 iolog\nf add\nf read 0 100\n", "an I/O of 100 bytes at 0 is not of whole"),
        ("fio version 2 iolog\nf add\nf read 0 0\n", "an I/O of 0 bytes at 0 is not of whole"),
        ("fio version 2 iolog\nf add\n\ng add\n", "line 4: a second file"),
        ("fio version 2 iolog\nf add\nf sync\n", "there is no I/O in it"),
        ("fio version 3 iolog\nx f add\n", "line 2: 'x' is no number"),
        ("fio version 3 iolog\n0 f add\n0 f wait 500 0\n", "line 3: '0 f wait 500 0' is no action"),
        ("fio version 3 iolog\n0\n", "line 2: '0' is no action"),
        (BLKPARSE.splitlines()[2] + "\n" + BLKPARSE.splitlines()[3].replace("8,0", "8,16"),
         "line 2: device 8,16 beside 8,0"),
        (BLKPARSE + BLKPARSE, "line 13: an event after the summary"),
        ("  8,0 3 1 0.000000000 697 Q W nonsense\n", "line 1: 'nonsense' is no SECTOR"),
        ("  8,0 3 1 0.000000000 697 C W 8 + 8 [x]\n", "there is no I/O in it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line_with_its_number(write: Any, text: str, complaint: str) -> None:
    with pytest.raises(TraceError, match=complaint) as told:
        read_trace(write(text))
    assert "\n" not in str(told.value)


def test_a_trace_is_bounded(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fio_trace, "ENTRIES_MAX", 10)
    text = "fio version 2 iolog\nf add\n" + "f read 0 512\n" * 11
    with pytest.raises(TraceError, match="more than 10 I/Os"):
        read_trace(write(text))
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace("/nowhere")
    monkeypatch.setattr(fio_trace, "BYTES_MAX", 10)
    with pytest.raises(TraceError, match="has more than"):
        read_trace(write(text))


def test_a_load_knows_its_trace(write: Any) -> None:
    spec = LoadSpec(replay=write(V2))
    assert (spec.bs, spec.writes, spec.discards, spec.pattern) == (8192, True, True, "randrw")
    assert (spec.runtime_s, spec.reach) == (None, 2056 * 512)
    reads = LoadSpec(replay=write(V3.replace("write", "read")), ios=5)
    assert (reads.writes, reads.pattern, reads.bs, reads.ios) == (False, "randread", 4096, 5)
    with pytest.raises(ConfigError, match="replay: '/nowhere' cannot be read"):
        LoadSpec(replay="/nowhere")


@pytest.mark.skipif(shutil.which("fio") is None, reason="needs Debian's fio")
def test_what_fio_writes_is_read(tmp_path: Path) -> None:
    subprocess.run(
        ["fio", "--name=j", "--ioengine=null", "--size=1m", "--bs=4k", "--rw=randrw",
         "--write_iolog=log", "--rate_iops=2000", "--number_ios=50"],
        cwd=tmp_path, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    trace = read_trace(str(tmp_path / "log"))
    assert (len(trace.entries), trace.largest, trace.writes) == (50, 4096, True)
    seconds = int(trace.entries["at_ns"][-1]) / 1e9
    assert seconds == pytest.approx(0.0125, abs=0.02)
