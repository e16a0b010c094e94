"""The seal, for real: what a sealed process may do still, and what it may not."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.event_channel import channel_address
from common.wakeups import Events, carrier_of
from frontend.seal import DESCRIPTORS_MAX, find_libseccomp
from tests.common.carriers import CARRIERS, woken

pytestmark = pytest.mark.skipif(isinstance(find_libseccomp(), str), reason=f"{find_libseccomp()}")

ROOT = Path(__file__).parents[2]
Outcomes = dict[str, str]


def python(*args: str) -> "subprocess.Popen[str]":
    """A fresh interpreter that can import us."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, *args], cwd=ROOT, env=env, stdout=pipe, text=True)


def tried(events: Events, directory: str) -> Outcomes:
    """What a sealed program found."""
    with python("-m", "tests.frontend.sealed", events, directory) as program:
        assert program.stdout is not None
        if events == "zeromq":
            assert program.stdout.readline() == "bound\n"
            far = carrier_of(events, (), channel_address(directory, 1), allocated_here=False)
            assert woken(far)
            far.close()
        found: Outcomes = json.loads(program.stdout.readline())
    assert program.returncode == 0
    return found


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[Events, Outcomes]]:
    """By carrier: each is tried once."""
    found: dict[Events, Outcomes] = {}
    for events in CARRIERS:
        with tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as directory:
            found[events] = tried(events, directory)
            assert os.listdir(directory) == []  # a sealed guest may remove its socket's file
    yield found


@pytest.mark.parametrize("events", CARRIERS)
def test_what_a_guest_may_not_do_is_refused_and_does_not_kill_it(
    outcomes: dict[Events, Outcomes], events: Events
) -> None:
    found = dict(outcomes[events])
    absent = found.pop("not there").split()
    refused = {n: how for n, how in found.items() if not n.startswith(("needed", "zeromq"))}
    assert len(refused) > 120 and len(absent) < 30
    assert refused.pop("clone3") == "ENOSYS"  # glibc's sign to fall back on clone
    others = {name: how for name, how in refused.items() if how != "EPERM" and name not in absent}
    assert others == {}


@pytest.mark.parametrize("events", CARRIERS)
def test_what_a_guest_needs_is_done(outcomes: dict[Events, Outcomes], events: Events) -> None:
    needed = {n: how for n, how in outcomes[events].items() if n.startswith("needed")}
    assert len(needed) >= 7
    assert set(needed.values()) == {"done"}, needed


@pytest.mark.parametrize(("events", "how"), [("pipe", "EPERM"), ("zeromq", "done")])
def test_sockets_of_its_own_are_for_zeromq_only(
    outcomes: dict[Events, Outcomes], events: Events, how: str
) -> None:
    found = {n: o for n, o in outcomes[events].items() if n.startswith("zeromq")}
    assert len(found) == 4
    assert set(found.values()) == {how}, found


def said_by(program: str) -> list[str]:
    with python("-c", program) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return out.splitlines()


def test_the_kernel_says_that_it_filters_every_thread() -> None:
    found = said_by(
        "import threading, os\n"
        "from frontend.seal import seal\n"
        "stop = threading.Event()\n"
        "thread = threading.Thread(target=stop.wait)\n"
        "thread.start()\n"
        "tasks = os.listdir('/proc/self/task')\n"
        "files = [open(f'/proc/self/task/{task}/status') for task in tasks]\n"
        "assert seal('pipe') == ''\n"
        "for file in files:\n"
        "    print([line for line in file if line.startswith('Seccomp:')][0].split()[1])\n"
        "stop.set()\n"
        "thread.join()\n"
    )
    assert found == ["2", "2"]


@pytest.mark.parametrize(("before", "after"), [(0, DESCRIPTORS_MAX), (100, 100)])
def test_descriptors_are_limited_and_no_core_is_dumped(before: int, after: int) -> None:
    """A lower limit that is there stays."""
    found = said_by(
        "import resource\n"
        "from frontend.seal import seal\n"
        f"if {before}:\n"
        f"    resource.setrlimit(resource.RLIMIT_NOFILE, ({before}, {before}))\n"
        "file = open('/proc/self/limits')\n"
        "assert seal('pipe') == ''\n"
        "for line in file:\n"
        "    if line.startswith(('Max open files', 'Max core')):\n"
        "        print(line.split()[-3:-1])\n"
    )
    assert found == ["['0', '0']", f"['{after}', '{after}']"]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ImportError("No module named 'pyseccomp'"), "no libseccomp here: No module named"),
        (RuntimeError("Unable to find libseccomp"), "no libseccomp here: Unable to find"),
        (OSError("libseccomp.so.2: cannot open"), "no libseccomp here: libseccomp.so.2: cannot"),
    ],
)
def test_without_libseccomp_it_says_so(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    import builtins

    original = builtins.__import__

    def refuse(name: str, *args: object, **kwargs: object) -> object:
        if name == "pyseccomp":
            raise raised
        return original(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert str(find_libseccomp()).startswith(said)


def test_a_process_that_cannot_be_sealed_is_told_why_and_left_as_it_is() -> None:
    found = said_by(
        "from frontend import seal\n"
        "seal.find_libseccomp = lambda: 'no libseccomp here: none'\n"
        "print(seal.seal('pipe'))\n"
        "open('/dev/null').close()\n"
        "seal.find_libseccomp = find = lambda: __import__('pyseccomp')\n"
        "def refuse(*_):\n"
        "    raise OSError(22, 'Invalid argument')\n"
        "seal._load = refuse\n"
        "print(seal.seal('pipe'))\n"
        "open('/dev/null').close()\n"
    )
    assert found == [
        "no libseccomp here: none",
        "this host's kernel takes no seccomp filter: [Errno 22] Invalid argument",
    ]
