"""Every attack there is, on a running machine with `--events pipe`: nobody else is any worse off.

Counts and bounds only; how fast honest guests are beside an attack is for `./run.sh bench hostile`.
"""

import pytest

from bench.footprint import ENDLESS, TOOLSTACK, Footprint, footprints, limit_descriptors
from bench.siege import ATTACKER, NEWCOMER, besiege, bring_up_vcpus
from common.xenbus import backend_path, frontend_path
from common.xenstore import XenStoreClient
from hostile.attacks import ATTACKS, REFERENCE
from machine.plug import XVDA
from toolstack.loadspec import LoadSpec
from toolstack.machine import Machine
from toolstack.topology import Topology

pytestmark = pytest.mark.system

SECONDS = 0.4
MEMORY_GROWN_MAX = 16 << 20  # in a moment: 64 MiB is for an hour
DESCRIPTORS_MAX = 256
DOORS = ("hypercall", "ports", "store", "event", "ring", "memory", "control")


def of_door(door: str) -> list[str]:
    prefixes = ("grants", "stats") if door == "memory" else (door,)
    return [name for name in ATTACKS if name.startswith(prefixes)]


def test_every_attack_is_of_a_door() -> None:
    assert sorted(sum(map(of_door, DOORS), [REFERENCE])) == sorted(ATTACKS)


@pytest.mark.parametrize("mode", ["persistent"])
@pytest.mark.parametrize("door", DOORS)
def test_a_hostile_guest_harms_itself_alone(door: str, mode: str) -> None:
    topology = Topology(guests=2, events="pipe", disk_mib=8, dom0_vcpus=4).with_mode(mode)
    with Machine(topology).start() as machine:
        for name in ENDLESS:
            limit_descriptors(machine.pids[name], DESCRIPTORS_MAX)
        spec = LoadSpec(runtime_s=SECONDS)
        bring_up_vcpus(machine)
        *_, _ = machine.load(spec)  # the disks' pages
        before = footprints(machine.pids)  # of all: what grows with each of them is seen, too
        for attack in of_door(door):
            _survives(machine, before, attack, spec)
    assert machine.close_failure == ""
    assert machine.failures == {}


def _survives(machine: Machine, before: dict[str, Footprint], attack: str, spec: LoadSpec) -> None:
    pids = {name: machine.pids[name] for name in ENDLESS}
    siege = besiege(machine, before, attack, 1, spec, 1)
    assert {name: machine.pids[name] for name in ENDLESS} == pids
    assert siege.suspect == (attack == "stats-garbage"), attack
    assert siege.strokes > 0 or siege.suspect, attack
    for name in (*ENDLESS, TOOLSTACK):
        assert siege.grown(name) < MEMORY_GROWN_MAX, (attack, name)
        assert siege.most[name].descriptors < DESCRIPTORS_MAX, (attack, name)
    if ATTACKS[attack].fatal:
        assert siege.deaths, attack
    else:
        assert siege.deaths == [], attack
    assert siege.left == [], attack
    with XenStoreClient(machine.xenstore_path) as store:
        for domid in (ATTACKER, NEWCOMER):
            assert not store.exists(frontend_path(domid, XVDA)), attack
            assert not store.exists(backend_path(domid, XVDA)), attack
    machine.add_guest(ATTACKER)  # its domid is free again: nothing of it is mapped, or remembered
    machine.remove_guest(ATTACKER)
