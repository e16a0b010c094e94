"""The bench on real machines: a sample, and an orderly end in the middle of one."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from bench.sampling import Cell, sample
from bench.versions import this_checkout

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


def test_a_sample_of_this_checkout_has_four_figures() -> None:
    figure = sample(this_checkout(), Cell("grant-copy", 2), 0.2)
    assert figure.iops > 0
    assert 0 < figure.p50_us <= figure.p99_us
    assert figure.cpu_s_per_million > 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_it_warms_up_it_leaves_no_checkout(
    run_base: str, tmp_path: Path, signum: signal.Signals
) -> None:
    bench = subprocess.Popen(
        ["./run.sh", "bench", "pairs", "--against", "HEAD", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": run_base, "TMPDIR": run_base},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert bench.stdout is not None
    for line in bench.stdout:
        if line.startswith("warming up"):
            break
    bench.send_signal(signum)
    _, err = bench.communicate(timeout=60)
    assert bench.returncode == 128 + signum
    assert err.startswith("grantlab: error: ")
    assert err.endswith("; everything is closed\n")
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, check=True)
    assert run_base.encode() not in listed.stdout
