"""One sample of one version: a machine in a process of its own, and four figures of it.

Owns: how `bench/one_cell.py` is run under a version's own door, and that nothing of it is left.
Rules
1. What was measured is what was meant: the packages' directories are compared with the version's.
2. A sample that fails ends the bench; none is left out in silence.
"""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil

from bench.figure import Figure
from bench.one_cell import LOAD, MACHINE
from bench.versions import Version
from toolstack import LoadSpec, Topology
from toolstack.door import RunEnded
from toolstack.topology import Mode

SCRIPT: Final = Path(__file__).with_name("one_cell.py")
SAMPLE_TIMEOUT_S: Final = 180.0  # besides its seconds: 64 guests beside busy loops start slowly
SET_UP_TIMEOUT_S: Final = 1800.0  # an environment, and compiling
CLOSE_TIMEOUT_S: Final = 20.0
QUIET_PERCENT: Final = 10.0
# Ours, and would come before, or after, what the version's door puts there.
NOT_INHERITED: Final = ("PYTHONPATH", "NUMBA_CACHE_DIR", "PYTHONSAFEPATH", "VIRTUAL_ENV")


class Cell(NamedTuple):
    """What machine is measured."""

    mode: Mode
    guests: int
    spin: str = "adaptive"

    def __str__(self) -> str:
        spin = "" if self.spin == "adaptive" else f", spin {self.spin}"
        return f"{self.mode}, {people(self.guests)}{spin}"

    def check(self, seconds: float) -> None:
        """Raises ConfigError if there can be no such machine or load."""
        settings: dict[str, Any] = {**MACHINE, "guests": self.guests, "spin": self.spin}
        Topology(**settings).with_mode(self.mode)
        LoadSpec(**{**LOAD, "runtime_s": seconds})


def people(guests: int) -> str:
    """So many guests, in words."""
    return f"{guests} guest{'s' if guests > 1 else ''}"


def sample(
    version: Version,
    cell: Cell,
    seconds: float,
    nice: int = 0,
    timeout_s: float = SAMPLE_TIMEOUT_S,
) -> Figure:
    """Run `cell`'s load for so long on a new machine of `version`. Raises RunEnded if it fails."""
    asked = json.dumps({**cell._asdict(), "seconds": seconds})
    # -P, and its own directory as the working one: neither this script's directory nor wherever we
    # are comes first on the path of Python, or of the fork server that it starts with `-c`.
    command = ["./run.sh", "python", "-P", str(SCRIPT), asked]
    if nice:
        command = ["nice", "-n", str(nice), *command]
    said = _run(command, version, f"{version.name}, {cell}", seconds + timeout_s)
    if said["roots"] != [str(version.root)]:
        raise RunEnded(f"{version.name} was not what ran: {', '.join(said['roots'])} was")
    return Figure(**{name: said[name] for name in Figure._fields})


def not_alone(over_s: float = 1.0) -> str:
    """A warning, if others use more than a little of the CPUs before anything of ours runs."""
    percent = psutil.cpu_percent(over_s)
    if percent <= QUIET_PERCENT:
        return ""
    return f"others use {percent:.0f} % of the CPUs: these figures are of a machine in company"


def warm_up(version: Version, modes: list[Mode]) -> None:
    """Have the version's environment built and everything compiled, before anything counts."""
    for mode in modes:
        sample(version, Cell(mode, 1), 0.1, timeout_s=SET_UP_TIMEOUT_S)


def _run(command: list[str], version: Version, what: str, timeout_s: float) -> dict[str, Any]:
    """The JSON that the command ends its output with. Ended as a group, if it must be."""
    environment = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
    child = subprocess.Popen(
        command,
        cwd=version.root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is ours, and passed on once
    )
    with child:
        try:
            out, err = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise RunEnded(f"{what}: took more than {timeout_s:g} s") from None
        finally:
            if child.poll() is None:
                _end(child)
    if child.returncode:
        lines = err.strip().splitlines() or ["it said nothing"]
        raise RunEnded(f"{what}: failed ({child.returncode}): {lines[-1]}")
    return dict(json.loads(out.splitlines()[-1]))


def _end(child: "subprocess.Popen[str]") -> None:
    """As Ctrl-C does, so that its machine is closed; then whatever is left, by force.

    Something is: a fork server that compiles does not notice that it has been left.
    """
    os.killpg(child.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):  # by force, then
        child.wait(CLOSE_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):  # nothing is left
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
