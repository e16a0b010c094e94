"""What is shown while a load runs."""

import io

from rich.console import Console

from tests.toolstack.stand_in import snapshot
from toolstack.jobs import Job, jobs_on
from toolstack.loadspec import LoadSpec
from toolstack.progress import Progress
from toolstack.settings import Settings
from toolstack.snapshot import Snapshot


def jobs(spec: LoadSpec) -> list[Job]:
    """Two guests', on a disk each."""
    return jobs_on(spec, Settings(guests=2).every_disk())


def at(at_s: float, first: int, second: int = 0, verify_errors: int = 0) -> Snapshot:
    """So many I/Os done by guests 1 and 2."""
    return snapshot(
        at_s,
        frontend={
            1: {"ios": first, "requests": first, "verify_errors": verify_errors},
            2: {"ios": second, "requests": second},
        },
    )


def shown(spec: LoadSpec, snapshots: list[Snapshot], terminal: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, force_terminal=terminal)
    with Progress(console, "persistent", jobs(spec), at(100.0, 0)) as progress:
        for each in snapshots:
            progress.update(each)
    return file.getvalue()


def test_a_file_gets_one_plain_line_a_second() -> None:
    lines = shown(LoadSpec(), [at(100 + i / 2, 50 * i) for i in range(1, 7)]).splitlines()
    assert [line.split(";")[0] for line in lines] == [
        "persistent: 1 s elapsed, about 4 s left",
        "persistent: 2 s elapsed, about 3 s left",
        "persistent: 3 s elapsed, about 2 s left",
    ]


def test_a_machine_that_stood_still_owes_no_lines() -> None:
    text = shown(LoadSpec(runtime_s=60), [at(110.0, 1), at(110.5, 2), at(111.0, 3)])
    assert len(text.splitlines()) == 2


def test_the_rate_is_of_the_moment_and_the_sums_are_of_the_whole() -> None:
    text = shown(LoadSpec(), [at(101.0, 1000, 400), at(102.0, 1500, 1000, verify_errors=2)])
    assert "1,400 IOPS now (400 to 1,000 a guest); 1,400 requests done" in text
    assert "1,100 IOPS now (500 to 600 a guest); 2,500 requests done, 2 verify errors" in text


def test_a_load_of_so_many_ios_ends_with_its_slowest_disk() -> None:
    load = jobs(LoadSpec(ios=100))
    with Progress(Console(quiet=True), "persistent", load, at(100, 0)) as progress:
        assert progress.remaining_s(at(102.0, 80, 20)) == 8.0
        assert progress.remaining_s(at(102.0, 80, 0)) is None


def test_a_load_ends_by_whichever_limit_comes_first() -> None:
    load = jobs(LoadSpec(ios=100, runtime_s=4))
    with Progress(Console(quiet=True), "persistent", load, at(100, 0)) as progress:
        assert progress.remaining_s(at(102.0, 20, 20)) == 2.0
        assert progress.remaining_s(at(103.0, 90, 90)) == 3.0 * 10 / 90
        assert progress.remaining_s(at(105.0, 90, 90)) == 0.0


def test_a_terminal_gets_a_table_of_guests() -> None:
    text = shown(LoadSpec(), [at(101.0, 1000, 400)], terminal=True)
    for part in ("persistent", "IOPS now", "guest 1", "guest 2", "1,400", "about 4 s left"):
        assert part in text


def test_jobs_end_with_the_last_of_them() -> None:
    disks = Settings(guests=1, disks=["ram:1m", "null:1m"]).every_disk()
    load = LoadSpec(
        runtime_s=9, job=[{"vdev": "xvda", "runtime_s": 4}, {"vdev": "xvdb", "ios": 100}]
    )
    started = snapshot(100.0, disks=2)
    with Progress(Console(quiet=True), "persistent", jobs_on(load, disks), started) as progress:
        now = snapshot(102.0, disks=2, frontend={1: [{"ios": 7}, {"ios": 50}]})
        assert progress.remaining_s(now) == 2.0
        now = snapshot(102.0, disks=2, frontend={1: [{"ios": 7}, {"ios": 25}]})
        assert progress.remaining_s(now) == 6.0
