"""A machine that stays, and all who come to it: one for all tests here."""

import os
import socket
import tempfile
from collections.abc import Iterator

import msgpack
import pytest

from toolstack import LoadSpec, Topology, attach
from toolstack.attached import AttachedMachine, up
from toolstack.failures import MachineError
from toolstack.loadspec import ConfigError
from toolstack.names import CONTROL

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def shared() -> Iterator[AttachedMachine]:
    with tempfile.TemporaryDirectory(prefix="gl-", dir="/tmp") as base:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", base)
            up(Topology(guests=2, disks=["ram:4m", "ram:4m"], dom0_vcpus=2), "m", lambda _: None)
            machine = attach("m")
            yield machine
            machine.down()
        assert os.listdir(base) == []


def test_several_come_to_it_at_once_and_go(shared: AttachedMachine) -> None:
    with attach("m") as other:
        shared.guest(1).disk.write(4096, b"one" * 512)
        assert other.guest(1).disk.read(4096, 1536) == b"one" * 512
        first = shared.load(LoadSpec(runtime_s=600, domid=1, vdev="xvda"), every_s=0.05)
        second = other.load(LoadSpec(ios=500, domid=2), every_s=0.05)
        next(first)
        last = list(second)[-1]
        assert last.frontend[2]["ios"].tolist() == [500, 500]
        assert shared.guest(1).disks[1].read(0, 512) == bytes(512)  # beside the load
        with pytest.raises(MachineError, match=r"guest 1's xvda has a load, and has one at a time"):
            next(other.load(LoadSpec(ios=1, domid=1)))
        assert other.status()["loads"] == 1
        before, after = next(first), next(first)
        assert after.frontend[1]["ios"][0] > before.frontend[1]["ios"][0]
        first.close()
        assert other.status()["loads"] == 0
        assert other.counters()["map_ops"] > 0
    assert shared.counters()["map_ops"] > 0  # who leaves takes nothing along


def test_it_is_what_topology_start_gives() -> None:
    public = {name for name in dir(AttachedMachine) if not name.startswith("_")}
    assert {"pids", "failures", "booted", "connected", "snapshot", "counters", "guest", "load",
            "judge", "close"} <= public  # fmt: skip


def test_errors_arrive_as_what_they_are(shared: AttachedMachine) -> None:
    disk = shared.guest(1).disk
    with pytest.raises(MachineError, match="is not a multiple of 512"):
        disk.read(1, 512)
    with pytest.raises(MachineError, match="past the disk's end"):
        disk.read(1 << 30, 512)
    with pytest.raises(ConfigError, match=r"^vdev: xvdp is no disk there is$"):
        next(shared.load(LoadSpec(vdev="xvdp")))
    with pytest.raises(KeyError, match=r"guest 3 is not one of 1\.\.2"):
        shared.guest(3)


def test_a_client_that_sends_rubbish_is_dropped_and_nobody_else(shared: AttachedMachine) -> None:
    rubbish = [b"\xc1" * 100, b"GET / HTTP/1.1\r\n\r\n", msgpack.packb(["x", 1]), b"\x91" * 100_000]
    for sent in rubbish:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.connect(f"{shared.run_dir}/{CONTROL}")
            stranger.sendall(sent)
            stranger.settimeout(20)
            assert stranger.recv(1) == b""
    assert len(shared.guest(1).disk.read(0, 512)) == 512


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (["nothing"], "no such request 'nothing'; allowed are describe, status"),
        (["describe", 1], "describe: too many positional arguments"),
        (["guest", 1, "exit"], "guest: what it can be asked is read, write"),
        (["guest", 1], "guest: what it can be asked is read, write"),
        (["guest", 9, "read", 0, 0, 512], "guest: 9 is not one of this machine's"),
        (["guest", [], "read"], "is not one of this machine's"),
        (["guest", 1, "read", "a", "b", "c"], ""),
        (["guest", 1, "write", 0, 0, bytes(1 << 20)], "write: is longer than a message may be"),
        (["load", {"rw": "up"}, 0.5], "rw: 'up' is not one of"),
        (["load", {"nothing": 1}, 0.5], "nothing: no such setting"),
        (["load", 5, 0.5], ""),
        (["load", {}, "soon"], ""),
        (["load", {"ios": 1}, None], ""),
        (["export", 1, "xvdz", ""], "disk: 1:xvdz is none of this machine's: 1:xvda, 1:xvdb,"),
        (["export", 1, "xvda", "here"], "socket: 'here' is not an absolute path"),
        (["export", [1], "xvda", ""], "export: it takes a domid, a vdev and a path"),
        (["export", 1], "export: missing a required argument: 'vdev'"),
        (["snapshot", "then"], "snapshot: 'then' is not one of booted, connected, now"),
        (["snapshot", ["now"]], ""),
        (["stop", "x"], ""),
    ],
)
def test_what_a_client_asks_wrongly_is_an_error_and_the_machine_goes_on(
    request_: list[object], text: str, shared: AttachedMachine
) -> None:
    if request_ == ["stop", "x"]:  # which has no answer
        shared._requests.begin(*request_)  # type: ignore[arg-type]
    else:
        with pytest.raises((ConfigError, MachineError, ValueError)) as caught:
            list(shared._requests.results(shared._requests.begin(*request_)))  # type: ignore[arg-type]
        assert text in str(caught.value) and "\n" not in str(caught.value)
    assert shared.status()["loads"] == 0
    assert len(shared.guest(2).disk.read(0, 512)) == 512
