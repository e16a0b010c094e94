"""What a child does first, tried on real processes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

from common.process import name_thread

ROOT = Path(__file__).parents[2]


def python(program: str) -> "subprocess.Popen[str]":
    """Run `program` in a fresh interpreter that can import us."""
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def output_of(program: str) -> tuple[int, str]:
    with python(program) as process:
        out, _ = process.communicate(timeout=60)
    return process.returncode, out


def thread_name(named: str) -> str:
    found: list[str] = []

    def run() -> None:
        name_thread(named)
        found.append(Path(f"/proc/self/task/{threading.get_native_id()}/comm").read_text())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0].rstrip("\n")


def test_a_thread_gets_the_name_that_tools_show_and_others_keep_theirs() -> None:
    own = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
    before = own.read_text()
    assert thread_name("gl-ring-1") == "gl-ring-1"
    assert own.read_text() == before


def test_a_long_name_is_cut_to_what_linux_keeps() -> None:
    assert thread_name("gl-guest-12345678901") == "gl-guest-123456"


def test_a_process_leaves_ctrl_c_to_the_supervisor_and_ends_at_a_sigterm() -> None:
    code, out = output_of(
        "import os, signal\n"
        "from common.process import begin_process\n"
        "begin_process('gl-test')\n"
        "print(open('/proc/self/comm').read().strip(), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "print('lives', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('still lives', flush=True)\n"
    )
    assert out.splitlines() == ["gl-test", "lives"]
    assert code == -signal.SIGTERM


def test_a_process_dies_with_its_parent_even_if_that_is_killed() -> None:
    parent = python(
        "import os, signal\n"
        "from common.process import begin_process\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    begin_process('gl-test-child')\n"
        "    print(os.getpid(), flush=True)\n"
        "signal.pause()\n"
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.name() == "gl-test-child"
        parent.kill()
    assert psutil.wait_procs([child], timeout=60) == ([child], [])


def test_a_process_whose_parent_is_gone_already_ends_at_once() -> None:
    code, out = output_of(
        "import os\n"
        "from common.process import begin_process\n"
        "os.getppid = lambda: 1\n"
        "begin_process('gl-test')\n"
        "print('lives', flush=True)\n"
    )
    assert (code, out) == (1, "")
