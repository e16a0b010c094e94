"""`./run.sh simulate --step`: a simulated machine's load, phase by phase, for those who learn it.

Owns: how much of a load is stepped through where nothing is said, and the words around it.
"""

from typing import Any, Final

from rich.console import Console
from rich.text import Text

from toolstack.loadspec import LoadSpec
from toolstack.topology import Topology

# One I/O shows the whole of it.
SMALL: Final[tuple[dict[str, Any], dict[str, Any]]] = ({"guests": 1}, {"iodepth": 1, "ios": 1})
HEAD: Final = """\
{mode}: each phase as it is done, whose it is, and its one access to memory that the peer may
change; below it what has changed there."""


def small(topology: Topology, spec: LoadSpec) -> tuple[Topology, LoadSpec]:
    """The same, but for what nobody has asked for: one guest, one I/O at a time, one I/O."""
    machine, load = SMALL
    return (
        Topology(**{**machine, **topology.given()}),
        LoadSpec(**{**load, **spec.given()}),
    )


def show_steps(topology: Topology, spec: LoadSpec, physical_cpus: int, console: Console) -> None:
    """Print every phase of `spec` on a simulated `topology`."""
    # Brings Numba, which takes a while.
    from simulator.machine import Machine  # noqa: PLC0415
    from simulator.stepping import step_through  # noqa: PLC0415
    from toolstack.simulate import config_of  # noqa: PLC0415

    machine = Machine(config_of(topology, spec, physical_cpus))
    console.print(Text(HEAD.format(mode=topology.mode)))
    for stepped in step_through(machine):
        console.print(Text(str(stepped)), soft_wrap=True)
