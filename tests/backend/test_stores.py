"""A ramdisk, as its callbacks and as memory."""

import numpy as np
import pytest

from backend.stores import RamStore
from tests.pair import CallbackStore, Pair


def test_a_new_disk_is_zero() -> None:
    store = RamStore(3)
    got = np.ones(3 * 512, np.uint8)
    store.read(0, got)
    assert not got.any()


@pytest.mark.parametrize("nr_sectors", [0, -1])
def test_a_disk_without_sectors_is_refused(nr_sectors: int) -> None:
    with pytest.raises(ValueError, match=f"nr_sectors: {nr_sectors} is not at least 1"):
        RamStore(nr_sectors)


def test_what_is_written_is_read_and_the_rest_stays() -> None:
    store = RamStore(4)
    store.write(512, np.full(1024, 7, np.uint8))
    store.flush()
    got = np.ones(2048, np.uint8)
    store.read(0, got)
    assert got.reshape(4, 512)[:, 0].tolist() == [0, 7, 7, 0]
    assert (got.reshape(4, 512) == got.reshape(4, 512)[:, :1]).all()


def test_the_memory_is_the_disk() -> None:
    store = RamStore(2)
    assert store.memory is not None and len(store.memory) == 1024
    store.memory[600] = 5
    got = np.zeros(512, np.uint8)
    store.read(512, got)
    assert got[88] == 5


def test_two_disks_share_nothing() -> None:
    one, other = RamStore(1), RamStore(1)
    one.write(0, np.ones(512, np.uint8))
    assert other.memory is not None and not other.memory.any()


def test_a_closed_disk_lets_its_memory_go() -> None:
    store = RamStore(1)
    store.close()
    assert store.memory is None


@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
@pytest.mark.parametrize("gather_max", [1, 32])
def test_callbacks_serve_as_memory_does(mode: str, gather_max: int) -> None:
    kinds = (RamStore, CallbackStore)
    data = np.random.default_rng(5).integers(0, 256, 11 * 4096, np.uint8).tobytes()
    images = []
    for kind in kinds:
        pair = Pair(mode, gather_max=gather_max, store=kind(512))
        assert pair.write(3, data) == pair.write(200, data[:1536]) == 0
        assert pair.read(2, 80) == bytes(512) + data[: 79 * 512]
        pair.check()
        images.append(pair.read(0, 88) + pair.read(195, 13))
    assert images[0] == images[1]
