"""`./run.sh simulate --step`: a simulated machine's load, phase by phase, for those who learn it.

Owns: how much of a load is stepped through where nothing is said, and the words around it.
"""

from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from toolstack.loadspec import LoadSpec
from toolstack.topology import Topology

if TYPE_CHECKING:
    from simulator.config import Config

HEAD: Final = """\
{mode}: each phase as it is done: whose it is, and its one access to memory that the peer may
change; below it, what has changed there."""


def small(topology: Topology, spec: LoadSpec) -> tuple[Topology, LoadSpec]:
    """The same, but for what nobody has asked for: one guest, one I/O at a time, one I/O."""
    topology = Topology(**{"guests": 1, **topology.given()})
    if spec.job:
        return topology, spec
    return topology, LoadSpec(**{"iodepth": 1, "ios": 1, **spec.given()})


def show_steps(config: "Config", console: Console) -> None:
    """Print every phase of a simulated machine's load."""
    # Brings Numba, which takes a while.
    from simulator.machine import Machine  # noqa: PLC0415
    from simulator.stepping import step_through  # noqa: PLC0415

    console.print(Text(HEAD.format(mode=config.mode)))
    for stepped in step_through(Machine(config)):
        console.print(Text(str(stepped)), soft_wrap=True)
