"""Real machines of several guests with several disks each, all in use at once."""

from typing import Any

import numpy as np
import pytest

from common.abi import SECTOR_SIZE
from tests.system.conftest import grantlab
from toolstack.jobs import jobs_on
from toolstack.loadspec import LoadSpec
from toolstack.machine import Machine, MachineError
from toolstack.results import Run, build_run
from toolstack.topology import MODES, ConfigError, Mode, Topology

pytestmark = pytest.mark.system

GUESTS, VCPUS, IOS = 3, 4, 600
SIZE = 1 << 20
KIB = 1024
# Guest 1 may write to what the others only read.
DISKS = ["ram:1m", "null:64m", "ram:1m,name=shared,access=ro"]
OWN = [{"domid": 1, "disks": ["ram:1m", "null:64m", "ram:1m,name=shared"]}]
JOBS = [
    {"vdev": "xvda", "rw": "randrw", "rwmixread": 70, "bs": 8 * KIB},
    {"vdev": "xvdb", "rw": "randread", "bs": 4 * KIB},
    {"vdev": "xvdc", "rw": "randread", "bs": 4 * KIB},
]


def topology(**settings: Any) -> Topology:
    return Topology(guests=GUESTS, dom0_vcpus=VCPUS, disks=DISKS, guest=OWN, **settings)


def load(**changes: Any) -> LoadSpec:
    return LoadSpec(**{"ios": IOS, "iodepth": 8, "job": JOBS, **changes})


def run_of(machine: Machine, spec: LoadSpec) -> Run:
    """Run a load to its end, and the machine to its own."""
    started = machine.snapshot()
    *_, finished = machine.load(spec)
    machine.close()
    assert machine.booted is not None and machine.closed is not None, machine.close_failure
    return build_run(
        machine.topology,
        spec,
        booted=machine.booted,
        started=started,
        finished=finished,
        closed=machine.closed,
    )


