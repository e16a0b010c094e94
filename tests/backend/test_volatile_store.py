"""A cache that a crash loses: what may be left of a write below it, and what a flush is for."""

import errno

import numpy as np
import pytest

from backend.stores import Features, RamStore
from backend.volatile_store import VolatileStore

SECTORS = 64
SIZE = SECTORS * 512


class Below(RamStore):
    """What survives."""

    features = Features(flush=False, discard=True, discard_granularity=512)
    flushes = 0
    full = False

    def write(self, offset: int, data: np.ndarray) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "no space")
        super().write(offset, data)

    def flush(self) -> None:
        self.flushes += 1

    @property
    def bytes(self) -> np.ndarray:
        assert self.memory is not None
        return self.memory


def stores(seed: int = 1, sector_size: int = 512) -> tuple[VolatileStore, Below]:
    below = Below(SECTORS, sector_size=sector_size)
    return VolatileStore(below, seed), below


def read(store: VolatileStore, offset: int = 0, nr_bytes: int = SIZE) -> np.ndarray:
    into = np.full(nr_bytes, 0xEE, np.uint8)
    store.read(offset, into)
    return into


def full_of(value: int, nr_sectors: int = 8) -> np.ndarray:
    return np.full(nr_sectors * 512, value, np.uint8)


def test_it_has_what_is_below_and_can_flush() -> None:
    store, _ = stores()
    assert store.features == Features(True, True, True, 512, 0)
    assert (store.nr_sectors, store.memory) == (SECTORS, None)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_written_is_read_flushed_or_not(seed: int) -> None:
    store, below = stores(seed)
    model, rng = np.zeros(SIZE, np.uint8), np.random.default_rng(seed)
    for turn in range(200):
        first = int(rng.integers(0, SECTORS - 8)) * 512
        data = rng.integers(0, 256, int(rng.integers(1, 9)) * 512, np.uint8)
        if turn % 10 == 9:
            store.discard(first, len(data))
            model[first : first + len(data)] = 0
        else:
            store.write(first, data)
            model[first : first + len(data)] = data
        assert (read(store) == model).all()
        if turn % 17 == 16:
            store.flush()
            assert (below.bytes == model).all()


def test_before_a_flush_all_a_part_or_nothing_of_a_write_is_below_and_never_more() -> None:
    left = set()
    for seed in range(60):
        store, below = stores(seed)
        store.write(0, full_of(1))
        store.flush()
        store.write(0, full_of(2))
        sectors = below.bytes[: 8 * 512].reshape(8, 512)
        assert all(len(set(sector)) == 1 for sector in sectors.tolist())
        assert sorted(sectors[:, 0].tolist(), reverse=True) == sectors[:, 0].tolist()
        left.add(int((sectors[:, 0] == 2).sum()))
    assert {0, 8} < left  # and some are torn


def test_the_same_seed_leaves_the_same() -> None:
    def left(seed: int) -> bytes:
        store, below = stores(seed)
        for at in range(7):
            store.write(at * 8 * 512, full_of(at + 1))
        return below.bytes.tobytes()

    assert left(3) == left(3) != left(4)


def test_a_flush_is_one_below() -> None:
    store, below = stores()
    store.write(0, full_of(1))
    store.flush()
    store.flush()
    assert below.flushes == 2


def test_what_could_not_be_flushed_is_kept() -> None:
    store, below = stores(2)
    store.write(0, full_of(1))
    before = below.bytes.copy()
    assert not before.all(axis=None)
    below.full = True
    with pytest.raises(OSError, match="no space"):
        store.flush()
    assert below.flushes == 0 and (read(store, 0, 4096) == 1).all()
    below.full = False
    store.flush()
    assert (below.bytes[:4096] == 1).all()


def test_a_sector_of_4096_bytes_is_not_torn_inside() -> None:
    for seed in range(40):
        store, below = stores(seed, 4096)
        store.write(0, full_of(5, 16))
        assert {len(set(page)) for page in below.bytes.reshape(-1, 4096).tolist()} == {1}


def test_a_disk_that_is_unplugged_writes_it_back() -> None:
    store, below = stores(2)
    store.write(0, full_of(1))
    kept = below.bytes
    store.close()
    assert (kept[:4096] == 1).all()
