"""The copy between a caller's buffer and the pool's pages: what persistent grants cost a guest."""

import numpy as np

from common.abi import SECTOR_SIZE, SECTORS_PER_PAGE, XEN_PAGE_SIZE
from common.compiled import kernel
from common.copying import copy_bytes, copy_page
from frontend.blkfront_info import Blkfront


@kernel
def copy_sectors(dev: Blkfront, to_frame: int, from_frame: int, nr_sectors: int) -> None:
    """Copy the first `nr_sectors` of one guest frame to another: the price of persistence."""
    ram = np.int64(dev.front[0].ram)
    dest, source = ram + to_frame * XEN_PAGE_SIZE, ram + from_frame * XEN_PAGE_SIZE
    if nr_sectors == SECTORS_PER_PAGE:
        copy_page(dest, source)
    else:
        copy_bytes(dest, source, np.int64(nr_sectors) * SECTOR_SIZE)
    dev.counters[0].bytes_copied_by_guest += np.uint64(nr_sectors) * np.uint64(SECTOR_SIZE)
