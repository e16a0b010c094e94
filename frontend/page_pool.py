"""blkfront's pool of pages to bounce through, as a linked free list.

Owns: which pages are free and in which order they are taken. Last in, first out, so that the pool
in use stays as small as the depth needs: a page whose grant the backend keeps mapped goes back to
the head, one whose grant has ended to the tail (Linux's `blkif_completion`).
"""

from typing import Final, NamedTuple

import numpy as np

from common.arena import Arena
from common.compiled import kernel
from common.rows import Layout
from frontend.grants import NO_GREF

NO_PAGE: Final = -1
TAKEN: Final = -2  # where a free page has its next one

POOL_LIST: Final = np.dtype([("head", "<i4"), ("tail", "<i4"), ("free", "<u4")])
POOL_PAGE: Final = np.dtype([("gref", "<u4"), ("frame", "<u4"), ("next", "<i4")])


class PagePool(NamedTuple):
    """`pages`: POOL_PAGE, one each; `list`: POOL_LIST, one. gref is 0 while not granted."""

    pages: np.ndarray
    list: np.ndarray


PAGE_POOL: Final = Layout(PagePool, pages=POOL_PAGE, list=POOL_LIST)


def new_pool(arena: Arena, first_frame: int, nr_pages: int) -> PagePool:
    """A pool of `nr_pages` pages at consecutive guest frames, none granted yet."""
    pages = arena.array(nr_pages, POOL_PAGE)
    pages["frame"] = np.arange(first_frame, first_frame + nr_pages)
    pool = PagePool(pages, arena.array(1, POOL_LIST))
    begin_pool(pool)
    return pool


def begin_pool(pool: PagePool) -> None:
    """Every page is free, and none granted."""
    nr_pages = len(pool.pages)
    pool.pages["gref"] = NO_GREF
    pool.pages["next"] = np.arange(1, nr_pages + 1)
    pool.pages["next"][-1] = NO_PAGE
    pool.list[0] = 0, nr_pages - 1, nr_pages


@kernel
def take_page(pool: PagePool) -> np.int64:
    """The page at the head, or NO_PAGE."""
    page = np.int64(pool.list[0].head)
    if page == NO_PAGE:
        return np.int64(NO_PAGE)
    pool.list[0].head = pool.pages[page].next
    if pool.pages[page].next == NO_PAGE:
        pool.list[0].tail = NO_PAGE
    pool.pages[page].next = np.int32(TAKEN)
    pool.list[0].free -= np.uint32(1)
    return page


@kernel
def ungranted_ahead(pool: PagePool, count: int) -> np.int64:
    """How many of the next `count` pages to be taken are not granted; all of them must be free."""
    ungranted = np.int64(0)
    page = np.int64(pool.list[0].head)
    for _ in range(count):
        ungranted += pool.pages[page].gref == 0
        page = np.int64(pool.pages[page].next)
    return ungranted


@kernel
def return_to_head(pool: PagePool, page: int) -> None:
    """Give a page back that the backend still has mapped: it is taken next."""
    assert pool.pages[page].next == TAKEN, "a page is given back twice"
    pool.pages[page].next = pool.list[0].head
    if pool.list[0].head == NO_PAGE:
        pool.list[0].tail = np.int32(page)
    pool.list[0].head = np.int32(page)
    pool.list[0].free += np.uint32(1)


@kernel
def return_to_tail(pool: PagePool, page: int) -> None:
    """Give a page back that nobody has mapped: it is taken last."""
    assert pool.pages[page].next == TAKEN, "a page is given back twice"
    pool.pages[page].next = np.int32(NO_PAGE)
    if pool.list[0].head == NO_PAGE:
        pool.list[0].head = np.int32(page)
    else:
        pool.pages[pool.list[0].tail].next = np.int32(page)
    pool.list[0].tail = np.int32(page)
    pool.list[0].free += np.uint32(1)
