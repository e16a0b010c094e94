"""Bad flags or config, forbidden or full shared memory: one line, non-zero, nothing left."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import grantlab

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]


def one_line(done: "subprocess.CompletedProcess[str]") -> str:
    # The first machine after a change says that it compiles.
    said = [line for line in done.stderr.splitlines() if ": compiling, once" not in line]
    lines = [line for line in said if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("grantlab: error: ")
    assert done.returncode != 0
    return lines[0]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--guests", "65"), "guests"),
        (("--guests", "x"), "guests"),
        (("--flush-policy", "foo"), "mask-2012"),
        (("--rw", "sideways"), "randrw"),
        (("--bs", "1000"), "bs"),
        (("--gests", "4"), "--guests"),
        (("--iodepth", "0"), "iodepth"),
        (("--config", "/nonexistent.toml"), "/nonexistent.toml"),
        (("--json", "/nonexistent/x.json"), "/nonexistent"),
        (("--disk-mib", "1", "--bs", "2m"), "bs"),
        (("--disk", "ram:1q"), "ram:SIZE"),
        (("--disk", "ram:1m,vdev=sda"), "xvda..xvdp"),
        (("--disk", "ram:1m,access=ro"), "access=ro"),  # the default load writes
        (("--disk", "ram:4k", "--bs", "64k"), "bs"),
        (("--disk", "ram:1m", "--disk-mib", "1"), "disk-mib"),
        (("--disk", "ram:1m,name=a"), "name=a"),  # of four guests
        (("--vdev", "xvdb"), "vdev"),
        (("--csv", "/nonexistent/x.csv"), "/nonexistent"),
    ],
)
def test_a_bad_flag_is_named_with_what_is_allowed(
    args: tuple[str, ...], said: str, run_base: str
) -> None:
    assert said in one_line(grantlab(*args, run_base=run_base))


def test_a_bad_config_file_is_named_by_key(tmp_path: Path, run_base: str) -> None:
    config = tmp_path / "machine.toml"
    config.write_text("[topology]\nguest = 4\n")
    assert "guest" in one_line(grantlab("--config", str(config), run_base=run_base))


def in_own_mounts(setup: str, command: str, run_base: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as root with mounts of its own."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs root, unshare and setpriv to give the run a /dev/shm of its own")
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("mount namespaces are not allowed here")
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{setup} && exec {command}"],
        cwd=ROOT,
        env={**os.environ, "XDG_RUNTIME_DIR": run_base, "TMPDIR": run_base},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_dev_shm_that_is_too_small_is_said_to_be(run_base: str) -> None:
    done = in_own_mounts(
        "mount -t tmpfs -o size=12m none /dev/shm",
        "./run.sh --guests 4 --persistent --ios 10",
        run_base,
    )
    assert "of /dev/shm, which has 12 MiB free" in one_line(done)


def test_a_forbidden_dev_shm_is_said_to_be_forbidden(run_base: str) -> None:
    done = in_own_mounts(
        "mount -t tmpfs -o mode=000 none /dev/shm",
        "setpriv --bounding-set=-dac_override,-dac_read_search"
        " ./run.sh --guests 1 --persistent --ios 10",
        run_base,
    )
    assert "ermission" in one_line(done)
