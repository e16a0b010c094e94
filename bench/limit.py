"""What the memory itself allows: a load's copies and nothing else.

Owns: the physical limit that grantlab's figures are held against. Each of `threads` threads, in
compiled code without the GIL, moves blocks as a persistent request does: one copy between a random
block of the disk and a pool page, one between the pool page and a buffer. The same number of copies
over the same working set, shared among as many threads, with no ring, no check, no other process.
"""

import mmap
import threading
import time
from typing import Final

import numpy as np

from common.abi import XEN_PAGE_SIZE
from common.compiled import kernel
from common.copying import address_of, copy_page

POOL_PAGES: Final = 32  # as many as a ring of one page keeps in use
BATCH: Final = 2_000


@kernel
def copy_requests(disk: int, pool: int, buffers: int, blocks: np.ndarray, reads: np.ndarray) -> int:
    """Do the two copies of each request; returns how many requests that was."""
    for index in range(len(blocks)):
        block = disk + blocks[index] * XEN_PAGE_SIZE
        page = pool + (index % POOL_PAGES) * XEN_PAGE_SIZE
        buffer = buffers + (index % POOL_PAGES) * XEN_PAGE_SIZE
        if reads[index]:
            copy_page(page, block)
            copy_page(buffer, page)
        else:
            copy_page(page, buffer)
            copy_page(block, page)
    return len(blocks)


def requests_a_second(
    seconds: float, threads: int = 2, disk_mib: int = 64, read_percent: int = 70, seed: int = 1
) -> float:
    """4-KiB requests a second that the copies alone would allow, on `threads` threads."""
    disk = _disk(disk_mib)
    totals = [0] * threads
    stop = threading.Event()

    def work(index: int) -> None:
        rng = np.random.default_rng([seed, index])
        pool, buffers = np.ones((2, POOL_PAGES * XEN_PAGE_SIZE), np.uint8)
        blocks = rng.integers(0, disk_mib << 8, BATCH)
        reads = (rng.random(BATCH) * 100 < read_percent).astype(np.uint8)
        addresses = (address_of(disk), address_of(pool), address_of(buffers))
        while not stop.is_set():
            totals[index] += int(copy_requests(*addresses, np.roll(blocks, totals[index]), reads))
            blocks = (blocks * 5 + 1) % (disk_mib << 8)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    copy_requests(0, 0, 0, np.zeros(0, np.int64), np.zeros(0, np.uint8))  # compiles
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(totals) / (time.perf_counter() - started)


def _disk(disk_mib: int) -> np.ndarray:
    """Memory as a RamStore has it, every page there."""
    memory = mmap.mmap(-1, disk_mib << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    disk = np.frombuffer(memory, np.uint8)
    disk[:] = 1
    return disk
