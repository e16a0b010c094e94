"""What a child does first, tried on real processes."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

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
        "begin_process('gl-test', os.getppid())\n"
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
        "parent, child = os.getpid(), os.fork()\n"
        "if child == 0:\n"
        "    begin_process('gl-test-child', parent)\n"
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
        "begin_process('gl-test', os.getppid() + 1)\n"
        "print('lives', flush=True)\n"
    )
    assert (code, out) == (1, "")


@pytest.mark.parametrize("which", ["SIGTERM", "SIGCHLD", "SIGHUP"])
def test_a_process_has_none_of_its_parents_handlers(which: str) -> None:
    code, out = output_of(
        "import os, signal\n"
        "from common.process import begin_process\n"
        f"signal.signal(signal.{which}, lambda *_: print('handled', flush=True))\n"
        "begin_process('gl-test', os.getppid())\n"
        f"os.kill(os.getpid(), signal.{which})\n"
        "print('lives', flush=True)\n"
    )
    if which == "SIGCHLD":
        assert (code, out) == (0, "lives\n")
    else:
        assert (code, out) == (-signal.Signals[which], "")


def test_the_descriptors_that_are_open_are_told() -> None:
    code, out = output_of(
        "import os\n"
        "from common.process import open_descriptors\n"
        "reads, writes = os.pipe()\n"
        "os.dup2(reads, 99)\n"
        "print(open_descriptors() == [0, 1, 2, reads, writes, 99])\n"
    )
    assert (code, out) == (0, "True\n")


def test_a_process_keeps_only_what_it_is_given_and_its_standard_streams() -> None:
    code, out = output_of(
        "import os, socket\n"
        "from common.process import keep_only, open_descriptors\n"
        "reads, writes = os.pipe()\n"
        "ends = socket.socketpair()\n"
        "os.dup2(reads, 1000)\n"
        "keep_only([writes, ends[0].fileno()])\n"
        "print(open_descriptors() == [0, 1, 2, writes, ends[0].fileno()])\n"
        "keep_only([])\n"
        "print(open_descriptors(), flush=True)\n"
        "os._exit(0)\n"
    )
    assert (code, out) == (0, "True\n[0, 1, 2]\n")


@pytest.mark.parametrize("errors_too", [False, True])
def test_a_terminal_is_left_for_dev_null(errors_too: bool) -> None:
    code, out = output_of(
        "import os\n"
        "from common.process import leave_terminal, open_descriptors\n"
        "kept = os.dup(1)\n"
        "said = os.readlink('/proc/self/fd/2')\n"
        f"leave_terminal(errors_too={errors_too})\n"
        "links = [os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1, 2)]\n"
        f"os.write(kept, str(links == ['/dev/null'] * 2 + ['/dev/null' if {errors_too} else said]"
        ").encode())\n"
        "os.write(kept, str(open_descriptors() == [0, 1, 2, kept]).encode())\n"
    )
    assert (code, out) == (0, "TrueTrue")


def test_as_many_descriptors_as_the_host_allows() -> None:
    program = (
        "import resource; from common.process import raise_descriptor_limit;"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE);"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard));"
        "raise_descriptor_limit();"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))"
    )
    assert output_of(program) == (0, "True\n")
