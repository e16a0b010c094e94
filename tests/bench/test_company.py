"""Busy loops come and go, conditions take turns, and two ratios come of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from bench.company import (
    Condition,
    Rounds,
    as_json,
    busy_loops,
    conditions,
    in_order,
    medians,
    only_on,
    print_company,
    run_round,
    verdicts,
)
from bench.figure import Figure
from bench.sampling import Cell
from toolstack import ConfigError

ROOT = Path(__file__).parents[2]


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_the_loops_run_and_are_gone_afterwards() -> None:
    with busy_loops(2) as pids:
        assert len({*pids}) == 2
        assert all(map(is_running, pids))
    assert not any(map(is_running, pids))


def test_they_are_gone_if_what_they_were_for_fails() -> None:
    with pytest.raises(KeyboardInterrupt), busy_loops(1) as pids:
        raise KeyboardInterrupt
    assert not any(map(is_running, pids))


def test_they_are_gone_if_we_are_killed() -> None:
    killed = (
        "import os, signal\n"
        "from bench.company import busy_loops\n"
        "with busy_loops(2) as pids:\n"
        "    print(*pids, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", killed], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    still = [pid for pid in pids if is_running(pid)]
    for pid in still:
        os.kill(pid, signal.SIGKILL)
    assert still == []


def test_a_round_has_both_spins_alone_and_beside_the_loops() -> None:
    plan = conditions("persistent", [1, 8], loops=2)
    assert plan == [
        Condition(Cell("persistent", guests, spin), loops)
        for guests in (1, 8)
        for loops in (0, 2)
        for spin in ("adaptive", "off")
    ]


def test_every_other_round_goes_backwards() -> None:
    plan = conditions("persistent", [1, 4], loops=2)
    assert in_order(plan, 0) == in_order(plan, 2) == plan
    assert in_order(plan, 1) == list(reversed(plan))


def test_each_is_measured_once_with_its_loops_beside_it() -> None:
    plan = conditions("persistent", [1], loops=2)
    seen = list[tuple[str, int]]()

    def measure(cell: Cell) -> Figure:
        seen.append((cell.spin, len(psutil.Process().children())))
        return Figure(1.0, 1.0, 1.0, 1.0)

    before = len(psutil.Process().children())
    assert set(run_round(plan, 1, measure)) == set(plan)
    assert seen == [(spin, before + loops) for loops in (2, 0) for spin in ("off", "adaptive")]


def test_only_on_one_cpu_and_then_again_on_all() -> None:
    before = os.sched_getaffinity(0)
    with only_on([min(before)]), busy_loops(1) as pids:
        assert os.sched_getaffinity(pids[0]) == {min(before)}
    assert os.sched_getaffinity(0) == before
    with only_on(None):
        assert os.sched_getaffinity(0) == before


def test_a_cpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^cpus: 4095 is not one of 0"), only_on([0, 4095]):
        raise AssertionError("it was not refused")


def round_of(guests: int, alone: float, beside: float, off: float) -> dict[Condition, Figure]:
    """IOPS of the default alone and beside two loops, and of `spin off` beside them."""
    iops = {("adaptive", 0): alone, ("off", 0): 10.0, ("adaptive", 2): beside, ("off", 2): off}
    return {
        Condition(Cell("persistent", guests, spin), loops): Figure(value, 1.0, 2.0, 3.0)
        for (spin, loops), value in iops.items()
    }


@pytest.mark.parametrize(
    ("beside", "off", "of_better", "of_alone"),
    [(50.0, 40.0, 1.0, 0.5), (50.0, 100.0, 0.5, 0.5), (7.0, 140.0, 0.05, 0.07)],
)
def test_two_ratios(beside: float, off: float, of_better: float, of_alone: float) -> None:
    (verdict,) = verdicts(medians([round_of(4, 100.0, beside, off)]))
    assert verdict == (4, of_better, of_alone)


def test_the_ratios_are_of_medians() -> None:
    """Who is the better of two equals takes turns: it costs neither anything."""
    rounds: Rounds = [
        round_of(1, 100.0, beside, off)
        for beside, off in ((60.0, 50.0), (50.0, 60.0), (55.0, 55.0))
    ]
    assert verdicts(medians(rounds)) == [(1, 1.0, 0.55)]


def said(rounds: Rounds) -> str:
    console = Console(width=80, record=True, highlight=False)
    print_company(console, rounds)
    return console.export_text()


def test_the_words_say_what_was_aimed_at() -> None:
    text = " ".join(said([round_of(8, 1_000_000.0, 10_000.0, 124_000.0)]).split())
    assert (
        "8 guests: the default does 0.08 (aimed at 0.9: MISSED) of the better beside the loops,"
        " 0.01 (aimed at 0.3: MISSED) of what it does alone" in text
    )
    assert "8 adaptive 1,000,000 10,000 0.010" in text


def test_fewer_guests_than_four_are_not_held_to_what_they_do_alone() -> None:
    text = " ".join(said([round_of(1, 100.0, 10.0, 10.0)]).split())
    assert (
        "1 guest: the default does 1.00 (aimed at 0.9) of the better beside the loops,"
        " 0.10 of what it does alone" in text
    )
    assert "MISSED" not in text


def test_every_sample_is_written() -> None:
    rounds: Rounds = [round_of(1, 100.0, 50.0, 50.0), round_of(1, 100.0, 30.0, 50.0)]
    document = json.loads(json.dumps(as_json(rounds)))
    assert [len(samples) for samples in document["rounds"]] == [4, 4]
    assert document["rounds"][1][2] == {
        "mode": "persistent", "guests": 1, "spin": "adaptive", "loops": 2,
        "iops": 30.0, "p50_us": 1.0, "p99_us": 2.0, "cpu_s_per_million": 3.0,
    }  # fmt: skip
    assert document["verdicts"] == [{"guests": 1, "of_better": 0.8, "of_alone": 0.4}]