def write_shared(machine: Machine) -> None:
    """Guest 1 writes all of the store that the others read, some of it twice, as a load does."""
    where = {"domid": 1, "vdev": "xvdc", "iodepth": 1, "seed": 3}
    for rw, ios in (("write", SIZE // (4 * KIB)), ("randwrite", 100)):
        *_, _ = machine.load(LoadSpec(rw=rw, ios=ios, **where))


@pytest.mark.parametrize("batching", ["request", "drain"])
@pytest.mark.parametrize("mode", MODES)
def test_nine_disks_at_once_count_exactly_and_read_what_was_written(
    mode: Mode, batching: str
) -> None:
    with topology(batching=batching).with_mode(mode).start() as machine:
        write_shared(machine)
        run = run_of(machine, load())
    assert run["totals"]["verify_errors"] == run["totals"]["io_errors"] == 0
    assert run["totals"]["requests"] == GUESTS * 3 * IOS
    for guest in run["guests"]:
        assert [disk["verified"] for disk in guest["disks"]] == [True, False, True]
        for disk, pages in zip(guest["disks"], (2, 1, 1), strict=True):
            check_counts(mode, batching, disk, pages)
        check_sums(guest)
    check_sums(run)
    assert [guest["counters"]["ipis"] for guest in run["guests"]] == [
        guest["counters"]["flushes"] * (VCPUS - 1) for guest in run["guests"]
    ]


def check_counts(mode: Mode, batching: str, disk: dict[str, Any], pages: int) -> None:
    """What `IOS` I/Os of so many pages cost on a disk that nobody else uses."""
    counted, segments = disk["counters"], IOS * pages
    assert (disk["totals"]["requests"], disk["totals"]["segments"]) == (IOS, segments)
    assert counted["bad_requests"] == 0
    moved = disk["totals"]["bytes_read"] + disk["totals"]["bytes_written"]
    assert moved == segments * 4 * KIB
    maps = counted["map_ops"], counted["unmap_ops"], counted["copy_ops"]
    calls = counted["hypercalls"]
    if mode == "persistent":
        assert maps == (counted["grants_issued"], 0, 0)
        assert 0 < counted["grants_issued"] <= 8 * pages
        assert calls <= counted["grants_issued"]
    elif mode == "grant-copy":
        assert maps == (0, 0, segments)
        assert calls == IOS if batching == "request" else 0 < calls <= IOS
    else:
        assert maps == (segments, segments, 0)
        assert calls == 2 * IOS if batching == "request" else 0 < calls <= 2 * IOS
    copies = mode in ("persistent", "backend-without-persistent")
    assert counted["bytes_copied_by_guest"] == (moved if copies else 0)


def check_sums(whole: dict[str, Any]) -> None:
    """What rings count sums to what the hypervisor does, but for the rings' own pages."""
    parts = whole.get("guests") or whole["disks"]
    for name in ("map_ops", "unmap_ops", "copy_ops", "hypercalls", "grants_issued"):
        assert whole["counters"][name] == sum(part["counters"][name] for part in parts), name
    disks = sum(len(guest["disks"]) for guest in whole["guests"]) if "guests" in whole else 3
    assert whole["counters"]["setup"]["map_ops"] >= disks


def test_a_read_only_disk_is_so_from_end_to_end() -> None:
    with topology().start() as machine:
        shared = [machine.guest(domid).disks[2] for domid in (1, 2, 3)]
        rng = np.random.default_rng(5)
        rows = rng.integers(0, 256, (SIZE // (4 * KIB), 4 * KIB), np.uint8)
        offsets = np.arange(len(rows)) * 4 * KIB
        shared[0].write_many(offsets, rows)
        for reader in shared[1:]:
            assert (reader.read_many(offsets, 4 * KIB) == rows).all()
            with pytest.raises(MachineError):
                reader.write(0, bytes(SECTOR_SIZE))
            assert reader.read(0, 4 * KIB) == rows[0].tobytes()
        with pytest.raises(ConfigError, match="rw: randrw writes to guest 2's xvdc"):
            machine.load(LoadSpec(ios=1))
        back = "/local/domain/0/backend/vbd"
        modes = [machine._store.read(f"{back}/{domid}/51744/mode") for domid in (1, 2, 3)]
        assert modes == [b"w", b"r", b"r"]


def test_a_reader_that_expects_another_disk_s_bytes_finds_every_block_wrong() -> None:
    blocks = SIZE // (4 * KIB)
    spec = LoadSpec(rw="read", ios=blocks, iodepth=4, domid=2, vdev="xvdc")
    with topology().start() as machine:
        write_shared(machine)
        *_, sound = machine.load(spec)
        assert sound.frontend[2]["verify_errors"][2] == 0
        # What guest 1 has on its xvda, which nobody has written to: zeros.
        (job,) = jobs_on(spec, machine.topology.every_disk())
        machine.guest(2).disks[2].expect(machine.guest(1).disk, 1)
        *_, after = machine._load([job._replace(after=None)], 1)
        assert after.frontend[2]["verify_errors"][2] == blocks


def test_disks_have_the_names_that_they_were_given_and_their_own_bytes() -> None:
    disks = ["ram:64k,vdev=xvdd", "ram:128k", "ram:192k,vdev=xvdp"]
    with Topology(guests=2, disks=disks).start() as machine:
        found = machine.guest(2).disks
        assert [(disk.vdev, disk.size) for disk in found] == [
            ("xvdd", 64 * KIB), ("xvda", 128 * KIB), ("xvdp", 192 * KIB),
        ]  # fmt: skip
        every = [disk for domid in (1, 2) for disk in machine.guest(domid).disks]
        for value, disk in enumerate(every, 1):
            disk.write(0, bytes([value]) * disk.size)
        for value, disk in enumerate(every, 1):
            assert disk.read(0, disk.size) == bytes([value]) * disk.size
        assert machine.guest(1).disk is machine.guest(1).disks[0]


def test_the_command_line_takes_disks_and_says_what_was_not_verified(run_base: str) -> None:
    disks = ("--disk", "ram:1m", "--disk", "null:1m,vdev=xvdp")
    done = grantlab(*disks, "--guests", "2", "--ios", "50", "--persistent", run_base=run_base)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    (null,) = [line for line in lines if line[:2] == ["guest-2", "xvdp"]]
    (ram,) = [line for line in lines if line[:2] == ["guest-2", "xvda"]]
    assert (null[-1], ram[-1]) == ("no", "yes")


def test_sixteen_disks_of_a_guest_start_serve_and_end() -> None:
    spec = LoadSpec(ios=20, iodepth=2)
    with Topology(guests=1, disks=["ram:64k"] * 16, dom0_vcpus=2).start() as machine:
        run = run_of(machine, spec)
    assert run["totals"]["requests"] == 16 * 20
    assert run["totals"]["verify_errors"] == 0
