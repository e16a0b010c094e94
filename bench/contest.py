"""Who is measured, how often, and in what order: interleaved, so that a slow moment hits all.

Owns: the cases, a round of them, and the medians. Ratios are taken within a round, and then their
median: these machines' speed drifts by more than what is to be told apart.
"""

from collections.abc import Iterator
from statistics import median
from typing import Any, Final, NamedTuple

import psutil

from bench import limit, peers, roundtrip
from bench.figure import measure
from toolstack.loadspec import LoadSpec
from toolstack.topology import Mode, RunningMachine, Topology

MODES: Final[tuple[Mode, ...]] = ("persistent", "non-persistent", "grant-copy")
GUESTS: Final = (1, 2, 4, 8, 16)
GUESTS_PERSISTENT_ONLY: Final = 32
DEPTHS: Final = (1, 32)
RWS: Final = ("randrw", "randread", "randwrite")
LARGE: Final = (("64k", 32), ("1m", 8))
DOM0_VCPUS: Final = 24
MIB: Final = 1 << 20

Sample = dict[str, Any]


class Plan(NamedTuple):
    """How thorough: seconds a measurement, guest counts, loads of each machine."""

    seconds: float
    guests: tuple[int, ...]
    loads: tuple[LoadSpec, ...]


def plan(quick: bool, seconds: float) -> Plan:
    """All the loads on five guest counts, or the one that matters most on three."""
    if quick:
        return Plan(seconds, (1, 8), (_load("randrw", "4k", 32, seconds),))
    loads = [_load(rw, "4k", depth, seconds) for rw in RWS for depth in DEPTHS]
    loads += [_load("randrw", bs, depth, seconds) for bs, depth in LARGE]
    return Plan(seconds, GUESTS, tuple(loads))


def _load(rw: str, bs: str, iodepth: int, seconds: float) -> LoadSpec:
    """fio does not check what it reads, so neither do these."""
    settings: dict[str, Any] = {
        "rw": rw,
        "bs": bs,
        "iodepth": iodepth,
        "runtime_s": seconds,
        "verify": False,
    }
    return LoadSpec(**settings)


def run_round(contest: Plan, done: list[list[Sample]]) -> Iterator[Sample]:
    """Measure everything once; each sample as it comes, and all of them appended to `done`."""
    samples: list[Sample] = []
    for sample in _samples(contest):
        samples.append(sample)
        yield sample
    done.append(samples)


def _samples(contest: Plan) -> Iterator[Sample]:
    yield {"who": "limit", "iops": limit.requests_a_second(contest.seconds)}
    yield {"who": "shared-memory ping-pong", "us": roundtrip.shared_memory_us()}
    yield {"who": "zeromq ping-pong", "us": roundtrip.zeromq_us()}
    if not peers.missing():
        for depth in DEPTHS:
            figure = peers.fio_with_nbdkit("randrw", depth, contest.seconds)
            yield {"who": "fio + nbdkit", "rw": "randrw", "iodepth": depth, **figure._asdict()}
    yield from _depth_one_blocking(contest.seconds)
    for guests in contest.guests:
        for mode in MODES:
            yield from _one_machine(mode, guests, contest.loads)
    usual = tuple(
        load for load in contest.loads if load == _load("randrw", "4k", 32, contest.seconds)
    )
    yield from _one_machine("persistent", GUESTS_PERSISTENT_ONLY, usual)


def _depth_one_blocking(seconds: float) -> Iterator[Sample]:
    spec = _load("randrw", "4k", 1, seconds)
    with _topology(1, spin="off").start() as machine:
        figure = measure(machine, spec)
    yield {"who": "grantlab, spin off", "guests": 1, "iodepth": 1, **figure._asdict()}


def _one_machine(mode: Mode, guests: int, loads: tuple[LoadSpec, ...]) -> Iterator[Sample]:
    with _topology(guests).with_mode(mode).start() as machine:
        # Every page of the disks is there before anything is measured.
        measure(machine, _load("write", "64k", 8, 0.5 + guests / 16))
        for spec in loads:
            figure = measure(machine, spec)
            yield {
                "who": mode,
                "guests": guests,
                "rw": spec.rw,
                "bs": spec.bs,
                "iodepth": spec.iodepth,
                **figure._asdict(),
            }
        yield {"who": "memory", "mode": mode, "guests": guests, "mib": guest_mib(machine)}


def _topology(guests: int, **settings: Any) -> Topology:
    return Topology(**{"guests": guests, "dom0_vcpus": DOM0_VCPUS, **settings})


def guest_mib(machine: RunningMachine) -> float:
    """Resident memory of a guest process, pages that several share counted once among them."""
    sizes = [
        psutil.Process(pid).memory_full_info().pss / MIB
        for name, pid in machine.pids.items()
        if name.startswith("guest-")
    ]
    return sum(sizes) / len(sizes)


def case_of(sample: Sample) -> str:
    """A sample's name: all that is not a figure."""
    named = {key: value for key, value in sample.items() if not isinstance(value, float)}
    return " ".join(str(value) for value in named.values())


def medians(rounds: list[list[Sample]]) -> dict[str, Sample]:
    """For each case the median of each figure, and of its IOPS as a ratio to its round's limit."""
    collected: dict[str, list[Sample]] = {}
    for samples in rounds:
        limit_iops = next(sample["iops"] for sample in samples if sample["who"] == "limit")
        for sample in samples:
            ratio = {"of_limit": sample["iops"] / limit_iops} if "iops" in sample else {}
            collected.setdefault(case_of(sample), []).append({**sample, **ratio})
    return {case: _median(samples) for case, samples in collected.items()}


def _median(samples: list[Sample]) -> Sample:
    return {
        key: median(sample[key] for sample in samples) if isinstance(value, float) else value
        for key, value in samples[0].items()
    }
