"""The pool of pages to bounce through: last in, first out, and nothing lost."""

import random
from collections import deque

import pytest

from common.arena import Arena
from frontend.page_pool import (
    NO_PAGE,
    new_pool,
    return_to_head,
    return_to_tail,
    take_page,
)
from tests.frontend.whole import free_pages as order


def test_a_new_pool_has_consecutive_frames_and_no_grants() -> None:
    pool = new_pool(Arena(), 7, 5)
    assert order(pool) == [0, 1, 2, 3, 4]
    assert pool.pages["frame"].tolist() == [7, 8, 9, 10, 11]
    assert not pool.pages["gref"].any()


def test_an_empty_pool_gives_no_page() -> None:
    pool = new_pool(Arena(), 1, 2)
    assert [take_page(pool) for _ in range(4)] == [0, 1, NO_PAGE, NO_PAGE]
    assert order(pool) == []


def test_a_page_still_mapped_is_taken_next() -> None:
    pool = new_pool(Arena(), 1, 3)
    take_page(pool), take_page(pool)
    return_to_head(pool, 1)
    return_to_head(pool, 0)
    assert order(pool) == [0, 1, 2]


def test_a_page_nobody_has_mapped_is_taken_last() -> None:
    pool = new_pool(Arena(), 1, 3)
    return_to_tail(pool, int(take_page(pool)))
    assert order(pool) == [1, 2, 0]


@pytest.mark.parametrize("give_back", [return_to_head, return_to_tail])
def test_the_only_page_is_head_and_tail(give_back: object) -> None:
    pool = new_pool(Arena(), 1, 1)
    assert take_page(pool) == 0
    give_back(pool, 0)  # type: ignore[operator]
    assert order(pool) == [0]


def test_any_sequence_is_that_of_a_deque() -> None:
    rng, pool = random.Random(1), new_pool(Arena(), 1, 6)
    model, taken = deque(range(6)), list[int]()
    for _ in range(2000):
        if rng.random() < 0.5:
            assert take_page(pool) == (model[0] if model else NO_PAGE)
            if model:
                taken.append(model.popleft())
        elif taken:
            page = taken.pop(rng.randrange(len(taken)))
            if rng.random() < 0.5:
                return_to_head(pool, page)
                model.appendleft(page)
            else:
                return_to_tail(pool, page)
                model.append(page)
        assert order(pool) == list(model)
