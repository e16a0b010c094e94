"""What a process holds, by the kernel's own word: of a child that takes what it is told to."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.footprint import Footprint, footprint, highest, limit_descriptors

MIB = 1 << 20
# It takes what each line says, and answers with what came of it.
CHILD = """\
import os, mmap, sys
kept = []
for line in sys.stdin:
    try:
        exec(line)
        print("ok", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""


class Child:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.pid = process, process.pid

    def does(self, what: str) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def a_child() -> Iterator[Child]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=pipe, stdout=pipe, text=True) as p:
        child = Child(p)
        assert child.does("pass") == "ok"
        yield child
        p.kill()


def test_memory_it_has_touched_counts_and_shared_memory_does_not() -> None:
    with a_child() as child:
        before = footprint(child.pid)
        child.does(f"kept.append(mmap.mmap(-1, {32 * MIB}, mmap.MAP_PRIVATE))")
        assert footprint(child.pid).memory < before.memory + MIB
        child.does(f"kept[0].write(b'x' * {32 * MIB})")
        after = footprint(child.pid).memory
        assert 31 * MIB < after - before.memory < 80 * MIB  # and the bytes written, perhaps
        child.does(f"kept.append(mmap.mmap(-1, {32 * MIB}, mmap.MAP_SHARED))")
        child.does("[kept[1].__setitem__(at, 1) for at in range(0, len(kept[1]), 4096)]")
        assert footprint(child.pid).memory < after + MIB


def test_descriptors_and_mappings_are_counted_one_by_one() -> None:
    with a_child() as child:
        before = footprint(child.pid)
        child.does("kept += [os.open('/dev/null', os.O_RDONLY) for _ in range(7)]")
        assert footprint(child.pid).descriptors == before.descriptors + 7
        child.does("kept += [mmap.mmap(-1, 4096 * n, mmap.MAP_SHARED) for n in range(1, 6)]")
        assert footprint(child.pid).mappings >= before.mappings + 5


def test_a_limit_of_descriptors_holds_for_a_running_process() -> None:
    with a_child() as child:
        limit_descriptors(child.pid, footprint(child.pid).descriptors + 1)
        assert child.does("kept.append(os.dup(0))") == "ok"
        assert child.does("kept.append(os.dup(0))") == "Too many open files"


def test_there_is_none_of_a_process_that_is_gone() -> None:
    with a_child() as child:
        pass
    with pytest.raises(OSError):
        footprint(child.pid)


def test_the_highest_is_so_of_each_figure() -> None:
    assert highest([Footprint(1, 5, 2), Footprint(3, 4, 2)]) == Footprint(3, 5, 2)
