"""The command line, on machines that are only arithmetic (`stand_in.py`)."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import CliRunner, Result

from tests.toolstack.stand_in import StandIn, Starter
from toolstack import limits, stages
from toolstack.__main__ import main
from toolstack.cli import FLAGS, Flag, cli
from toolstack.door import OF_RUN_SH
from toolstack.topology import Topology
from toolstack.verify_state import Verdict

ROOT = Path(__file__).parents[2]


FLAGS_OF_RUN = ", ".join(
    [name for flag in FLAGS for name in (*flag.opts, *flag.secondary_opts)] + ["--help"]
)


def grantlab(*args: str, starter: Starter | None = None) -> Result:
    return CliRunner().invoke(cli, args, obj=starter or Starter(), env={"COLUMNS": "80"})


def modes(starter: Starter) -> list[str]:
    return [machine.topology.mode for machine in starter.machines]


def refused(*args: str) -> str:
    """The one line of an error for which nothing was started."""
    starter = Starter()
    result = grantlab(*args, starter=starter)
    assert result.exit_code == 2
    assert starter.machines == []
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("grantlab: error: ")
    return line.removeprefix("grantlab: error: ")


def test_without_arguments_both_modes_run_and_are_compared() -> None:
    starter = Starter()
    result = grantlab(starter=starter)
    assert result.exit_code == 0
    assert modes(starter) == ["non-persistent", "persistent"]
    assert [machine.times_closed for machine in starter.machines] == [1, 1]
    assert "persistent did 1.00 times the IOPS of non-persistent" in " ".join(result.stdout.split())
    assert result.stderr == ""


def test_each_machine_is_introduced_in_one_line_with_pids_and_store() -> None:
    lines = grantlab("--guests", "2", "--persistent").stdout.splitlines()
    assert lines[0] == (
        "persistent: hypervisor 11, dom0 12, guest-1 13, guest-2 14;"
        " XENSTORED_PATH=/run/stand-in/xenstored xenstore-ls"
    )


def test_progress_is_a_plain_line_a_second_where_there_is_no_terminal() -> None:
    text = grantlab("--persistent").stdout
    assert sum(" s elapsed" in line for line in text.splitlines()) == 2


def test_quiet_leaves_only_the_tables() -> None:
    text = grantlab("--quiet").stdout
    assert "elapsed" not in text and "XENSTORED_PATH" not in text
    assert "IOPS" in text


@pytest.mark.parametrize("command", [(), ("run",)])
def test_the_command_s_name_may_be_left_out(command: tuple[str, ...]) -> None:
    starter = Starter()
    assert grantlab(*command, "--guests", "8", "--persistent", starter=starter).exit_code == 0
    assert starter.machines[0].topology.guests == 8


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--persistent"], ["persistent"]),
        (["--no-persistent"], ["non-persistent"]),
        (["--backend-without-persistent"], ["backend-without-persistent"]),
        (
            ["--persistent", "--backend-without-persistent", "--no-persistent"],
            ["non-persistent", "backend-without-persistent", "persistent"],
        ),
    ],
)
def test_the_modes_that_are_named_run(flags: list[str], expected: list[str]) -> None:
    starter = Starter()
    assert grantlab(*flags, starter=starter).exit_code == 0
    assert modes(starter) == expected


def test_every_flag_reaches_its_setting() -> None:
    starter = Starter()
    flags = (
        "--preset 2012 --guests 3 --dom0-vcpus 5 --flush-policy precise --batching drain"
        " --max-persistent-grants 9 --spin off --disk-mib 16 --rw write --rwmixread 1 --bs 8k"
        " --iodepth 2 --runtime 1.5 --ramp-time 0.5 --ios 77 --seed 6 --fsync 3 --no-verify"
        " --persistent"
    )
    assert grantlab(*flags.split(), starter=starter).exit_code == 0
    (machine,) = starter.machines
    assert machine.topology.given() == {
        "preset": "2012", "guests": 3, "dom0_vcpus": 5, "flush_policy": "precise",
        "batching": "drain", "max_persistent_grants": 9, "spin": "off", "disk_mib": 16, "seed": 6,
        "persistent": True, "backend_persistent": True, "grant_copy": False,
    }  # fmt: skip
    assert machine.specs[0].given() == {
        "rw": "write", "rwmixread": 1, "bs": 8192, "iodepth": 2, "runtime_s": 1.5, "ios": 77,
        "ramp_time_s": 0.5, "seed": 6, "fsync": 3, "verify": False, "job": (),
    }  # fmt: skip


def test_guests_get_the_buffers_that_the_load_needs() -> None:
    starter = Starter()
    grantlab("--bs", "1m", "--iodepth", "200", "--persistent", starter=starter)
    assert starter.machines[0].topology.buffer_mib == 200


def test_a_flag_overrides_the_config_file(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text('[topology]\nguests = 9\ndom0_vcpus = 3\n[load]\nbs = "8k"\nios = 5\n')
    starter = Starter()
    grantlab("--config", str(config), "--guests", "2", "--ios", "6", starter=starter)
    machine = starter.machines[0]
    assert (machine.topology.guests, machine.topology.dom0_vcpus) == (2, 3)
    assert (machine.specs[0].bs, machine.specs[0].ios) == (8192, 6)


def test_a_preset_by_flag_reaches_what_the_file_left_open(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text('[topology]\npreset = "today"\n')
    starter = Starter()
    grantlab("--config", str(config), "--preset", "2012", starter=starter)
    assert starter.machines[0].topology.flush_policy == "mask-2012"


def test_a_file_may_name_the_one_mode_to_run(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text("[topology]\nbackend_persistent = false\n")
    starter = Starter()
    grantlab("--config", str(config), starter=starter)
    assert modes(starter) == ["backend-without-persistent"]


def test_a_mode_that_is_named_overrides_the_file_s(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text("[topology]\npersistent = false\n")
    starter = Starter()
    grantlab("--config", str(config), "--persistent", starter=starter)
    assert modes(starter) == ["persistent"]


def test_results_are_written_for_each_mode(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert grantlab("--json", str(path)).exit_code == 0
    found = json.loads(path.read_text())
    assert found["schema"] == 2
    assert [run["config"]["mode"] for run in found["runs"]] == ["non-persistent", "persistent"]


def test_disks_and_what_runs_on_them_are_named_by_flags() -> None:
    starter = Starter()
    flags = "--persistent --disk ram:1m --disk null:1g,vdev=xvdp,access=ro --vdev xvdp --rw read"
    result = grantlab(*flags.split(), "--guests", "2", starter=starter)
    assert result.exit_code == 0, result.stderr
    (machine,) = starter.machines
    assert [disk.vdev for disk in machine.topology.disks_of(2)] == ["xvda", "xvdp"]
    assert machine.specs[0].vdev == ("xvdp",)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert any(line[:2] == ["guest-2", "xvdp"] and line[-1] == "no" for line in lines)


def test_a_flag_s_disks_are_in_place_of_the_file_s(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text("[topology]\ndisk-mib = 9\n")
    starter = Starter()
    grantlab("--config", str(config), "--disk", "null:1m", starter=starter)
    assert starter.machines[0].topology.disks_of(1)[0].spec.params == "null:1m"
    config.write_text('[topology]\ndisks = ["null:1m"]\n')
    grantlab("--config", str(config), "--disk-mib", "3", starter=starter)
    assert starter.machines[-1].topology.disks_of(1)[0].spec.params == "ram:3m"


def test_a_flag_of_the_load_reaches_every_job_of_the_file(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text(
        '[topology]\ndisks = ["ram:1m", "ram:1m"]\n[load]\nbs = "8k"\n'
        '[[load.job]]\nvdev = "xvda"\n[[load.job]]\nvdev = "xvdb"\nrw = "read"\nbs = "1k"\n'
    )
    starter = Starter()
    assert grantlab("--config", str(config), "--ios", "7", starter=starter).exit_code == 0
    assert [(job.rw, job.bs, job.ios) for job in starter.machines[0].specs[0].jobs] == [
        ("randrw", 8192, 7),
        ("read", 1024, 7),
    ]
    grantlab("--config", str(config), "--bs", "512", starter=starter)
    assert [job.bs for job in starter.machines[-1].specs[0].jobs] == [512, 512]
    assert "vdev: is for a load of no jobs" in refused("--config", str(config), "--vdev", "xvda")


def test_a_table_of_rings_is_written_as_it_is_asked_for(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.csv", "a.parquet")]
    disks = ("--disk", "ram:1m", "--disk", "null:1m")
    done = grantlab(*disks, "--guests", "3", "--csv", paths[0], "--parquet", paths[1])
    assert done.exit_code == 0
    assert len(Path(paths[0]).read_text().splitlines()) == 1 + 2 * 3 * 2
    assert Path(paths[1]).stat().st_size > 0


def test_a_machine_that_the_host_has_no_room_for_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "host", lambda: limits.Host(5000, None, None, None))
    line = refused("--persistent", "--guests", "64")
    assert "max-persistent-grants: 352 for each of 64 disks may need 49408 mappings" in line


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["--guests", "65"], "guests: 65 is not in 1..64"),
        (["run", "--guests", "x"], "guests: 'x' is not in 1..64"),
        (["--runtime", "0"], "runtime: 0 is not above 0, at most 1000000"),
        (["--bs", "1000"], "bs: 1000 is not a multiple of 512 in 512..1m"),
        (
            ["--flush-policy", "foo"],
            "flush-policy: 'foo' is not one of mask, mask-2012, accessed, precise",
        ),
        (["--gests", "4"], "run: no such flag --gests; did you mean --guests?"),
        (["--no-verfy"], "run: no such flag --no-verfy; did you mean --no-verify?"),
        (["--zzzzzz"], f"run: no such flag --zzzzzz; its flags are {FLAGS_OF_RUN}"),
        (
            ["--guests"],
            "run: --guests needs a value, N: Guests, a process each: 1..64 (default: 4)",
        ),
        (["--persistent=1"], "run: --persistent takes no value"),
        (
            ["--guests", "4", "more"],
            f"run: unexpected argument 'more'; it takes only flags: {FLAGS_OF_RUN}",
        ),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(args: list[str], line: str) -> None:
    assert refused(*args) == line


def test_a_judgement_needs_a_state_and_a_disk_that_is_older(tmp_path: Path) -> None:
    states, file = tmp_path / "states", tmp_path / "disk.img"
    file.write_bytes(bytes(4096))
    only = ("--verify-only", "--persistent", "--guests", "1")
    assert refused(*only) == "verify-only: needs --verify-state, which says what disks must hold"
    assert refused(*only, "--verify-state", str(states)) == (
        "verify-only: no disk here is older than its machine: none can be judged"
    )
    assert refused(*only, "--verify-state", str(states), "--disk", f"file:{file}") == (
        f"verify-only: there is no '{states}/guest-1-xvda.state':"
        " nothing is known of guest 1's xvda"
    )


@pytest.mark.parametrize(("outside", "status"), [(0, 0), (2, 1)])
def test_a_judgement_prints_what_was_found_and_runs_nothing(
    tmp_path: Path, outside: int, status: int
) -> None:
    file, state = tmp_path / "disk.img", tmp_path / "guest-1-xvda.state"
    file.write_bytes(bytes(4096))
    state.write_text("the machine's to look at")
    args = "--verify-only", "--persistent", "--guests", "1", "--disk", f"file:{file}"
    starter = Starter()
    (disk,) = Topology(guests=1, disks=[f"file:{file}"]).every_disk()
    starter.verdicts = [Verdict(disk)]
    starter.verdicts[0].add({"checked": 9, "uncertain": 1, "outside": outside, "named": []})
    result = grantlab(*args, "--verify-state", str(tmp_path), starter=starter)
    assert result.exit_code == status
    assert f"9 sectors checked, 1 of them uncertain, {outside} outside" in result.stdout
    assert ("2 sectors are outside of their bounds" in result.stderr) == bool(outside)
    (machine,) = starter.machines
    assert machine.times_closed == 1 and not machine.specs


def test_a_bad_config_file_is_named_with_its_bad_setting(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text("[topology]\nguests = 0\n")
    assert refused("--config", str(config)) == f"config '{config}': guests: 0 is not in 1..64"


def test_buffers_in_a_file_that_are_too_small_for_the_flags_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "lab.toml"
    config.write_text("[topology]\nbuffer_mib = 1\n")
    assert refused("--config", str(config), "--bs", "1m").startswith("buffer-mib: 1 is too small")


def test_a_result_that_cannot_be_written_is_refused_before_anything_starts() -> None:
    assert refused("--json", "/nonexistent/out.json").startswith("json: '/nonexistent/out.json'")


def failing(change: Callable[[StandIn], None], *args: str) -> tuple[Starter, Result]:
    starter = Starter(change)
    return starter, grantlab("--persistent", *args, starter=starter)


def test_a_machine_that_fails_is_one_line_and_is_closed() -> None:
    from toolstack.machine import MachineError

    def die(machine: StandIn) -> None:
        raise MachineError("dom0 was killed by SIGKILL")

    starter, result = failing(die)
    assert result.exit_code == 1
    assert result.stderr == "grantlab: error: persistent: dom0 was killed by SIGKILL\n"
    assert starter.machines[0].times_closed == 1


@pytest.mark.parametrize(
    ("name", "count", "said"),
    [
        ("verify_errors", 2, "8 verify errors"),
        ("io_errors", 1, "4 I/O errors"),
        ("bad_requests", 2, "8 bad requests"),
        ("left_mapped", 1, "4 grants left mapped"),
    ],
)
def test_an_unsound_run_prints_its_tables_and_fails(
    name: str, count: int, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "out.json"
    change: Callable[[StandIn], None] = lambda machine: setattr(machine, name, count)  # noqa: E731
    _, result = failing(change, "--json", str(path))
    assert result.exit_code == 1
    assert result.stderr == f"grantlab: error: persistent: {said}\n"
    assert "IOPS" in result.stdout
    assert re.search(r"bad requests +8\b", result.stdout) or name != "bad_requests"
    assert path.exists()


def test_a_machine_that_cannot_be_closed_well_has_no_result() -> None:
    class Stuck(StandIn):
        def close(self) -> None:
            self.times_closed += 1
            self.close_failure = "dom0 was killed by SIGKILL"

    result = CliRunner().invoke(cli, ["--persistent"], obj=Stuck)
    assert result.exit_code == 1
    assert "persistent: closing the machine failed: dom0 was killed by SIGKILL" in result.stderr


@pytest.mark.parametrize(
    ("how", "then", "status"),
    [(signal.SIGINT, signal.SIGTERM, 130), (signal.SIGTERM, signal.SIGINT, 143)],
)
def test_a_signal_closes_the_machine_and_further_ones_are_ignored(
    how: signal.Signals,
    then: signal.Signals,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(machine: StandIn) -> None:
        try:
            signal.raise_signal(how)
        finally:
            signal.raise_signal(then)  # as it may arrive during the closing

    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    starter = Starter(interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["--persistent", "--quiet"], obj=starter)
    assert ended.value.code == status
    assert starter.machines[0].times_closed == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.endswith("; everything is closed")
    assert "IOPS" in shown.out  # what was measured until then
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize("json", [True, False])
def test_an_interrupted_load_is_measured_up_to_then(
    json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json as json_module

    path = tmp_path / "out.json"
    starter = Starter(lambda machine: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as ended:
        main(["--guests", "2", *(["--json", str(path)] if json else [])], obj=starter)
    assert ended.value.code == 130
    assert modes(starter) == ["non-persistent"]  # and the next one is not begun
    out = capsys.readouterr().out
    assert "IOPS" in out and "times the IOPS" not in out
    if json:
        (run,) = json_module.loads(path.read_text())["runs"]
        assert run["totals"]["requests"] == 2 * 2000  # two of the stand-in's four steps
        assert run["totals"]["seconds"] == 1.0


def interrupted(_: Topology) -> NoReturn:
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("unreachable")


def failed(_: Topology) -> NoReturn:
    from toolstack.machine import MachineError

    raise MachineError("shared memory is full")


@pytest.mark.parametrize(
    ("second", "status", "said"),
    [
        (interrupted, 130, "interrupted; everything is closed"),
        (failed, 1, "persistent: shared memory is full"),
    ],
)
def test_what_ends_the_second_mode_takes_nothing_from_the_first(
    second: Callable[[Topology], NoReturn],
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    starter = Starter()
    with pytest.raises(SystemExit) as ended:
        main(["--quiet"], obj=lambda t: second(t) if starter.machines else starter(t))
    assert ended.value.code == status
    shown = capsys.readouterr()
    assert shown.err == f"grantlab: error: {said}\n"
    assert "IOPS" in shown.out and modes(starter) == ["non-persistent"]


def test_a_guest_that_dies_is_named_after_the_tables_of_the_others(tmp_path: Path) -> None:
    from toolstack.machine import GuestFailed

    def die(machine: StandIn) -> None:
        machine.failures["guest-2"] = "guest-2 was killed by SIGKILL"

    class Bereft(StandIn):
        def load(self, *args: Any) -> Any:
            yield from super().load(*args)
            raise GuestFailed("; ".join(self.failures.values()))

    path = tmp_path / "out.json"
    result = CliRunner().invoke(
        cli, ["--persistent", "--json", str(path)], obj=lambda topology: Bereft(topology, die)
    )
    assert result.exit_code == 1
    assert result.stderr == "grantlab: error: persistent: guest-2 was killed by SIGKILL\n"
    assert "IOPS" in result.stdout and path.exists()


def test_a_guest_that_dies_keeps_no_other_mode_from_running() -> None:
    machines: list[StandIn] = []

    def start(topology: Topology) -> StandIn:
        machines.append(StandIn(topology))
        if len(machines) == 1:
            machines[0].failures["guest-1"] = "guest-1 was killed by SIGSEGV"
        return machines[-1]

    result = CliRunner().invoke(cli, [], obj=start)
    assert result.exit_code == 1
    assert [machine.topology.mode for machine in machines] == ["non-persistent", "persistent"]
    assert result.stderr == "grantlab: error: non-persistent: guest-1 was killed by SIGSEGV\n"
    assert "times the IOPS" in " ".join(result.stdout.split())


def test_figures_that_cannot_be_true_are_said_to_be_so() -> None:
    def lie(machine: StandIn) -> None:
        machine.suspects = frozenset({1, 3})

    _, result = failing(lie)
    assert result.exit_code == 1
    said = "persistent: the own figures of guest 1, 3 cannot be true"
    assert result.stderr == f"grantlab: error: {said}\n"
    assert "IOPS" in result.stdout


def test_a_load_that_is_left_early_is_stopped_before_the_machine_is_closed() -> None:
    order: list[str] = []

    class Recorder(StandIn):
        def load(self, *args: Any) -> Any:
            try:
                yield self.snapshot()
            finally:
                order.append("load stopped")

        def close(self) -> None:
            order.append("machine closed")
            super().close()

    class BrokenProgress(stages.Progress):
        def update(self, now: Any) -> None:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "Progress", BrokenProgress)
        result = CliRunner().invoke(cli, ["--persistent"], obj=Recorder)
    assert result.exit_code == 130
    assert order == ["load stopped", "machine closed"]


def test_help_names_every_flag_with_its_group_and_fits_in_80_columns() -> None:
    result = grantlab("--help")
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 80
    for flag in FLAGS:
        assert isinstance(flag, Flag)
        assert flag.opts[0] in result.stdout
        assert f"{flag.group}:" in result.stdout


def test_help_teaches_allowed_values_defaults_examples_and_commands() -> None:
    text = " ".join(grantlab("--help").stdout.split())
    assert "mask, mask-2012, accessed, precise (default: mask; mask-2012 with preset 2012)" in text
    assert "1..64 (default: 4)" in text
    assert text.count("./run.sh --") == 3
    assert "Commands: run" in text
    assert all(f" {name} {what}" in text for name, what in OF_RUN_SH.items())


def test_help_is_the_same_with_and_without_the_command_s_name() -> None:
    assert grantlab("--help").stdout == grantlab("run", "--help").stdout


def test_the_version_is_the_project_s() -> None:
    assert grantlab("--version").stdout == "grantlab 0.1.0\n"


def test_help_loads_no_compiler() -> None:
    code = (
        "import sys\nfrom toolstack.cli import cli\n"
        "try:\n    cli(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('numba', 'matplotlib', 'zmq') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"
