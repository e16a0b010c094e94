"""Numbers of dom0's rings, and whose counters are where."""

import numpy as np
import pytest

from backend.ring_numbers import RingNumbers
from common.faults import LocalFault
from common.machine_memory import BACKEND_RING, HOST, backend_ring, backend_sum

DEVICE = 51712


def rows(count: int = 4) -> np.ndarray:
    return np.zeros(count, BACKEND_RING)


def whose(table: np.ndarray) -> list[tuple[int, int]]:
    return [(int(row["domid"]), int(row["device"])) for row in table]


def test_the_lowest_free_number_comes_first() -> None:
    numbers = RingNumbers(rows())
    assert [numbers.take(domid, DEVICE)[0] for domid in (3, 1, 2)] == [0, 1, 2]
    numbers.give_back(1)
    numbers.give_back(0)
    assert [numbers.take(domid, DEVICE)[0] for domid in (4, 5)] == [0, 1]


def test_a_disk_that_is_connected_again_goes_on_with_its_counters() -> None:
    table = rows()
    numbers = RingNumbers(table)
    first, counters = numbers.take(1, DEVICE)
    counters["requests"] += np.uint64(7)
    _, others = numbers.take(1, DEVICE + 16)
    assert others["requests"][0] == 0
    numbers.give_back(first)
    assert numbers.take(2, DEVICE)[1]["requests"][0] == 0
    assert numbers.take(1, DEVICE)[1]["requests"][0] == 7
    assert whose(table) == [(1, DEVICE), (1, DEVICE + 16), (2, DEVICE), (0, 0)]


def test_where_no_row_is_free_the_disk_goes_that_was_closed_first() -> None:
    table = rows(3)
    numbers = RingNumbers(table)
    taken = {domid: numbers.take(domid, DEVICE) for domid in (1, 2, 3)}
    for domid in (2, 1):
        taken[domid][1]["requests"] = domid
        numbers.give_back(taken[domid][0])
    assert numbers.take(4, DEVICE)[1]["requests"][0] == 0
    assert whose(table) == [(1, DEVICE), (4, DEVICE), (3, DEVICE)]
    assert numbers.take(1, DEVICE)[1]["requests"][0] == 1
    with pytest.raises(LocalFault, match="more than 3 rings"):
        numbers.take(5, DEVICE)


def test_rows_of_a_dom0_before_this_one_are_closed_ones() -> None:
    table = rows(2)
    for domid in (1, 2):
        RingNumbers(table).take(domid, DEVICE)[1]["requests"] = domid
    numbers = RingNumbers(table)
    assert numbers.take(2, DEVICE)[1]["requests"][0] == 2
    assert numbers.take(3, DEVICE)[1]["requests"][0] == 0
    assert whose(table) == [(3, DEVICE), (2, DEVICE)]


def test_what_dom0_counts_is_found_by_disk_and_summed_by_guest() -> None:
    host = np.zeros(1, HOST)[0]
    numbers = RingNumbers(host["backend"])
    for device, requests, largest in ((DEVICE, 5, 11), (DEVICE + 16, 6, 22)):
        counters = numbers.take(1, device)[1]
        counters["requests"], counters["persistent_max"] = requests, largest
    numbers.take(2, DEVICE)[1]["requests"] = 100
    found = backend_ring(host, 1, DEVICE + 16)
    assert found is not None and found["requests"].tolist() == [6]
    assert backend_ring(host, 2, DEVICE + 16) is None and backend_ring(host, 0, 0) is None
    found["requests"] += np.uint64(1)  # a view: what comes later is seen
    together = backend_sum(host, 1)
    assert (together["requests"][0], together["persistent_max"][0]) == (12, 22)
    assert backend_sum(host, 3)["requests"].tolist() == [0]
