"""A version of grantlab to be measured: a directory with its own door, environment and caches.

Owns: finding it by commit or directory, checking a commit out, and taking that away again. A commit
becomes a temporary git worktree. Where it asks for the same packages as this checkout, its
environment is made of links into ours, less our compiled code: `run.sh` keeps that in the
environment and may prune it, and it is not to be shared by two versions that are compared.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from toolstack import ConfigError
from toolstack.door import RunEnded

ROOT: Final = Path(__file__).resolve().parents[1]
NEEDED: Final = ("run.sh", "bench/figure.py", "toolstack/topology.py")
LOCK: Final = "requirements.lock"
STAMP: Final = ".venv/.grantlab-lock"  # `run.sh`: the lock that an environment was built from
COMPILED: Final = "numba"


class Version(NamedTuple):
    """name: for people. root: where its `run.sh` is, resolved."""

    name: str
    root: Path


def this_checkout(root: Path = ROOT) -> Version:
    """The version this file belongs to, by what git calls it."""
    return Version(_described(root) or "this checkout", root)


@contextmanager
def version_of(against: str, root: Path = ROOT) -> Iterator[Version]:
    """The version that a directory, or a commit of `root`'s repository, names.

    Raises ConfigError if it is neither, or cannot be measured. What was checked out is removed
    however this is left.
    """
    if against and Path(against).is_dir():
        directory = Path(against).resolve()
        _check(against, directory)
        yield Version(_described(directory) or directory.name, directory)
        return
    commit = _commit(against, root)
    base = Path(tempfile.mkdtemp(prefix="grantlab-")).resolve()
    tree = base / "version"
    try:
        done = _git(root, "worktree", "add", "--quiet", "--detach", str(tree), commit)
        if done.returncode:
            raise RunEnded(f"'{against}' cannot be checked out: {done.stderr.strip()}")
        _check(against, tree)
        link_environment(root, tree)
        yield Version(commit[:7], tree)
    finally:
        _git(root, "worktree", "remove", "--force", str(tree))
        shutil.rmtree(base, ignore_errors=True)
        _git(root, "worktree", "prune")


def link_environment(ours: Path, theirs: Path) -> bool:
    """Give `theirs` our environment by links, if it asks for the same packages; else leave it."""
    stamp = ours / STAMP
    if not stamp.exists() or stamp.read_bytes() != (theirs / LOCK).read_bytes():
        return False
    (theirs / ".venv").mkdir()
    for entry in (ours / ".venv").resolve().iterdir():
        if entry.name != COMPILED:
            (theirs / ".venv" / entry.name).symlink_to(entry)
    return True


def _check(against: str, directory: Path) -> None:
    for name in NEEDED:
        if not (directory / name).is_file():
            raise ConfigError(f"against: '{against}' cannot be measured: it has no {name}")


def _commit(against: str, root: Path) -> str:
    """The full hash of a commit's name. One that looks like a flag is none."""
    done = _git(root, "rev-parse", "--verify", "--quiet", f"{against}^{{commit}}")
    if done.returncode or against.startswith("-"):
        raise ConfigError(f"against: '{against}' is neither a directory nor a commit")
    return done.stdout.strip()


def _described(root: Path) -> str:
    if not (root / ".git").exists():
        return ""
    return _git(root, "describe", "--always", "--dirty", "--exclude", "*").stdout.strip()


def _git(root: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run git there. Raises ConfigError where there is no git."""
    try:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise ConfigError("against: git is not installed; name a directory") from None
