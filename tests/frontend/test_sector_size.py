"""A disk of 4,096-byte sectors: all fields are still in 512, and what is not whole is refused."""

from typing import Any

import numpy as np
import pytest

from frontend.block_device import PIECE_BYTES, BlockDevice
from tests.frontend.answering import DISCARD, Answering
from tests.frontend.test_block_device import SIZE, device, noise
from tests.pair import READ, WRITE


def large() -> tuple[Answering, BlockDevice]:
    pair = Answering()
    return pair, device(pair, sector_size=4096)[0]


def test_whole_sectors_are_moved_and_counted_in_512() -> None:
    pair, disk = large()
    disk.write(8192, noise(PIECE_BYTES + 4096))
    assert disk.read(8192, PIECE_BYTES + 4096) == noise(PIECE_BYTES + 4096)
    disk.discard(4096, 4096)
    assert [(asked.operation, asked.sector) for asked in pair.asked] == [
        *((WRITE, 16), (WRITE, 16 + 88), (READ, 16), (READ, 16 + 88), (DISCARD, 8))
    ]
    assert disk.size == SIZE


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("read", (512, 4096)),
        ("read", (4096, 512)),
        ("write", (2048, bytes(4096))),
        ("write", (4096, bytes(512))),
        ("read_many", ([0, 512], 4096)),
        ("write_many", ([4096], np.zeros((1, 512), np.uint8))),
        ("discard", (512, 4096)),
        ("discard", (4096, 7 * 512)),
    ],
)
def test_what_is_no_whole_sector_is_refused_by_its_size(
    what: str, arguments: tuple[Any, ...]
) -> None:
    pair, disk = large()
    complaint = "is not a multiple of 4096 from 0 on, the disk's sector size"
    with pytest.raises(ValueError, match=complaint):
        getattr(disk, what)(*arguments)
    assert pair.asked == []
