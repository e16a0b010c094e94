"""One point of a sweep: run a configuration, and what is worth keeping of it.

Owns: the load that the published experiment had, and the figures of one run in a flat row, as a
table's row or a Parquet file's.
"""

from typing import Any, Final

from frontend.load import LoadPlan
from simulator.config import Config
from simulator.costs import COSTS, Costs
from simulator.cpus import KINDS
from simulator.machine import Machine

# What was published (Linux 0a8704a51f): 4-KiB I/Os on ramdisks, dom0 with 24 vCPUs.
PUBLISHED_VCPUS: Final = 24
PUBLISHED_MODE: Final = "non-persistent"
PUBLISHED: Final = {5: 650_000, 10: 400_000}  # guests: IOPS; the first is the peak
PEAK_GUESTS: Final = 5
RUNTIME_S: Final = 0.01
SATURATED: Final = 0.95  # of a resource's time: what is busier than this bounds the throughput

Row = dict[str, Any]


def plan(
    *, bs: int = 4096, iodepth: int = 32, runtime_s: float = RUNTIME_S, seed: int = 1
) -> LoadPlan:
    """The sweeps' load: random, 70 % reads, every byte checked."""
    return LoadPlan("randrw", bs, iodepth, 70, None, runtime_s, seed, True)


def measure(config: Config, costs: Costs = COSTS) -> Row:
    """Run `config`; its figures."""
    return row_of(Machine(config, costs).run())


def iops(config: Config, costs: Costs = COSTS) -> float:
    """The I/Os a second of virtual time."""
    return float(measure(config, costs)["iops"])


def row_of(machine: Machine) -> Row:
    """The figures of a machine that has run."""
    config, busy = machine.config, machine.utilisation()
    before, after = machine.started, machine.finished
    seconds = (after.now_ns - before.now_ns) / 1e9
    ios = sum(int(block["ios"][0]) for block in after.frontend.values())
    requests = sum(int(block["requests"][0]) for block in after.frontend.values())
    counted = {
        name: sum(
            int(after.hypervisor[domid][name][0] - before.hypervisor[domid][name][0])
            for domid in after.hypervisor
        )
        for name in ("map_ops", "unmap_ops", "copy_ops", "flushes", "ipis", "flush_lock_waits")
    }
    errors = sum(int(block["verify_errors"][0]) for block in after.frontend.values())
    assert errors == 0, f"{errors} I/Os read the wrong bytes"
    return {
        "mode": config.mode,
        "guests": config.guests,
        "dom0_vcpus": config.dom0_vcpus,
        "flush_policy": config.flush_policy,
        "era": config.era,
        "bs": config.plan.bs,
        "seed": config.plan.seed,
        "seconds": seconds,
        "ios": ios,
        "requests": requests,
        "iops": ios / seconds,
        **counted,
        "ipis_per_request": counted["ipis"] / requests,
        **{f"busy {name}": share for name, share in busy.items()},
        "saturated": ", ".join(name for name, share in busy.items() if share >= SATURATED),
        **{f"cpu {name}": share for name, share in _cpu_shares(machine, seconds).items()},
    }


def _cpu_shares(machine: Machine, seconds: float) -> dict[str, float]:
    """How the time of those of dom0's CPUs that serve a ring divides, 0 to 1 each, mean of them."""
    used = machine.cpus[: min(machine.config.dom0_vcpus, machine.config.guests)]
    total_ns = seconds * 1e9 * len(used)
    return {name: sum(cpu.spent[at] for cpu in used) / total_ns for at, name in enumerate(KINDS)}
