"""`metrics`, `top`, `trace` as they are typed: what is wrong is one line, at once."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from toolstack.commands import cli


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("metrics nobody --once", "machine 'nobody' is not up; machines that are: none"),
        ("metrics nobody --port 0", "machine 'nobody' is not up; machines that are: none"),
        ("metrics nobody", "metrics: needs one of --once, --socket PATH and --port N"),
        ("metrics --port 1 --once", "metrics: needs one of --once, --socket PATH and --port N"),
        ("metrics --port 65536", "metrics: port: '65536' is not in 0..65535"),
        ("metrics --port -1", "metrics: port: '-1' is not in 0..65535"),
        ("metrics a/b --once", "name: 'a/b' is not 1..32 letters, digits"),
        ("top nobody", "top: needs a terminal; `ls --json` and `metrics --once` need none"),
        ("trace nobody -o t.json", "machine 'nobody' is not up; machines that are: none"),
        ("trace nobody", "trace: -o is needed"),
        ("trace -o t.json --seconds 0", "trace: seconds: '0' is not above 0, at most 3600"),
        ("trace -o t.json --window 0.5", "trace: window: '0.5' is not in 1..1000"),
        ("top a/b", "name: 'a/b' is not 1..32 letters, digits"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    command: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, command.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"grantlab: error: {line}") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
