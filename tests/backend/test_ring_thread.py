"""A dom0 vCPU as the hypervisor sees it. (A ring's whole thread: tests/frontend/test_vbd.py.)"""

import os
import queue

import numpy as np
import pytest

from backend.blkback import new_blkback, slots_needed
from backend.ring_thread import RingThread, Vcpu
from backend.stores import RamStore
from common import ring
from common.abi import XEN_PAGE_SIZE
from common.arena import Arena
from common.copying import address_of
from common.counters import BACKEND_COUNTERS
from common.event_channel import EventChannel
from common.hypercall import Hypercalls
from common.hypercall_gate import no_gate
from common.spinning import new_spin
from common.wakeups import PipeCarrier


@pytest.fixture
def cpus() -> tuple[np.ndarray, np.ndarray]:
    """The machine's running and dirty words."""
    return np.zeros(4, np.uint32), np.zeros(4, np.uint32)


def test_a_vcpu_that_runs_marks_its_own_cpu_running_and_dirty(
    cpus: tuple[np.ndarray, np.ndarray],
) -> None:
    Vcpu(2, *cpus).run()
    assert [words.tolist() for words in cpus] == [[0, 0, 1, 0], [0, 0, 1, 0]]


def test_an_idle_vcpu_leaves_its_cpu_dirty(cpus: tuple[np.ndarray, np.ndarray]) -> None:
    vcpu = Vcpu(1, *cpus)
    vcpu.run()
    vcpu.idle()
    assert [words.tolist() for words in cpus] == [[0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_vcpu_runs_while_any_of_its_threads_does(cpus: tuple[np.ndarray, np.ndarray]) -> None:
    vcpu, (running, _) = Vcpu(0, *cpus), cpus
    vcpu.run()
    vcpu.run()
    vcpu.idle()
    assert running[0] == 1
    vcpu.idle()
    assert running[0] == 0


def test_a_cpu_that_left_the_mask_is_dirty_again_when_its_vcpu_runs(
    cpus: tuple[np.ndarray, np.ndarray],
) -> None:
    vcpu, (_, dirty) = Vcpu(3, *cpus), cpus
    vcpu.run()
    dirty[3] = 0
    vcpu.run()
    assert dirty[3] == 1


def page() -> np.ndarray:
    return np.zeros(XEN_PAGE_SIZE, np.uint8)


def test_who_is_told_that_a_ring_has_ended_finds_it_ended(
    cpus: tuple[np.ndarray, np.ndarray],
) -> None:
    """dom0 looks when it is told, and never again."""
    import socket

    shared, disk = page(), RamStore(64)
    words = shared.view(np.uint32)
    ring.shared_ring_init(words, 0)
    words[ring.REQ] = 33  # more than it holds
    assert disk.memory is not None
    (from_far, far_writes), (far_reads, to_far) = os.pipe(), os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    channel = EventChannel(PipeCarrier(from_far, to_far), 1, page(), page())
    arena = Arena()
    dev = new_blkback(
        arena,
        shared,
        np.zeros(slots_needed(32, 0), np.uint64),
        np.zeros(64 * 4, np.uint64),
        arena.array(1, BACKEND_COUNTERS),
        channel.words,
        new_spin(adaptive=False),
        no_gate(),
        remote_domid=1,
        nr_sectors=64,
        store=address_of(disk.memory),
    )
    told: queue.SimpleQueue[tuple[str, bool]] = queue.SimpleQueue()
    thread = RingThread(
        dev,
        disk,
        channel,
        Hypercalls(ours),
        Vcpu(0, *cpus),
        lambda reason: told.put((reason, thread.has_ended(0))),
    )
    assert thread.has_ended(None)  # it has not begun
    thread.start()
    reason, ended = told.get(timeout=60)
    assert ended
    assert reason == "the frontend produced more requests than the ring holds"
    thread.close()
    for fd in (from_far, to_far, far_writes, far_reads):
        os.close(fd)
    for sock in (ours, theirs):
        sock.close()
