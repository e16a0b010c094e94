"""What a machine may be, and how a bad setting is told."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from toolstack import limits
from toolstack.loadspec import LoadSpec
from toolstack.topology import MODES, ConfigError, Mode, Topology


def error_of(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Topology(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_of(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "lab.toml"
    path.write_text(text)
    return path


def test_the_defaults_are_today_s() -> None:
    topology = Topology()
    assert (topology.guests, topology.dom0_vcpus, topology.disk_mib) == (4, 24, 64)
    assert (topology.flush_policy, topology.batching) == ("mask", "request")
    assert (topology.max_persistent_grants, topology.spin) == (352, "adaptive")
    assert topology.mode == "persistent"


def test_the_preset_2012_brings_its_flush_policy() -> None:
    assert Topology(preset="2012").flush_policy == "mask-2012"


def test_a_field_that_is_given_overrides_the_preset() -> None:
    topology = Topology(preset="2012", flush_policy="precise", max_persistent_grants=10)
    assert (topology.flush_policy, topology.max_persistent_grants) == ("precise", 10)
    assert topology.batching == "request"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"guests": 65}, "guests: 65 is not in 1..64"),
        ({"guests": 0}, "guests: 0 is not in 1..64"),
        ({"guests": "65"}, "guests: 65 is not in 1..64"),
        ({"guests": "many"}, "guests: 'many' is not in 1..64"),
        ({"guests": True}, "guests: True is not in 1..64"),
        ({"guests": 4.5}, "guests: 4.5 is not in 1..64"),
        ({"guests": None}, "guests: None is not in 1..64"),
        ({"dom0_vcpus": 257}, "dom0-vcpus: 257 is not in 1..256"),
        (
            {"flush_policy": "foo"},
            "flush-policy: 'foo' is not one of mask, mask-2012, accessed, precise",
        ),
        ({"preset": "1999"}, "preset: 1999 is not one of 2012, today"),
        ({"batching": ["x"]}, "batching: ['x'] is not one of request, drain"),
        ({"spin": "hard"}, "spin: 'hard' is not one of adaptive, off"),
        ({"max_persistent_grants": -1}, "max-persistent-grants: -1 is not in 0..100000"),
        ({"disk_mib": 65537}, "disk-mib: 65537 is not in 1..65536"),
        ({"seed": -1}, "seed: -1 is not 0 or more"),
        ({"persistent": "yes"}, "persistent: 'yes' is not one of true, false"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(settings: dict[str, Any], line: str) -> None:
    assert error_of(**settings) == line


def test_a_long_or_many_lined_value_still_makes_one_short_line() -> None:
    line = error_of(guests="a\nb" * 1000)
    assert line.startswith("guests: 'a\\nba\\nb")
    assert len(line) < 100


def test_an_unknown_setting_is_named_and_the_known_ones_are_listed() -> None:
    line = error_of(gest=4)
    assert line.startswith("gest: no such setting; allowed are ")
    for name in Topology.model_fields:
        assert name in line


def test_a_topology_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Topology().guests = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("persistent", "backend_persistent", "mode"),
    [
        (True, True, "persistent"),
        (True, False, "backend-without-persistent"),
        (False, True, "non-persistent"),
        (False, False, "non-persistent"),
    ],
)
def test_the_mode_follows_from_what_both_ends_announce(
    persistent: bool, backend_persistent: bool, mode: str
) -> None:
    assert Topology(persistent=persistent, backend_persistent=backend_persistent).mode == mode


@pytest.mark.parametrize("mode", MODES)
def test_with_mode_changes_the_mode_and_nothing_else(mode: Mode) -> None:
    before = Topology(guests=7, persistent=False, backend_persistent=False, preset="2012")
    after = before.with_mode(mode)
    assert after.mode == mode
    announced = {"persistent", "backend_persistent", "grant_copy"}
    assert after.model_dump(exclude=announced) == before.model_dump(exclude=announced)


def test_a_backend_that_maps_nothing_can_keep_nothing() -> None:
    with pytest.raises(ConfigError, match="grant-copy: true needs persistent"):
        Topology(grant_copy=True)


def test_with_mode_names_the_modes_there_are() -> None:
    with pytest.raises(ConfigError, match="mode: 'x' is not one of non-persistent, grant-copy, "):
        Topology().with_mode("x")  # type: ignore[arg-type]


def test_a_file_sets_both_the_machine_and_the_load(tmp_path: Path) -> None:
    path = file_of(tmp_path, '[topology]\nguests = 8\n[load]\nbs = "64k"\nios = 10\n')
    topology, spec = Topology.from_toml(path)
    assert topology == Topology(guests=8)
    assert spec == LoadSpec(bs=65536, ios=10)


def test_a_file_may_spell_settings_as_the_flags_do(tmp_path: Path) -> None:
    path = file_of(tmp_path, '[topology]\nflush-policy = "precise"\n[load]\nruntime = 2\n')
    topology, spec = Topology.from_toml(path)
    assert (topology.flush_policy, spec.runtime_s) == ("precise", 2.0)


def test_a_file_may_give_guests_their_own_disks_and_the_load_several_jobs(tmp_path: Path) -> None:
    text = """
        [topology]
        guests = 2
        disks = ["ram:1m", "null:1m"]
        [[topology.guest]]
        [[topology.guest]]
        disks = ["ram:2m,vdev=xvdc"]
        [load]
        bs = "8k"
        [[load.job]]
        domid = 1
        [[load.job]]
        domid = 2
        vdev = ["xvdc"]
        runtime = 3
    """
    topology, spec = Topology.from_toml(file_of(tmp_path, text))
    assert [disk.vdev for disk in topology.every_disk()] == ["xvda", "xvdb", "xvdc"]
    assert [(job.bs, job.domid, job.vdev, job.runtime_s) for job in spec.jobs] == [
        (8192, (1,), (), 5.0),
        (8192, (2,), ("xvdc",), 3.0),
    ]


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert Topology.from_toml(file_of(tmp_path, "")) == (Topology(), LoadSpec())


def test_what_a_file_does_not_say_stays_open_for_the_preset(tmp_path: Path) -> None:
    topology, _ = Topology.from_toml(file_of(tmp_path, '[topology]\npreset = "2012"\n'))
    assert topology.given() == {"preset": "2012"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[topology]\nguests = 65\n", "guests: 65 is not in 1..64"),
        ("[topology]\ngest = 4\n", "gest: no such setting; allowed are preset, guests"),
        ("[topology]\nguest = 4\n", "guest: 4 is not a list of tables"),
        ("[load]\nrw = 1\n", "rw: 1 is not one of read, write"),
        ("[machine]\nguests = 4\n", "'machine': no such table; allowed are [topology], [load]"),
        ("topology = 4\n", "topology: 4 is not a table"),
        ("[load]\nruntime = 1\nruntime_s = 2\n", "runtime: is there twice"),
        ("[topology\n", "is not TOML"),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong_in_it(tmp_path: Path, text: str, said: str) -> None:
    path = file_of(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Topology.from_toml(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        Topology.from_toml(path)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'/none/lab.toml' cannot be read: No such file"):
        Topology.from_toml("/none/lab.toml")


def test_buffers_grow_with_what_a_load_has_in_flight() -> None:
    assert Topology().with_buffers_for(LoadSpec()) == Topology()
    assert Topology().with_buffers_for(LoadSpec(bs="1m", iodepth=100)).buffer_mib == 100
    one_of_two = LoadSpec(job=[{"vdev": "xvda"}, {"vdev": "xvdb", "bs": "1m", "iodepth": 9}])
    assert Topology(disks=["ram:1m"] * 2).with_buffers_for(one_of_two).buffer_mib == 9


def test_buffers_that_were_asked_for_and_are_too_small_are_refused() -> None:
    spec = LoadSpec(bs="64k", iodepth=256)
    assert Topology(buffer_mib=16).with_buffers_for(spec).buffer_mib == 16
    with pytest.raises(ConfigError, match=r"buffer-mib: 15 .* iodepth 256 of bs 64k.* 16"):
        Topology(buffer_mib=15).with_buffers_for(spec)


def test_many_disks_have_smaller_buffers_each() -> None:
    assert [Topology(disks=["ram:1m"] * nr).buffer_mib for nr in (1, 2, 4, 16)] == [8, 4, 2, 1]


def test_starting_a_topology_starts_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    class Machine:
        def __init__(self, topology: Topology) -> None:
            self.topology = topology

        def start(self) -> tuple[str, Topology]:
            return ("started", self.topology)

    monkeypatch.setitem(
        sys.modules, "toolstack.plugged_machine", SimpleNamespace(PluggedMachine=Machine)
    )
    monkeypatch.setattr(limits, "host", lambda: limits.Host(None, None, None, None))
    topology = Topology(guests=3)
    assert topology.start() == ("started", topology)


def test_disks_are_made_for_the_jobs_of_a_file_where_none_are_named() -> None:
    jobs = [LoadSpec(vdev="xvdc", size="96m"), LoadSpec(vdev="xvda", offset="100m", size="1m")]
    machine = Topology(guests=1)
    found = machine.with_disks_for([LoadSpec(job=tuple(jobs)), LoadSpec()])
    assert [disk.params for disk in found.disks] == ["ram:101m"] * 3
    named = Topology(guests=1, disks=["ram:1m"])
    assert named.with_disks_for(jobs) is named
    with pytest.raises(ConfigError, match="disk: 1 of 63g for each of 64 guests"):
        Topology(guests=64).with_disks_for([LoadSpec(size="63g")])
