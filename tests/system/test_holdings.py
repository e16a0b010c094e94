"""What a guest holds, by the kernel's own account: the list of docs/security.md, and no more."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from common.event_channel import events_dir
from common.wakeups import Events
from frontend.seal import find_libseccomp
from tests.common.carriers import CARRIERS
from toolstack.loadspec import LoadSpec
from toolstack.machine import Machine
from toolstack.topology import Topology

pytestmark = pytest.mark.system

SHM = "/dev/shm/grantlab-"
STREAM, SEQPACKET = "0001", "0005"  # of /proc/net/unix
KINDS = {STREAM: "stream", SEQPACKET: "seqpacket"}


class Holder(NamedTuple):
    """A running machine with one guest that has worked."""

    machine: Machine
    events: Events

    @property
    def pid(self) -> int:
        return self.machine.pids["guest-1"]


@pytest.fixture(params=CARRIERS)
def holder(request: pytest.FixtureRequest, run_base: str) -> Iterator[Holder]:
    with Topology(guests=2, disk_mib=4, dom0_vcpus=2, events=request.param).start() as machine:
        for _ in machine.load(LoadSpec(ios=200)):
            pass
        yield Holder(machine, request.param)


def unix_sockets() -> dict[str, tuple[str, str]]:
    """By inode: kind, and path if it has one."""
    found = {}
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        found[words[6]] = KINDS[words[4]], words[7] if len(words) > 7 else ""
    return found


def held(pid: int) -> Counter[str]:
    """What each descriptor is."""
    sockets, found = unix_sockets(), Counter[str]()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        kind, _, inode = target.partition(":")
        if kind == "socket":
            kind, path = sockets[inode.strip("[]")]
            found[f"{kind} {path}".strip()] += 1
        else:
            found["pipe" if kind == "pipe" else target] += 1
    return found


# Control and hypercalls; the store; the store client's poller, and what it keeps events by.
BORN_WITH = {
    "/dev/null": 3,
    "seqpacket": 2,
    "stream": 1,
    "anon_inode:[eventpoll]": 1,
    "anon_inode:[eventfd]": 1,
}


def test_a_guest_holds_what_it_is_born_with_and_its_event_channel(holder: Holder) -> None:
    found = held(holder.pid)
    if holder.events == "pipe":
        assert found == Counter({**BORN_WITH, "pipe": 2})
        return
    # ZeroMQ's own: where it listens, the connection that came, its threads' pollers and signalers.
    found.subtract(BORN_WITH)
    own = {kind for kind, count in found.items() if count}
    address = f"{events_dir(holder.machine.run_dir, 1)}/1"
    assert own == {f"stream {address}", "anon_inode:[eventpoll]", "anon_inode:[eventfd]"}
    assert min(found.values()) >= 0 and found[f"stream {address}"] == 2


def test_its_memory_is_mapped_and_nobody_elses_and_no_descriptor_is_kept(holder: Holder) -> None:
    shared = []
    for line in Path(f"/proc/{holder.pid}/maps").read_text().splitlines():
        _, mode, *rest = line.split(maxsplit=5)
        if (mode[1] == "w" and mode[3] == "s") or "/dev/shm" in "".join(rest):
            shared.append((rest[-1].removesuffix(" (deleted)").rpartition("-")[2], mode))
            assert f"{SHM}{holder.machine.run_dir.rpartition('-')[2]}-1-" in rest[-1]
    assert sorted(shared) == [(name, "rw-s") for name in ("event", "grant", "ram", "stats")]
    assert not [kind for kind in held(holder.pid) if SHM in kind]


def test_it_is_sealed_and_can_gain_nothing(holder: Holder) -> None:
    if isinstance(why := find_libseccomp(), str):
        pytest.skip(why)
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{holder.pid}/status").read_text().splitlines()
    )
    assert status["Seccomp"].strip() == "2"
    assert status["NoNewPrivs"].strip() == "1"
    for task in Path(f"/proc/{holder.pid}/task").iterdir():
        assert "Seccomp:\t2" in (task / "status").read_text()


def test_the_others_hold_no_terminals_input_and_no_more_of_guests_than_they_need(
    holder: Holder,
) -> None:
    found = {name: held(holder.machine.pids[name]) for name in ("hypervisor", "xenstored", "dom0")}
    for kinds in found.values():
        assert kinds["/dev/null"] >= 2
    assert not [kind for kind in found["xenstored"] if SHM in kind]
    # dom0 maps single frames of RAM, and has no grant table.
    kept = {
        kind.removesuffix(" (deleted)").rpartition("-")[2] for kind in found["dom0"] if SHM in kind
    }
    assert kept == {"ram"}
    # Lines, dom0's, two of each of its vCPUs' (its thread's and the main thread's), guests'.
    assert found["hypervisor"]["seqpacket"] == 2 + 2 + 2 * 2 + 2
    assert found["hypervisor"]["pipe"] == 0  # it keeps none of what it has handed over
