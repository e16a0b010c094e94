"""What `ls` shows: machines that are up, as `xl list` and `xl block-list` show domains and disks.

Owns: what is gathered of a machine, and its tables. IOPS are of the moment in which it is seen.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final

from rich.console import Console

from toolstack.attached import AttachedMachine, attach
from toolstack.config import size_text
from toolstack.failures import MachineError
from toolstack.names import NoSuchMachine
from toolstack.wire import NoAnswer
from toolstack.words import new_table, number

MOMENT_S: Final = 0.25
ANSWER_S: Final = 10.0  # a keeper that takes longer hangs
HANGS: Final = "its keeper does not answer"
NOTHING: Final[dict[str, Any]] = {"domains": [], "disks": [], "loads": 0}


def gathered(names: Sequence[str]) -> list[dict[str, Any]]:
    """What is to be said of each of these, but for those that go down meanwhile."""
    found = dict[str, dict[str, Any]]()
    with ExitStack() as stack:
        first = []
        for name in names:
            with suppress(NoSuchMachine, MachineError):
                try:
                    machine = stack.enter_context(attach(name, ANSWER_S))
                    first.append((machine, _status(machine)))
                except NoAnswer:
                    found[name] = _hanging(name)
        time.sleep(MOMENT_S if first else 0)
        for machine, before in first:
            with suppress(MachineError):
                try:
                    found[machine.name] = _told(machine, before, _status(machine))
                except NoAnswer:
                    found[machine.name] = _hanging(machine.name)
    return [found[name] for name in names if name in found]


def _status(machine: AttachedMachine) -> dict[str, Any]:
    return machine.status() if machine.described["state"] == "running" else NOTHING


def _hanging(name: str) -> dict[str, Any]:
    """Of a machine whose keeper does not answer: the keys of every other."""
    unknown = ("pid", "up_s", "mode", "dom0_vcpus", "run_dir", "xenstore_path")
    return {"name": name, "state": HANGS, **dict.fromkeys(unknown), **NOTHING}


def _told(
    machine: AttachedMachine, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    described = machine.described
    was = {(disk["domid"], disk["vdev"]): disk for disk in before["disks"]}
    disks = []
    for disk in after["disks"]:  # one may have come meanwhile, or be another than it was
        one = was.get((disk["domid"], disk["vdev"]), disk)
        seconds, ios = disk["at_s"] - one["at_s"], disk["ios"] - one["ios"]
        told = {key: value for key, value in disk.items() if key != "at_s"}
        disks.append({**told, "iops": max(ios, 0) / seconds if seconds > 0 else 0.0})
    return {
        "name": machine.name,
        "state": described["state"],
        "pid": described["pid"],
        "up_s": time.time() - described["since"],
        "mode": described["mode"],
        "dom0_vcpus": machine.topology.dom0_vcpus,
        "loads": after["loads"],
        "run_dir": machine.run_dir,
        "xenstore_path": machine.xenstore_path,
        "domains": after["domains"],
        "disks": disks,
    }


def print_machine(console: Console, machine: dict[str, Any]) -> None:
    """A line of what it is, then its domains and its disks."""
    if machine["state"] == HANGS:
        console.print(f"{machine['name']}: {HANGS}; `down {machine['name']} --force` ends it")
        return
    loads = f"{machine['loads']} load{'s' * (machine['loads'] != 1)}"
    console.print(
        f"{machine['name']}: {machine['state']}, {machine['mode']}, up {machine['up_s']:.0f} s,"
        f" dom0 with {machine['dom0_vcpus']} vCPUs, {loads}"
    )
    if not machine["domains"]:
        return
    table = new_table("")
    for name in ("domid", "domain", "state", "pid", "grants mapped"):
        table.add_column(name, justify="left" if name in ("domain", "state") else "right")
    for domain in machine["domains"]:
        table.add_row(
            str(domain["domid"]),
            domain["name"],
            f"{domain['letters']} {domain['failure'] or domain['state']}",
            str(domain["pid"] or "-"),
            number(domain["grants_mapped"]),
        )
    console.print(table)
    table = new_table("")
    for name in ("domid", "vdev", "device", "state", "size", "target", "kept", "IOPS"):
        table.add_column(name, justify="left" if name in ("vdev", "state", "target") else "right")
    for disk in machine["disks"]:
        read_only = ",access=ro" if disk["access"] == "ro" else ""
        exported = ", exported" if disk["exported"] else ""
        table.add_row(
            str(disk["domid"]),
            disk["vdev"],
            str(disk["device"]),
            disk["state"],
            size_text(disk["size"]),
            disk["target"] + read_only + exported,
            number(disk["grants_kept"]),
            number(round(disk["iops"])),
        )
    console.print(table)
