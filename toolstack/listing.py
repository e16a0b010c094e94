"""What `ls` shows: machines that are up, as `xl list` and `xl block-list` show domains and disks.

Owns: what is gathered of a machine, and its tables. IOPS are of the moment in which it is seen.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, Final

from rich.console import Console

from toolstack.attached import AttachedMachine, attach
from toolstack.failures import MachineError
from toolstack.names import NoSuchMachine
from toolstack.words import new_table, number

MOMENT_S: Final = 0.25
NOTHING: Final[dict[str, Any]] = {"domains": [], "disks": [], "loads": 0}


def gathered(names: Sequence[str]) -> list[dict[str, Any]]:
    """What is to be said of each of these, but for those that go down meanwhile."""
    with ExitStack() as stack:
        first = []
        for name in names:
            with suppress(NoSuchMachine, MachineError):
                machine = stack.enter_context(attach(name))
                first.append((machine, _status(machine)))
        time.sleep(MOMENT_S if first else 0)
        found = []
        for machine, before in first:
            with suppress(MachineError):
                found.append(_told(machine, before, _status(machine)))
        return found


def _status(machine: AttachedMachine) -> dict[str, Any]:
    return machine.status() if machine.described["state"] == "running" else NOTHING


def _told(
    machine: AttachedMachine, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    described = machine.described
    disks = []
    for one, other in zip(before["disks"], after["disks"], strict=True):
        seconds = other.pop("at_s") - one["at_s"]
        disks.append({**other, "iops": (other["ios"] - one["ios"]) / seconds})
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
            domain["failure"] or domain["state"],
            str(domain["pid"] or "-"),
            number(domain["grants_mapped"]),
        )
    console.print(table)
    table = new_table("")
    for name in ("domid", "vdev", "device", "state", "target", "kept", "IOPS"):
        table.add_column(name, justify="left" if name in ("vdev", "state", "target") else "right")
    for disk in machine["disks"]:
        read_only = ",access=ro" if disk["access"] == "ro" else ""
        exported = ", exported" if disk["exported"] else ""
        table.add_row(
            str(disk["domid"]),
            disk["vdev"],
            str(disk["device"]),
            disk["state"],
            disk["target"] + read_only + exported,
            number(disk["grants_kept"]),
            number(round(disk["iops"])),
        )
    console.print(table)
