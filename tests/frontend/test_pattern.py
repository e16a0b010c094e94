"""What the load writes: any sector that is not the last one written there is seen."""

import numpy as np
import pytest

from common.copying import address_of
from frontend.pattern import UNKNOWN, fill, mismatches, sector_seed

DISK, FIRST, COUNT = 3, 10, 4


def written(versions: np.ndarray, disk: int = DISK, sector: int = FIRST) -> np.ndarray:
    """Four sectors with the next version of the pattern: u8, shape (4, 512)."""
    data = np.zeros((COUNT, 512), np.uint8)
    fill(address_of(data), disk, sector, COUNT, versions)
    return data


def wrong(data: np.ndarray, versions: np.ndarray, disk: int = DISK, sector: int = FIRST) -> int:
    return int(mismatches(address_of(data), disk, sector, len(data), versions))


@pytest.fixture
def versions() -> np.ndarray:
    return np.zeros(64, np.uint32)


def test_what_was_written_is_right(versions: np.ndarray) -> None:
    assert wrong(written(versions), versions) == 0
    assert versions.tolist() == [0] * 10 + [1] * 4 + [0] * 50


def test_a_sector_never_written_is_zero(versions: np.ndarray) -> None:
    data = np.zeros((COUNT, 512), np.uint8)
    assert wrong(data, versions) == 0
    data[2, 511] = 1
    assert wrong(data, versions) == 1


@pytest.mark.parametrize("byte", [0, 1, 255, 256, 511])
@pytest.mark.parametrize("bit", [0, 7])
def test_one_wrong_bit_is_seen(versions: np.ndarray, byte: int, bit: int) -> None:
    data = written(versions)
    data[1, byte] ^= 1 << bit
    assert wrong(data, versions) == 1


def test_each_wrong_sector_counts_once(versions: np.ndarray) -> None:
    data = written(versions)
    data[:3] = 0
    assert wrong(data, versions) == 3


def test_a_stale_sector_is_seen(versions: np.ndarray) -> None:
    old = written(versions)
    new = written(versions)
    assert wrong(new, versions) == 0
    new[2] = old[2]
    assert wrong(new, versions) == 1
    assert wrong(old, versions) == COUNT


def test_a_misplaced_sector_is_seen(versions: np.ndarray) -> None:
    data = written(versions)
    data[[0, 1]] = data[[1, 0]]
    assert wrong(data, versions) == 2


def test_a_shifted_sector_is_seen(versions: np.ndarray) -> None:
    data = written(versions)
    assert wrong(np.roll(data.reshape(-1), 8).reshape(COUNT, 512), versions) == COUNT


@pytest.mark.parametrize("at", [8, 256, 504])
def test_a_torn_sector_is_seen(versions: np.ndarray, at: int) -> None:
    old, new = written(versions), written(versions)
    new[0, at:] = old[0, at:]
    assert wrong(new, versions) == 1


def test_a_sector_of_another_disk_is_seen(versions: np.ndarray) -> None:
    assert wrong(written(versions), versions, disk=DISK + 1) == COUNT


def test_what_nobody_knows_is_not_checked(versions: np.ndarray) -> None:
    data = written(versions)
    data[:] = 0xFF
    versions[FIRST + 1 : FIRST + 3] = UNKNOWN
    assert wrong(data, versions) == 2


@pytest.mark.parametrize("version", [UNKNOWN, UNKNOWN - 1])
def test_a_version_is_never_that_of_zeros_or_of_the_unknown(
    versions: np.ndarray, version: int
) -> None:
    versions[:] = version
    assert wrong(written(versions), versions) == 0
    assert versions[FIRST] == 1


def test_a_sector_is_its_seed_and_equal_steps() -> None:
    versions = np.full(64, 6, np.uint32)
    words = written(versions).view(np.uint64)
    assert words[2, 0] == sector_seed(DISK, FIRST + 2, 7)
    assert (np.diff(words[2]) == np.uint64(0x9E3779B97F4A7C15)).all()


def test_seeds_differ_by_disk_sector_and_version() -> None:
    seeds = {
        int(sector_seed(disk, sector, version))
        for disk in (1, 2, 64)
        for sector in (0, 1, 1 << 20, (1 << 28) - 1)
        for version in (1, 2, 1 << 20)
    }
    assert len(seeds) == 36
