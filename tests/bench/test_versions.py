"""A version is found by directory or commit, and what was checked out is gone afterwards."""

import subprocess
import tempfile
from pathlib import Path

import pytest

from bench.versions import ROOT, STAMP, link_environment, this_checkout, version_of
from tests.bench.fake_version import commit, fake_version
from toolstack import ConfigError


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A version with two commits; checkouts go below `tmp`."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return fake_version(tmp_path / "repository").root


def environment(root: Path, lock: str = "nothing\n") -> None:
    """What `run.sh` would have made there, with compiled code."""
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/python").write_text("python")
    (root / ".venv/numba/0123").mkdir(parents=True)
    (root / STAMP).write_text(lock)


def refused(against: str, root: Path) -> str:
    with pytest.raises(ConfigError) as raised, version_of(against, root):
        raise AssertionError("it was not refused")
    return str(raised.value)


def test_a_commit_is_checked_out_and_removed(repository: Path, tmp_path: Path) -> None:
    first = commit(repository)
    (repository / "run.sh").write_text("changed")
    with version_of(first[:9], repository) as version:
        assert version.name == first[:7]
        assert version.root != repository
        assert "exec" in (version.root / "run.sh").read_text()
    assert list((tmp_path / "tmp").iterdir()) == []
    assert worktrees(repository) == 1


def test_it_is_removed_however_it_is_left(repository: Path, tmp_path: Path) -> None:
    commit(repository)
    environment(repository)
    with pytest.raises(KeyboardInterrupt), version_of("HEAD", repository) as version:
        (version.root / ".venv/numba").mkdir()
        (version.root / "run.sh").write_text("changed")
        raise KeyboardInterrupt
    assert list((tmp_path / "tmp").iterdir()) == []
    assert worktrees(repository) == 1
    assert (repository / ".venv/bin/python").read_text() == "python"


def worktrees(repository: Path) -> int:
    done = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"],
        capture_output=True,
        text=True,
        check=True,
    )
    return len(done.stdout.splitlines())


def test_a_directory_is_measured_where_it_is(tmp_path: Path) -> None:
    version = fake_version(tmp_path / "elsewhere")
    with version_of(str(version.root)) as found:
        assert found == version
    assert version.root.exists()


def test_the_same_packages_are_linked_but_not_the_compiled_code(repository: Path) -> None:
    commit(repository)
    environment(repository)
    with version_of("HEAD", repository) as version:
        theirs = version.root / ".venv"
        assert (theirs / "bin").resolve() == repository / ".venv/bin"
        assert (version.root / STAMP).read_text() == "nothing\n"
        assert not (theirs / "numba").exists()


@pytest.mark.parametrize("lock", [None, "other packages\n"])
def test_with_other_packages_it_builds_its_own(tmp_path: Path, lock: str | None) -> None:
    ours, theirs = fake_version(tmp_path / "a").root, fake_version(tmp_path / "b").root
    if lock is not None:
        environment(ours, lock)
    assert not link_environment(ours, theirs)
    assert not (theirs / ".venv").exists()


@pytest.mark.parametrize("name", ["nonsense", "-x", "HEAD~99", "", "HEAD:run.sh"])
def test_what_is_no_version_is_refused(repository: Path, name: str) -> None:
    commit(repository)
    assert refused(name, repository) == f"against: '{name}' is neither a directory nor a commit"


@pytest.mark.parametrize("name", ["run.sh", "bench/figure.py"])
def test_what_cannot_be_measured_is_refused(repository: Path, tmp_path: Path, name: str) -> None:
    (repository / name).unlink()
    commit(repository)
    why = f"cannot be measured: it has no {name}"
    assert refused(str(repository), repository) == f"against: '{repository}' {why}"
    assert refused("HEAD", repository) == f"against: 'HEAD' {why}"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_without_git_a_directory_can_be_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert refused("HEAD", repository) == "against: git is not installed; name a directory"
    with version_of(str(repository)) as found:
        assert found.root == repository


def test_this_checkout_is_where_this_file_is() -> None:
    assert this_checkout().root == ROOT == Path(__file__).resolve().parents[2]
