"""What the load writes, so that every later read can be checked against it.

Owns: the contents of a sector as a function of where it is and how often it was written: 64 words,
`seed(disk, sector, version) + k * STEP`. A sector in the wrong place, of the wrong disk, of an
older write, torn or shifted has other words. Version 0 is a sector never written: zeros. `versions`
(u32, one a sector) is the guest's memory of its own disk; UNKNOWN is not checked.
"""

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from common.abi import SECTOR_SIZE
from common.compiled import kernel

UNKNOWN: Final = 0xFFFFFFFF
WORDS: Final = SECTOR_SIZE // 8
STEP: Final = 0x9E3779B97F4A7C15
VERSION_SHIFT: Final = 28  # of a version in a seed; sectors reach above it
NO_VERSION: Final = -1
OF_DISKS: Final = 0xD1B54A32D192ED03  # odd: no two disks have the same


def disk_name(domid: int, disk: int) -> int:
    """The number that tells a guest's disk apart from all disks of all guests; of the first one it
    is the guest's own.
    """
    return domid | disk << 16


@intrinsic
def _read(typing: Any, address: Any) -> Any:
    """The u64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.uint64(types.uint64), codegen


@intrinsic
def _write(typing: Any, address: Any, value: Any) -> Any:
    """Put a u64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], ir.IntType(64).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@kernel
def sector_seed(disk: int, sector: int, version: int) -> np.uint64:
    """A well-mixed word for one version of one sector of one disk (splitmix64's finaliser)."""
    mixed = (np.uint64(disk) * np.uint64(OF_DISKS)) ^ (
        np.uint64(version) << np.uint64(VERSION_SHIFT)
    )
    mixed = (mixed ^ np.uint64(sector)) + np.uint64(STEP)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@kernel
def fill(address: int, disk: int, sector: int, nr_sectors: int, versions: np.ndarray) -> None:
    """Write the next version of `nr_sectors` sectors to `address` and remember it."""
    word = np.uint64(address)
    for at in range(nr_sectors):
        version = (np.int64(versions[sector + at]) + 1) & UNKNOWN
        if version in (0, UNKNOWN):
            version = np.int64(1)
        versions[sector + at] = np.uint32(version)
        seed = sector_seed(disk, sector + at, version)
        for k in range(WORDS):
            _write(word + np.uint64(k * 8), seed + np.uint64(k) * np.uint64(STEP))
        word += np.uint64(SECTOR_SIZE)


@kernel
def mismatches(address: int, disk: int, sector: int, nr_sectors: int, versions: np.ndarray) -> int:
    """How many of `nr_sectors` sectors at `address` are not what was last written there."""
    word = np.uint64(address)
    wrong = 0
    for at in range(nr_sectors):
        version = versions[sector + at]
        here, word = word, word + np.uint64(SECTOR_SIZE)
        if version == UNKNOWN:
            continue
        seed, step = np.uint64(0), np.uint64(0)
        if version > 0:
            seed, step = sector_seed(disk, sector + at, np.int64(version)), np.uint64(STEP)
        difference = np.uint64(0)
        for k in range(WORDS):
            difference |= _read(here + np.uint64(k * 8)) ^ (seed + np.uint64(k) * step)
        wrong += difference != 0
    return wrong


@kernel
def _unmixed(seed: int, disk: int, sector: int) -> np.uint64:
    """What `sector_seed` has made this of, but for disk and sector: it is one to one."""
    mixed = np.uint64(seed)
    mixed ^= (mixed >> np.uint64(31)) ^ (mixed >> np.uint64(62))
    mixed *= np.uint64(0x319642B2D24D8EC3)  # the inverse of its second factor, modulo 2^64
    mixed ^= (mixed >> np.uint64(27)) ^ (mixed >> np.uint64(54))
    mixed *= np.uint64(0x96DE1B173F119089)  # and of its first
    mixed ^= (mixed >> np.uint64(30)) ^ (mixed >> np.uint64(60))
    return ((mixed - np.uint64(STEP)) ^ np.uint64(sector)) ^ np.uint64(disk) * np.uint64(OF_DISKS)


@kernel
def version_of(address: int, disk: int, sector: int) -> np.int64:
    """Which version of that sector lies at `address`; 0 for zeros, NO_VERSION if it is none."""
    word = np.uint64(address)
    seed, step, version = _read(word), np.uint64(STEP), np.uint64(0)
    if seed == 0 and _read(word + np.uint64(8)) == 0:
        step = np.uint64(0)
    else:
        unmixed = _unmixed(seed, disk, sector)
        version = unmixed >> np.uint64(VERSION_SHIFT)
        if version << np.uint64(VERSION_SHIFT) != unmixed or not 0 < version < UNKNOWN:
            return np.int64(NO_VERSION)
    difference = np.uint64(0)
    for k in range(WORDS):
        difference |= _read(word + np.uint64(k * 8)) ^ (seed + np.uint64(k) * step)
    return np.int64(version) if difference == 0 else np.int64(NO_VERSION)
