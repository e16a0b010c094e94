"""`./run.sh simulate`: one configuration in virtual time, with the real launch's flags and results.

Owns: how settings become a simulated machine and its counts a RUN of the result format. The same
seed gives the same file to the byte: nothing in it comes from a clock.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np
from rich.console import Console
from rich.text import Text

from common.abi import BLKIF_RING_SIZE, SECTOR_SIZE
from toolstack.cli import settings
from toolstack.door import Command, RunEnded, Within
from toolstack.files import check_outputs, write_outputs
from toolstack.flags import FLAGS, LOAD, MACHINE, OUTPUT, STATE, Flag
from toolstack.jobs import jobs_on, load_plan, plan_of
from toolstack.loadspec import LoadSpec, label
from toolstack.report import print_report
from toolstack.results import Run, build_run, faults, grants_left
from toolstack.snapshot import Snapshot
from toolstack.step import show_steps, small
from toolstack.topology import ConfigError, Topology

if TYPE_CHECKING:
    from simulator.config import Config
    from simulator.machine import Counts, Machine

SIMULATED: Final = ("ram", "null")  # kinds of stores
OF_TIME: Final = (
    "rate_iops", "thinktime", "startdelay_s", "ramp_time_s", "replay",
)  # fmt: skip
RUNTIME_S: Final = 0.05  # of virtual time: every figure has settled long before


def simulate_run(
    topology: Topology, spec: LoadSpec, physical_cpus: int = 0
) -> "tuple[Run, Machine]":
    """Run `spec` on a simulated `topology`: the RUN, and the machine as it has ended."""
    # Brings Numba, which takes a while.
    from simulator.machine import Machine  # noqa: PLC0415

    machine = Machine(config_of(topology, spec, physical_cpus)).run()
    run = build_run(
        topology,
        spec,
        booted=_snapshot(machine.booted, topology),
        started=_snapshot(machine.started, topology),
        finished=_snapshot(machine.finished, topology),
        closed=_snapshot(machine.closed, topology),
    )
    run["config"].update(
        runtime="simulated",
        physical_cpus=machine.config.nr_cpus,
        costs=asdict(machine.costs),
    )
    return run, machine


def config_of(topology: Topology, spec: LoadSpec, physical_cpus: int = 0) -> "Config":
    """The simulated machine that is `topology` under `spec`. Raises ConfigError."""
    from simulator.config import Config, DiskPlan  # noqa: PLC0415

    for disk in topology.every_disk():
        if disk.spec.kind not in SIMULATED or disk.spec.what.volatile:
            raise ConfigError(
                f"disk: {disk} is {disk.spec.params}, which a real run has; ram and null are"
                " simulated"
            )
    for each in spec.jobs:
        for name in OF_TIME:
            if name in each.given() and getattr(each, name):
                raise ConfigError(f"{label(name)}: is of a real run; time is not simulated so")
    jobs = {job.disk: job for job in jobs_on(spec, topology.every_disk())}
    disks = tuple(
        tuple(
            DiskPlan(
                plan_of(jobs[disk]) if disk in jobs else None,
                disk.spec.size // SECTOR_SIZE,
                disk.spec.kind,
                disk.read_only,
                disk.spec.what.name,
                disk.spec.sector,
            )
            for disk in topology.disks_of(domid)
        )
        for domid in topology.domids
    )
    try:
        return Config(
            load_plan(spec, spec.seed, spec.verify),
            topology.mode,
            topology.guests,
            topology.dom0_vcpus,
            physical_cpus,
            topology.flush_policy,
            topology.preset,
            BLKIF_RING_SIZE if topology.batching == "drain" else 1,
            topology.max_persistent_grants,
            disks=disks,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def simulated(topology: Topology, spec: LoadSpec) -> tuple[Topology, LoadSpec]:
    """The same settings with the simulator's own defaults. Raises ConfigError."""
    if topology.given().get("spin") == "adaptive":
        raise ConfigError("spin: 'adaptive' is the real runtime's; the simulator knows only off")
    topology = Topology(**{**topology.given(), "spin": "off"})
    if spec.job:
        return topology, LoadSpec(**{**spec.given(), "job": tuple(map(_short, spec.job))})
    return topology, _short(spec)


