"""CPU time of processes, those that have ended included."""

import os
import subprocess
import sys

from toolstack.cpu_time import CpuTime

BURN = "import os, sys\nwhile sum(os.times()[:2]) < 0.3: pass\nprint(flush=True)\nsys.stdin.read()"


def burner() -> "subprocess.Popen[str]":
    """A process that has used 0.3 s of CPU, and waits."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", BURN], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_the_sum_is_of_those_that_are_named() -> None:
    with burner() as one, burner() as two:
        both = CpuTime().seconds([one.pid, two.pid])
        assert both >= 0.6
        assert 0.3 <= CpuTime().seconds([one.pid]) < both
        for each in (one, two):
            each.kill()


def test_who_has_ended_keeps_what_it_used() -> None:
    times = CpuTime()
    with burner() as process:
        used = times.seconds([process.pid])
        process.kill()
    assert times.seconds([process.pid]) == used
    assert times.seconds([]) == used


def test_nobody_used_nothing() -> None:
    assert CpuTime().seconds([]) == 0
    assert CpuTime().seconds([2**22 + 1]) == 0


def test_it_grows_with_use() -> None:
    times, me = CpuTime(), os.getpid()
    before = times.seconds([me])
    while sum(os.times()[:2]) < before + 0.1:
        pass
    assert times.seconds([me]) >= before + 0.05
