"""A dom0 vCPU as the hypervisor sees it. (A ring's whole thread: tests/frontend/test_vbd.py.)"""

import numpy as np
import pytest

from backend.ring_thread import Vcpu


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
