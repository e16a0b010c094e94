"""What `ls` gathers of machines that change while it looks, or do not answer."""

import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest

from tests.toolstack.seen_by_hand import disk
from toolstack import names
from toolstack.listing import HANGS, gathered
from toolstack.names import listen, take_name
from toolstack.wire import NoAnswer, Reader


class Keeper:
    """What is at the other end of a machine's socket: it says what it is given, and no more.

    statuses: one after the other; when there is none left it does not answer.
    """

    def __init__(self, name: str, statuses: list[dict[str, Any]], describes: bool = True) -> None:
        self._lock = take_name(name)
        self._listener = listen(names.directory_of(name))
        self._listener.setblocking(True)
        self._described = {
            "name": name, "pid": os.getpid(), "state": "running", "since": 0.0,
            "mode": "persistent", "topology": {"guests": 1}, "run_dir": "/run/m",
            "xenstore_path": "/run/m/xenstored",
        }  # fmt: skip
        self._statuses, self._describes = statuses, describes
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        reader = Reader()
        with connection:
            while received := connection.recv(1 << 16):
                for number, word in reader.feed(received):
                    if word == "describe" and self._describes:
                        connection.sendall(msgpack.packb([number, "ok", self._described]))
                    elif word == "status" and self._statuses:
                        status = self._statuses.pop(0)
                        connection.sendall(msgpack.packb([number, "ok", status]))

    def close(self) -> None:
        # Who waits in accept is woken by one that comes.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(self._listener.getsockname())
        self._listener.close()
        os.close(self._lock)


@pytest.fixture
def keepers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Keeper]]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(names, "CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr("toolstack.listing.ANSWER_S", 0.2)
    found: list[Keeper] = []
    yield found
    for keeper in found:
        keeper.close()


def status(at_s: float, *disks: tuple[str, int]) -> dict[str, Any]:
    listed = [disk(1, at, vdev, at_s=at_s, ios=ios) for at, (vdev, ios) in enumerate(disks)]
    return {"domains": [], "disks": listed, "loads": 0}


def test_disks_come_and_go_while_it_looks(keepers: list[Keeper]) -> None:
    first = status(10.0, ("xvda", 100), ("xvdb", 500))
    second = status(12.0, ("xvdc", 7), ("xvda", 160))
    keepers.append(Keeper("m", [first, second]))
    (machine,) = gathered(["m"])
    found = {each["vdev"]: each["iops"] for each in machine["disks"]}
    assert found == {"xvdc": 0.0, "xvda": 30.0}
    assert "at_s" not in machine["disks"][0]


def test_a_disk_that_is_another_than_it_was_has_done_nothing_yet(keepers: list[Keeper]) -> None:
    keepers.append(Keeper("m", [status(10.0, ("xvda", 100)), status(10.5, ("xvda", 3))]))
    (machine,) = gathered(["m"])
    assert machine["disks"][0]["iops"] == 0.0


@pytest.mark.parametrize("answers", [0, 1, 2])
def test_a_keeper_that_hangs_is_said_and_the_others_are_listed(
    answers: int, keepers: list[Keeper]
) -> None:
    """It answers nothing, or what it is, or once how it is, and then no more."""
    well = [status(1.0, ("xvda", 1)), status(2.0, ("xvda", 5))]
    keepers.append(Keeper("hangs", well[: answers - 1 if answers else 0], describes=answers > 0))
    keepers.append(Keeper("well", well))
    hangs, other = gathered(["hangs", "well"])
    assert (hangs["name"], hangs["state"], hangs["disks"]) == ("hangs", HANGS, [])
    assert (other["name"], other["state"]) == ("well", "running")
    assert other["disks"][0]["iops"] == 4.0
    assert set(hangs) == set(other)


def test_who_comes_to_a_keeper_that_hangs_is_told_which(keepers: list[Keeper]) -> None:
    from toolstack import attach

    keepers.append(Keeper("m", [], describes=False))
    with pytest.raises(NoAnswer, match=r"^machine 'm': its keeper does not answer$"):
        attach("m")
