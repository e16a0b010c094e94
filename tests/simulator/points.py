"""Runs that several tests look at: each configuration is simulated once a process."""

from functools import cache
from typing import Any

from frontend.load import LoadPlan
from simulator import experiment
from simulator.config import Config
from simulator.experiment import Row
from simulator.machine import Machine


def plan(**changes: Any) -> LoadPlan:
    """A small load with every byte checked: 100 random I/Os of each guest unless it says else."""
    settings: dict[str, Any] = {
        "rw": "randrw",
        "bs": 4096,
        "iodepth": 8,
        "read_percent": 70,
        "ios": 100,
        "runtime_s": None,
        "seed": 1,
        "verify": True,
    }
    return LoadPlan(**{**settings, **changes})


def run(mode: str = "non-persistent", load: LoadPlan | None = None, **settings: Any) -> Machine:
    """A machine that has run and is closed."""
    return Machine(Config(load or plan(), mode, **{"guests": 2, **settings})).run()


@cache
def point(mode: str, guests: int, era: str = "2012", policy: str = "mask-2012") -> Row:
    """One point of the figure, for half of the figure's time: it has settled by then."""
    load = experiment.plan(runtime_s=experiment.RUNTIME_S / 2)
    return experiment.measure(Config(load, mode, guests, flush_policy=policy, era=era))


def total(machine: Machine, block: str, name: str) -> int:
    """What all guests counted of `name` in `block` while the load ran."""
    before, after = getattr(machine.started, block), getattr(machine.finished, block)
    return sum(int(after[domid][name][0]) - int(before[domid][name][0]) for domid in after)
