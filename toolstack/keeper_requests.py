"""What a machine that stays can be asked (docs/staying.md).

Owns: the table of requests, and what each takes and answers. How one is carried out without waiting
is `toolstack/keeper.py`'s.
"""

import inspect
import os
from collections.abc import Callable
from typing import Any, Final

from common.control import one_line
from toolstack.client import Client
from toolstack.failures import MachineError
from toolstack.keeper import Keeper
from toolstack.life_requests import LIFE
from toolstack.loadspec import ConfigError, LoadSpec
from toolstack.orders import unexpected
from toolstack.plug_requests import PLUG
from toolstack.snapshot_wire import to_plain

Request = Callable[..., None]

TRACED_MAX_S: Final = 10.0

DISK_WORDS: Final = (
    "read", "write", "read_many", "write_many", "flush", "discard", "judge", "versions"
)  # fmt: skip


def obey(keeper: Keeper, client: Client, message: list[Any]) -> None:
    """Carry a request out, or say why not."""
    number, word, *arguments = message
    request = REQUESTS.get(word)
    if request is None:
        allowed = ", ".join(REQUESTS)
        text = f"no such request {one_line(word)!r}; allowed are {allowed}"
        client.refuse(number, ConfigError(text))
        return
    try:
        inspect.signature(request).bind(keeper, client, number, *arguments)
    except TypeError as error:
        client.refuse(number, ConfigError(f"{word}: {error}"))
        return
    try:
        preserved = keeper.machine.topology.on_crash == "preserve"
        if keeper.died and word not in (PRESERVED if preserved else ALWAYS):
            raise MachineError(keeper.died)
        request(keeper, client, number, *arguments)
    except (ConfigError, MachineError, ValueError, TypeError) as error:
        client.refuse(number, error)
    except Exception as error:
        client.refuse(number, unexpected(error))


def describe(keeper: Keeper, client: Client, number: int) -> None:
    """What machine it is: all that does not change, and who lives."""
    machine = keeper.machine
    died = bool(keeper.died)
    if not died:
        machine.follow()
    client.answer(
        number,
        {
            "name": machine.name,
            "pid": os.getpid(),
            "state": f"died: {keeper.died}" if died else "running",
            "since": keeper.since_s,
            "mode": machine.topology.mode,
            "topology": machine.topology.model_dump(mode="json", exclude_unset=True),
            "run_dir": machine.run_dir,
            "xenstore_path": machine.xenstore_path,
            "loads": keeper.nr_loads,
            "pids": {} if died else machine.pids,
            "failures": machine.failures,
            "sizes": list(machine.sizes().items()),
        },
    )


def status(keeper: Keeper, client: Client, number: int) -> None:
    """What changes: domains and disks."""
    machine, others = keeper.machine, keeper.machine.follow()
    now = machine.snapshot()
    found = {"domains": machine.domains(now), "disks": machine.disks(now, others)}
    sockets = {(disk.domid, disk.vdev): path for disk, path in keeper.exports.sockets().items()}
    for disk in found["disks"]:
        disk["exported"] = sockets.get((disk["domid"], disk["vdev"]), "")
    client.answer(number, {**found, "loads": keeper.nr_loads})


def snapshot(keeper: Keeper, client: Client, number: int, which: str = "now") -> None:
    """Every counter: now, or as it was when the machine was `booted` or `connected`."""
    machine = keeper.machine
    taken = {"booted": machine.booted, "connected": machine.connected, "now": None}
    if which not in taken:
        raise ConfigError(f"snapshot: {one_line(which)!r} is not one of {', '.join(taken)}")
    client.answer(number, to_plain(taken[which] or machine.snapshot()))


def open_trace(keeper: Keeper, client: Client, number: int, seconds: float) -> None:
    """Have the logs of a trace written for so long: until when."""
    client.answer(number, keeper.machine.trace.open(min(float(seconds), TRACED_MAX_S)))


def take_trace(keeper: Keeper, client: Client, number: int) -> None:
    """What has been written since."""
    client.answer(number, keeper.machine.trace.take())


def guest(keeper: Keeper, client: Client, number: int, domid: int, *message: Any) -> None:
    """A command about a disk, for the guest to answer (machine/guest.py)."""
    if domid not in keeper.machine.topology.domids:
        raise ConfigError(f"guest: {one_line(str(domid))} is not one of this machine's")
    if not message or message[0] not in DISK_WORDS:
        raise ConfigError(f"guest: what it can be asked is {', '.join(DISK_WORDS)}")
    keeper.ask(client, number, f"guest-{domid}", *message)


def load(keeper: Keeper, client: Client, number: int, spec: dict[str, Any], every_s: float) -> None:
    """Run a load (LoadSpec's fields) to its end: a snapshot every so often, then who failed."""
    seconds, checked = float(every_s), LoadSpec(**spec)
    begun = keeper.machine.begin_load(checked, keeper.is_asked)
    keeper.attach(client, number, begun, seconds)


def export(keeper: Keeper, client: Client, number: int, domid: int, vdev: str, path: str) -> None:
    """Serve a disk as NBD until `stop`, at `path` ("": in its directory): "more" says where."""
    if not isinstance(domid, int) or not isinstance(vdev, str) or not isinstance(path, str):
        raise ConfigError("export: it takes a domid, a vdev and a path")
    keeper.exports.begin(client, number, domid, vdev, path, keeper.ask)


def stop(keeper: Keeper, client: Client, number: int, of: int) -> None:
    """The load or export that request `of` of this client began is to end; that one answers."""
    keeper.stop_load(client, of)


def down(keeper: Keeper, client: Client, number: int, forced: bool = False) -> None:
    """Put the machine down; answered when nothing is left of it. forced: without its consent."""
    keeper.forced = keeper.forced or bool(forced)
    keeper.going.append((client, number))


REQUESTS: Final[dict[str, Request]] = {
    **{
        each.__name__: each
        for each in (
            describe,
            status,
            snapshot,
            open_trace,
            take_trace,
            guest,
            load,
            export,
            stop,
            down,
        )
    },
    **PLUG,
    **LIFE,
}
ALWAYS: Final = ("describe", "stop", "down")  # of a machine that has died, too
PRESERVED: Final = (*ALWAYS, "look")  # and of one that is preserved
