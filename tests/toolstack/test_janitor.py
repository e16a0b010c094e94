"""What goes with a machine's directory: the sockets that are noted there, wherever they lie."""

import os
import socket
from pathlib import Path

from toolstack.janitor import note_of, remove


def bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


def test_noted_sockets_go_with_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with bound(tmp_path / "noted"), bound(tmp_path / "other"):
        note_of(str(run_dir), str(tmp_path / "noted"))
        remove(str(run_dir))
    assert os.listdir(tmp_path) == ["other"]


def test_what_has_taken_a_sockets_name_is_left_alone(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    first, kept = tmp_path / "first", tmp_path / "kept"
    with bound(first), bound(kept):
        for path in (first, kept):
            note_of(str(run_dir), str(path))
        first.rename(tmp_path / "moved")
        with bound(first):
            kept.unlink()
            kept.write_text("a user's file")
            remove(str(run_dir))
    assert sorted(os.listdir(tmp_path)) == ["first", "kept", "moved"]
    assert kept.read_text() == "a user's file"


def test_a_directory_that_is_gone_is_no_error(tmp_path: Path) -> None:
    remove(str(tmp_path / "none"))
