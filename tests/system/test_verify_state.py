"""State files of real guests: right whoever is killed, at whatever moment."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from common.arena import Arena
from common.copying import address_of
from common.memory import map_shared
from frontend.judge import judge, new_judgement
from frontend.pattern import disk_name
from frontend.state_file import state_arrays
from tests.system.test_holdings import held
from toolstack.loadspec import LoadSpec
from toolstack.machine import GuestFailed, Machine
from toolstack.topology import Topology

pytestmark = pytest.mark.system

NR_SECTORS = 8 << 11


def machine_of(directory: Path, guests: int = 1) -> Topology:
    disks = ("ram:8m,name=one",) if guests == 1 else ("ram:8m",)
    return Topology(guests=guests, dom0_vcpus=2, disks=disks, verify_state=str(directory))


def load(machine: Machine, **settings: object) -> None:
    for _ in machine.load(LoadSpec(**settings)):
        pass


def test_what_a_disk_holds_is_judged_by_its_state(tmp_path: Path) -> None:
    with machine_of(tmp_path, 2).start() as machine:
        assert isinstance(machine, Machine)
        load(machine, rw="randrw", ios=4000, fsync=8)
        for verdict in machine.judge():
            assert verdict.outside == 0 < verdict.checked and not verdict.named
        # One that is never told: the store changes behind the guest's back.
        (path,) = tmp_path.glob("guest-2-xvda.state")
        state = np.memmap(path, np.uint8, "r+")
        flushed, issued = state_arrays(state, NR_SECTORS)
        at = int(np.flatnonzero(issued)[0])
        issued[at] += 1
        flushed[at] = issued[at]
        first, second = machine.judge()
        assert (first.outside, second.outside) == (0, 1)
        assert second.lines()[1] == (
            f"{second.disk}: sector {at} holds version {issued[at] - 1},"
            f" not {flushed[at]}..{issued[at]}"
        )
        found = held(machine.pids["guest-1"])
        assert not [kind for kind in found if "state" in kind]


@pytest.mark.parametrize("after_s", [0.05, 0.3])
def test_a_guest_that_is_killed_leaves_a_state_that_holds(tmp_path: Path, after_s: float) -> None:
    with machine_of(tmp_path).start() as machine:
        assert isinstance(machine, Machine)
        running = machine.load(LoadSpec(rw="randwrite", runtime_s=20, fsync=8), every_s=0.02)
        next(running)
        time.sleep(after_s)
        os.kill(machine.pids["guest-1"], signal.SIGKILL)
        with pytest.raises(GuestFailed):
            for _ in running:
                pass
        (fd,) = machine._stores._kept.values()
        image, path = map_shared(fd), tmp_path / "guest-1-xvda.state"
        flushed, issued = state_arrays(np.fromfile(path, np.uint8), NR_SECTORS)
        found = new_judgement(Arena(1 << 16))
        judge(found, address_of(image), disk_name(1, 0), 0, NR_SECTORS, flushed, issued)
        assert found.found["checked"][0] > 0 == found.found["outside"][0]
