"""A guest's disk as Python users have it, through real processes."""

import numpy as np
import pytest

from toolstack.machine import MachineError
from toolstack.topology import Topology

pytestmark = pytest.mark.system

MODES = ("persistent", "non-persistent", "backend-without-persistent", "grant-copy")


@pytest.mark.parametrize("mode", MODES)
def test_bytes_come_back_as_they_were_written(mode: str) -> None:
    rng = np.random.default_rng(7)
    with Topology(guests=2, disk_mib=8).with_mode(mode).start() as machine:
        one, two = machine.guest(1).disk, machine.guest(2).disk
        assert one.size == 8 << 20
        large = rng.integers(0, 256, 1 << 20, np.uint8).tobytes()
        assert one.write(512, large) == len(large)
        offsets = rng.permutation(64)[:40] * 3 * 4096
        rows = rng.integers(0, 256, (40, 3 * 4096), np.uint8)
        two.write_many(offsets, rows)
        assert one.read(512, len(large)) == large
        assert (two.read_many(offsets, 3 * 4096) == rows).all()
        assert one.read(0, 512) == bytes(512)
        one.flush()


def test_bad_offsets_are_refused_and_the_disk_goes_on() -> None:
    with Topology(guests=1, disk_mib=1).start() as machine:
        disk = machine.guest(1).disk
        for offset, length, named in (
            (1, 512, "offset"),
            (0, 100, "length"),
            (1 << 20, 512, "end"),
        ):
            with pytest.raises(MachineError, match=named):
                disk.read(offset, length)
        disk.write((1 << 20) - 512, b"x" * 512)
        assert disk.read((1 << 20) - 512, 512) == b"x" * 512