def _short(spec: LoadSpec) -> LoadSpec:
    """With an end of its own, where none was named."""
    if spec.ios is None and "runtime_s" not in spec.given():
        return LoadSpec(**{**spec.given(), "runtime_s": RUNTIME_S})
    return spec


def _snapshot(counts: "Counts", topology: Topology) -> Snapshot:
    """The simulator counts a guest's disks in the order in which they are written."""

    def by_number(blocks: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        found = {}
        for domid, rows in blocks.items():
            found[domid] = np.zeros((topology.rows_of(domid), *rows.shape[1:]), rows.dtype)
            for disk, row in zip(topology.disks_of(domid), rows, strict=False):
                found[domid][disk.number] = row
        return found

    return Snapshot(
        at_s=counts.now_ns / 1e9,
        frontend=by_number(counts.frontend),
        backend=by_number(counts.backend),
        hypervisor=counts.hypervisor,
        latency=by_number(counts.latency),
        cpus=counts.cpus,
        host_tlb_shootdowns=None,
        cpu_seconds=counts.busy_ns / 1e9,
    )


def _flags() -> list[click.Parameter]:
    """The real launch's, and what only a model has."""
    flags: list[click.Parameter] = []
    for flag in (flag for flag in FLAGS if flag.name not in STATE):
        if isinstance(flag, Flag) and flag.name == "dom0_vcpus":
            names = (*flag.opts, "--vcpus", "dom0_vcpus")
            flag = Flag(MACHINE, *names, metavar=flag.metavar, help=flag.help)  # noqa: PLW2901
        elif isinstance(flag, Flag) and flag.name == "runtime_s":
            text = f"Stop after so much virtual time (default: {RUNTIME_S}, or none with --ios)."
            flag = Flag(LOAD, *flag.opts, "runtime_s", metavar=flag.metavar, help=text)  # noqa: PLW2901
        flags.append(flag)
    text = "The machine's own CPUs: dom0's vCPUs or more (default: one to each vCPU)."
    flags.append(
        Flag(
            MACHINE,
            "--physical-cpus",
            "physical_cpus",
            type=Within(int, 0, 1024),
            default=0,
            metavar="N",
            help=text,
        )
    )
    text = "Show every phase and what it changes (default: of one guest, and of one I/O)."
    flags.append(Flag(OUTPUT, "--step", "step", is_flag=True, help=text))
    return flags


def _simulate(**flags: Any) -> None:
    physical_cpus, step = flags.pop("physical_cpus"), flags.pop("step")
    topologies, (spec, *more) = settings(flags)
    if more:
        raise ConfigError("job: loads that run one after the other are of a real run")
    if step:
        pairs = [simulated(*small(topology, spec)) for topology in topologies]
        for topology, its_spec in pairs:
            show_steps(config_of(topology, its_spec, physical_cpus), Console(highlight=False))
        return
    pairs = [simulated(topology, spec) for topology in topologies]
    check_outputs(flags)
    console, runs, left, busy = Console(highlight=False), [], [], []
    for topology, its_spec in pairs:
        run, machine = simulate_run(topology, its_spec, physical_cpus)
        runs.append(run)
        left.append(grants_left(_snapshot(machine.closed, topology)))
        shares = ", ".join(f"{what} {share:.0%}" for what, share in machine.utilisation().items())
        busy.append(f"{topology.mode}: busy {shares}")
    print_report(console, runs, left)
    console.print(Text(f"In virtual time, by the model of docs/simulator.md. {'; '.join(busy)}."))
    write_outputs(flags, runs)
    if found := faults(runs, left):
        raise RunEnded(found)


simulate = Command(
    "simulate",
    callback=_simulate,
    params=_flags(),
    help="Run one configuration in virtual time, deterministic to the byte: the real launch's flags"
    " and result format, on as many CPUs as you name.",
    short_help="The same in virtual time, on as many CPUs as you name.",
)
