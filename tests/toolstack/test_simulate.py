"""`./run.sh simulate`: the real launch's flags, the real result format, one seed one file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.toolstack.stand_in import Starter
from toolstack.commands import cli
from toolstack.flags import FLAGS, STATE
from toolstack.simulate import RUNTIME_S, simulate


def grantlab(*args: str) -> Result:
    return CliRunner().invoke(cli, ["simulate", *args], env={"COLUMNS": "80"})


def result_of(path: Path, *args: str) -> dict[str, Any]:
    done = grantlab("--json", str(path), *args)
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(path.read_text()))


def shape(value: Any) -> Any:
    """The names in a result, without its numbers."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else None


SMALL = ("--guests", "2", "--ios", "50", "--dom0-vcpus", "3")


def test_the_same_seed_is_the_same_file_and_another_seed_another(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        result_of(tmp_path / name, *SMALL, "--seed", seed)
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_the_result_has_every_name_of_a_real_one(tmp_path: Path) -> None:
    simulated = result_of(tmp_path / "simulated", *SMALL)["runs"][0]
    path = tmp_path / "real"
    real = CliRunner().invoke(cli, [*SMALL, "--json", str(path), "--no-persistent"], obj=Starter())
    assert real.exit_code == 0
    (expected,) = json.loads(path.read_text())["runs"]
    only_a_models = {"physical_cpus": None, "costs": shape(simulated["config"]["costs"])}
    assert shape(simulated) == {
        **shape(expected),
        "config": {**shape(expected["config"]), **only_a_models},
    }
    assert simulated["config"]["runtime"] == "simulated"
    assert simulated["config"]["spin"] == "off"
    assert simulated["counters"]["host_tlb_shootdowns"] is None


def test_what_it_counts_is_what_was_asked_for(tmp_path: Path) -> None:
    without, kept = result_of(tmp_path / "json", *SMALL)["runs"]
    for run, mode in ((without, "non-persistent"), (kept, "persistent")):
        assert run["config"]["mode"] == mode
        assert run["totals"]["requests"] == 100
        assert run["counters"]["setup"]["map_ops"] == 2  # the rings
    # 50 flushes from each of CPUs 0 and 1, each to both others.
    assert without["counters"]["ipis_by_cpu"] == [50, 50, 100]
    assert kept["counters"]["flushes"] == 0


def test_it_takes_every_flag_of_the_real_launch() -> None:
    assert {flag.name for flag in FLAGS} - set(STATE) < {flag.name for flag in simulate.params}


def test_vcpus_go_up_to_256_and_may_be_called_so(tmp_path: Path) -> None:
    run = result_of(tmp_path / "json", "--vcpus", "256", "--guests", "1", "--ios", "3")["runs"][0]
    assert run["counters"]["ipis"] == 3 * 255
    assert run["config"]["dom0_vcpus"] == 256
    assert run["config"]["physical_cpus"] == 257


def test_without_an_end_it_runs_a_little_virtual_time(tmp_path: Path) -> None:
    run = result_of(tmp_path / "json", "--guests", "1", "--persistent")["runs"][0]
    assert run["config"]["runtime_s"] == RUNTIME_S
    assert run["totals"]["seconds"] == pytest.approx(RUNTIME_S, rel=0.05)


def test_the_report_says_that_it_is_a_model() -> None:
    words = " ".join(grantlab(*SMALL, "--preset", "2012").stdout.split())
    assert "In virtual time, by the model of docs/simulator.md" in words
    assert "non-persistent: busy flush lock" in words
    assert "A hypercall here is a message between processes" not in words


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (("--spin", "adaptive"), "spin: 'adaptive' is the real runtime's"),
        (("--physical-cpus", "2"), "physical-cpus: 2 are fewer than dom0's 24"),
        (("--dom0-vcpus", "300"), "dom0-vcpus: 300 is not in 1..256"),
        (("--config", "thinks.toml"), "thinktime: is of a real run"),
        (("--json", "/nowhere/x"), "json: '/nowhere/x' cannot be written"),
    ],
)
def test_a_bad_setting_is_one_line(
    args: tuple[str, ...], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("thinks.toml").write_text("[load]\nthinktime = 5\n")
    result = grantlab(*args)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"grantlab: error: {complaint}")
