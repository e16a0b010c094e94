"""A version of grantlab as far as a sample needs it: a door, and packages that start no machine."""

import subprocess
import sys
from pathlib import Path

from bench.versions import Version

DOOR = """\
#!/usr/bin/env bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=${LEADS_TO:-$root}${PYTHONPATH:+:$PYTHONPATH}
shift
exec %s "$@"
"""

TOOLSTACK = """\
class LoadSpec:
    def __init__(self, **settings):
        self.runtime_s = settings.get("runtime_s")

class Topology:
    def __init__(self, **settings):
        self.settings = settings

    def with_mode(self, mode):
        return self

    def start(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
"""

PRELOAD = """\
from pathlib import Path

def say_where(pipe):
    pipe.send(str(Path(__file__).parents[1]))
"""

FIGURE = """\
from typing import NamedTuple

class Figure(NamedTuple):
    iops: float
    p50_us: float = 1.0
    p99_us: float = 2.0
    cpu_s_per_million: float = 3.0

def measure(machine, spec):
    {measure}
"""


def fake_version(directory: Path, measure: str = "return Figure(100.0)") -> Version:
    """Write a version whose `bench.figure.measure` does `measure`; its name is the directory's."""
    for package in ("toolstack", "bench"):
        (directory / package).mkdir(parents=True)
    (directory / "run.sh").write_text(DOOR % sys.executable)
    (directory / "run.sh").chmod(0o755)
    (directory / "requirements.lock").write_text("nothing\n")
    (directory / "toolstack/__init__.py").write_text(TOOLSTACK)
    (directory / "toolstack/topology.py").write_text("")
    (directory / "toolstack/preload.py").write_text(PRELOAD)
    (directory / "bench/__init__.py").write_text("")
    body = "\n    ".join(measure.splitlines())
    (directory / "bench/figure.py").write_text(FIGURE.format(measure=body))
    return Version(directory.name, directory.resolve())


def commit(directory: Path) -> str:
    """Make a repository of it, with one commit; the commit's hash."""
    git = ["git", "-C", str(directory), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for args in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message=one"]):
        subprocess.run([*git, *args], check=True)
    done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return done.stdout.strip()
