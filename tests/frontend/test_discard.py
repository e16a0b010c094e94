"""A discard: one request for any number of sectors, and never again where it is not known."""

import errno

import pytest

from tests.frontend.answering import DISCARD, Answering, Asked
from tests.frontend.test_block_device import SIZE, device
from tests.frontend.whole import check_whole
from tests.pair import EOPNOTSUPP, ERROR, MODES


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("offset", "nbytes"), [(0, 512), (512, SIZE - 512), (4096, 8192)])
def test_it_is_one_request_however_large(mode: str, offset: int, nbytes: int) -> None:
    pair = Answering(mode)
    disk, forgotten = device(pair)
    with pair.counting() as cost:
        disk.discard(offset, nbytes)
    place = offset // 512, nbytes // 512
    assert pair.asked == [Asked(DISCARD, 0, *place)] and forgotten == [place]
    assert (cost["requests"], cost["discard_requests"], cost["segments"]) == (1, 1, 0)
    check_whole(pair.front)


def test_its_sectors_are_64_bits() -> None:
    nr_sectors = 1 << 50
    pair = Answering()
    disk, _ = device(pair, nr_sectors=nr_sectors)
    disk.discard(512, (nr_sectors - 1) * 512)
    assert pair.asked == [Asked(DISCARD, 0, 1, nr_sectors - 1)]


def test_a_secure_one_has_its_flag() -> None:
    pair = Answering()
    disk, _ = device(pair, discard_secure=True)
    disk.discard(0, 4096, secure=True)
    disk.discard(0, 4096)
    assert [asked.flag for asked in pair.asked] == [1, 0]


def test_a_secure_one_is_not_asked_of_who_cannot() -> None:
    pair = Answering()
    disk, forgotten = device(pair)
    with pytest.raises(OSError, match="does not discard securely") as no:
        disk.discard(0, 4096, secure=True)
    assert no.value.errno == errno.EOPNOTSUPP and (pair.asked, forgotten) == ([], [])


def test_nothing_discarded_is_nothing() -> None:
    pair = Answering()
    device(pair)[0].discard(512, 0)
    assert pair.asked == []


@pytest.mark.parametrize("mode", ["persistent", "non-persistent"])
def test_one_that_is_not_known_is_said_and_never_sent_again(mode: str) -> None:
    pair = Answering(mode)
    disk, _ = device(pair)
    pair.statuses[DISCARD] = EOPNOTSUPP
    for _ in range(3):
        with pytest.raises(OSError, match="does not know what is asked for at sector 8") as no:
            disk.discard(4096, 4096)
        assert no.value.errno == errno.EOPNOTSUPP
    assert len(pair.asked) == 1
    check_whole(pair.front)


def test_one_that_was_never_announced_is_never_sent() -> None:
    pair = Answering(discards=0)
    with pytest.raises(OSError, match="does not know") as no:
        device(pair)[0].discard(0, 512)
    assert no.value.errno == errno.EOPNOTSUPP and pair.asked == []


def test_one_that_fails_names_its_sector_and_the_next_is_sent() -> None:
    pair = Answering()
    pair.statuses[DISCARD] = ERROR
    for _ in range(2):
        with pytest.raises(OSError, match="I/O error at sector 8") as no:
            device(pair)[0].discard(4096, 4096)
        assert no.value.errno == errno.EIO
    assert len(pair.asked) == 2


def test_a_disk_that_is_read_only_is_not_discarded() -> None:
    pair = Answering()
    disk, forgotten = device(pair, read_only=True)
    with pytest.raises(OSError, match="read-only"):
        disk.discard(0, 512)
    assert (pair.asked, forgotten) == ([], [])


@pytest.mark.parametrize(("offset", "nbytes"), [(1, 512), (0, 100), (SIZE, 512), (-512, 512)])
def test_what_does_not_lie_on_the_disk_is_refused(offset: int, nbytes: int) -> None:
    pair = Answering()
    with pytest.raises(ValueError, match=r"offset|length"):
        device(pair)[0].discard(offset, nbytes)
    assert pair.asked == []
