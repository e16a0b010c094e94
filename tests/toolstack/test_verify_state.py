"""State files: which disks have one, and that nothing in them or of a guest is simply believed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frontend.pattern import UNKNOWN
from frontend.state_file import HEADER_BYTES, STATE_HEADER, state_arrays, state_bytes
from toolstack.disks import Disk
from toolstack.loadspec import ConfigError
from toolstack.settings import Settings
from toolstack.verify_state import StateFiles, Verdict, kept_of, open_state, state_path

NR_SECTORS = 64


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    """One on a file of `NR_SECTORS`."""
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(NR_SECTORS * 512))
    (disk,) = Settings(guests=1, disks=[f"file:{file}"]).every_disk()
    return disk


def opened(directory: Path, disk: Disk, nr_sectors: int = NR_SECTORS) -> None:
    os.close(open_state(str(directory), disk, nr_sectors))


def refused(directory: Path, disk: Disk) -> str:
    with pytest.raises(ConfigError) as caught:
        opened(directory, disk)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def path_of(directory: Path, disk: Disk) -> Path:
    return Path(state_path(str(directory), disk))


def test_of_a_disk_that_is_older_than_its_machine_nothing_is_known(
    tmp_path: Path, disk: Disk
) -> None:
    opened(tmp_path / "states", disk)
    path = path_of(tmp_path / "states", disk)
    assert path.name == "guest-1-xvda.state" and path.stat().st_mode & 0o777 == 0o600
    flushed, issued = state_arrays(np.memmap(path, np.uint8, "r"), NR_SECTORS)
    assert (flushed == UNKNOWN).all() and not issued.any()


def test_one_that_is_there_is_gone_on_with(tmp_path: Path, disk: Disk) -> None:
    opened(tmp_path, disk)
    flushed, _ = state_arrays(np.memmap(path_of(tmp_path, disk), np.uint8, "r+"), NR_SECTORS)
    flushed[3] = 7
    opened(tmp_path, disk)
    assert flushed[3] == 7


def test_one_of_a_disk_that_is_new_with_its_machine_is_made_anew(tmp_path: Path) -> None:
    (disk,) = Settings(guests=1, disks=["ram:32k"]).every_disk()
    opened(tmp_path, disk)
    flushed, _ = state_arrays(np.memmap(path_of(tmp_path, disk), np.uint8, "r+"), NR_SECTORS)
    assert not flushed.any(), "it holds zeros, and that is known"
    flushed[3] = 7
    opened(tmp_path, disk)
    flushed, _ = state_arrays(np.memmap(path_of(tmp_path, disk), np.uint8, "r"), NR_SECTORS)
    assert flushed[3] == 0


def field(name: str, value: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        header = np.memmap(path, STATE_HEADER, "r+", shape=(1,))
        header[name] = value

    return spoil


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    os.truncate(path, state_bytes(NR_SECTORS) - 1)


def linked(path: Path) -> None:
    path.rename(path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (field("magic", b"GRANTLAB"), "has the magic"),
        (field("format", 2), "has the format 2, and not 1"),
        (field("domid", 9), "has the domid 9, and not 1"),
        (field("disk", 1), "has the disk 1, and not 0"),
        (field("device", 1), "has the device 1, and not 51712"),
        (field("name", 99), "has the name 99, and not "),
        (field("pad", 1), "has the pad 1, and not 0"),
        (field("nr_sectors", 1 << 40), "has the nr_sectors 1099511627776, and not 64"),
        (field("target", b"file:/elsewhere"), "has the target"),
        (field("target", b"\x1b[2J\xff"), "has the target"),
        (emptied, "has the magic"),
        (cut, "is not as long as its 64 sectors take"),
        (linked, "cannot be used: Too many levels of symbolic links"),
        (pipe, "cannot be used: Illegal seek"),
    ],
)
def test_a_file_that_is_not_this_disk_s_is_one_line(
    tmp_path: Path, disk: Disk, spoil: Callable[[Path], None], complaint: str
) -> None:
    opened(tmp_path, disk)
    path = path_of(tmp_path, disk)
    spoil(path)
    said = refused(tmp_path, disk)
    assert said.startswith(f"verify-state: '{path}' ") and complaint in said
    assert said.isprintable()


def test_a_directory_that_cannot_be_is_one_line(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be used: Not a directory" in refused(tmp_path / "file" / "states", disk)


def test_one_that_cannot_be_made_whole_is_not_made(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "cannot be used: No space left on device" in refused(tmp_path / "states", disk)
    assert list((tmp_path / "states").iterdir()) == []


def test_which_disks_have_one() -> None:
    disks = ["ram:1m", "null:1m", "ram:1m,access=ro", "ram:1m,name=shared", "ram:1m,name=own"]
    own = [
        {"disks": disks},
        {"disks": ["ram:1m,name=shared,access=ro"]},
    ]
    kept = kept_of(Settings(guests=2, guest=own).every_disk())
    assert [str(disk) for disk in kept] == ["guest 1's xvda", "guest 1's xvde"]


def test_files_that_no_guest_took_are_closed(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disks = Settings(guests=3, disks=["ram:32k"]).every_disk()
    files = StateFiles(str(tmp_path), disks)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"guest-{domid}-xvda.state" for domid in (1, 2, 3)
    ]
    (fd,) = files.take(2).values()
    files.close()
    os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before
    assert StateFiles("", disks).take(1) == {}


def test_if_one_is_refused_none_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    disks = Settings(guests=2, disks=["ram:32k"]).every_disk()
    (tmp_path / "guest-2-xvda.state").mkdir()
    with pytest.raises(ConfigError, match="guest-2-xvda"):
        StateFiles(str(tmp_path), disks)
    assert len(os.listdir("/proc/self/fd")) == before


TOLD = {"checked": 5, "uncertain": 1, "outside": 1, "named": [[3, 2, 4, 6]]}


def test_what_a_guest_tells_is_added_up(disk: Disk) -> None:
    verdict = Verdict(disk)
    verdict.add(TOLD)
    verdict.add({**TOLD, "named": [[9, -1, 1, 1]]})
    assert (verdict.checked, verdict.uncertain, verdict.outside) == (10, 2, 2)
    assert verdict.lines() == [
        "guest 1's xvda: 10 sectors checked, 2 of them uncertain, 2 outside of their bounds",
        "guest 1's xvda: sector 3 holds version 2, not 4..6",
        "guest 1's xvda: sector 9 holds no version of this sector, not 1..1",
    ]


@pytest.mark.parametrize(
    "told",
    [
        None, [], {}, {"named": []}, {**TOLD, "checked": "5"}, {**TOLD, "named": None},
        {**TOLD, "named": [[3, 2, 4]]}, {**TOLD, "named": [[3, 2, 4, "6"]]},
        {**TOLD, "named": [3]}, {**TOLD, "outside": None},
    ],
)  # fmt: skip
def test_nonsense_of_a_guest_s_is_told_as_that(disk: Disk, told: Any) -> None:
    verdict = Verdict(disk)
    with pytest.raises(ValueError, match="the guest of guest 1's xvda answered nonsense"):
        verdict.add(told)
    assert verdict.checked == 0 and not verdict.named


def test_the_header_leaves_room() -> None:
    assert STATE_HEADER.itemsize <= HEADER_BYTES
