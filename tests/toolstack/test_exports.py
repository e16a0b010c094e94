"""What the keeper believes of a guest that is to serve a disk."""

from pathlib import Path
from typing import Any, cast

import pytest

from toolstack import Topology
from toolstack.exports import Export
from toolstack.failures import GuestFailed


class Asker:
    """Who has asked for it: what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def more(self, number: int, value: Any) -> None:
        self.told.append((number, value))


@pytest.fixture
def export(tmp_path: Path) -> Export:
    (disk,) = Topology(guests=1, disks=["ram:4m"]).every_disk()
    path = str(tmp_path / "socket")
    return Export(cast(Any, Asker()), 7, disk, path, str(tmp_path))


def test_it_is_told_once_the_guest_serves_it(export: Export, tmp_path: Path) -> None:
    export.answer(7, {"nr_bytes": 1, "flags": 2, "block": 512, "more": []})
    told = {"socket": export.path, "nr_bytes": 1, "flags": 2, "block": 512}
    assert cast(Any, export.client).told == [(7, told)] and export.begun
    export.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "offer", [None, [], "x", {}, {"nr_bytes": 1}, {"nr_bytes": "1", "flags": 2, "block": []}]
)
def test_nonsense_is_refused_in_one_line(export: Export, offer: Any) -> None:
    export.answer(7, offer)
    assert cast(Any, export.client).told == [] and not export.begun
    assert isinstance(export.refused, GuestFailed)
    assert str(export.refused) == "guest-1 answered nonsense for what it serves"
    export.close()


def test_what_has_taken_its_sockets_place_is_left_alone(export: Export) -> None:
    path = Path(export.path)
    path.unlink()
    path.mkdir()
    export.close()
    assert path.is_dir()
