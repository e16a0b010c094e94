"""`metrics` and `top`: eyes on a machine that stays, from the command line.

Owns: their flags, and how they end. What is shown is `toolstack/metrics.py`'s and
`toolstack/top_screen.py`'s, which bring much, and are imported when they are asked for.
"""

import asyncio
import os
import signal
import socket
import sys
from typing import Final

import click

from toolstack.attached import attach
from toolstack.door import Command, RunEnded, Within
from toolstack.flags import OUTPUT, Flag, machine_name
from toolstack.loadspec import ConfigError

ANSWER_S: Final = 10.0  # a keeper that takes longer hangs
PORT_MAX: Final = 65535
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def _scrape(name: str) -> bytes:
    """What is to be told of the machine now. Raises MachineError, ConfigError."""
    from toolstack.metrics import exposition  # noqa: PLC0415
    from toolstack.seen import see  # noqa: PLC0415

    with attach(name, ANSWER_S) as machine:
        lives = machine.described["state"] == "running"
        return exposition(see(machine) if lives else None)


def _metrics(name: str, path: str | None, port: int | None, once: bool) -> None:
    if sum((path is not None, port is not None, once)) != 1:
        raise ConfigError("metrics: needs one of --once, --socket PATH and --port N")
    if once:
        click.echo(_scrape(name), nl=False)
        return
    with attach(name, ANSWER_S) as machine:
        keeper = os.pidfd_open(machine.described["pid"])
    try:
        _serve(name, path, port, keeper)
    finally:
        os.close(keeper)


def _serve(name: str, path: str | None, port: int | None, keeper: int) -> None:
    from toolstack.scrape_server import LOOPBACK, PATH, listen_at, listen_on  # noqa: PLC0415

    if path is not None:
        listener = listen_at(path)
        made = os.lstat(path)
        where = f"curl --unix-socket {path} localhost{PATH}"
    else:
        listener = listen_on(port or 0)
        where = f"{LOOPBACK}:{listener.getsockname()[1]}{PATH}"
    try:
        click.echo(f"metrics of {name}: {where}")
        sys.stdout.flush()
        signum = asyncio.run(_until_the_end(name, listener, keeper))
    finally:
        listener.close()
        if path is not None and os.path.lexists(path) and os.path.samestat(made, os.lstat(path)):
            os.unlink(path)
    if signum is None:
        raise RunEnded(f"machine {name!r} is gone, and its metrics are served no more")
    how = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[signum]
    raise RunEnded(f"{how}; metrics are served no more, {name} stays", 128 + signum)


async def _until_the_end(name: str, listener: socket.socket, keeper: int) -> signal.Signals | None:
    """Serve until a signal comes, which it is, or the machine's keeper ends."""
    from toolstack.scrape_server import ScrapeServer  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    end: asyncio.Future[signal.Signals | None] = loop.create_future()

    def finish(how: signal.Signals | None) -> None:
        if not end.done():
            end.set_result(how)

    for each in SIGNALS:  # by the loop: one that is raised in a client's turn would be the client's
        loop.add_signal_handler(each, finish, each)
    loop.add_reader(keeper, finish, None)
    await ScrapeServer(lambda: _scrape(name)).serve(listener, end)
    return end.result()


def _top(name: str) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("top: needs a terminal; `ls --json` and `metrics --once` need none")
    with attach(name, ANSWER_S) as machine:
        if machine.described["state"] != "running":
            raise RunEnded(f"machine {name!r} has {machine.described['state']}")
        from toolstack.seen import see  # noqa: PLC0415

        first = see(machine)
        from toolstack.top_screen import run_top  # noqa: PLC0415

        app = run_top(name, first, lambda: see(machine))
    if app.ended_by is not None:
        how = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
        raise RunEnded(how[app.ended_by], 128 + app.ended_by)
    if app.failure:
        raise RunEnded(f"machine {name!r}: {app.failure}")


COMMANDS: Final = [
    Command(
        "metrics",
        callback=_metrics,
        params=[
            machine_name(),
            Flag(OUTPUT, "--socket", "path", metavar="PATH", help="Serve on this unix socket."),
            Flag(
                OUTPUT,
                "--port",
                "port",
                type=Within(int, 0, PORT_MAX),
                metavar="N",
                help="Serve on this port of loopback (0: any that is free).",
            ),
            Flag(OUTPUT, "--once", "once", is_flag=True, help="Print them, and be done."),
        ],
        help="Serve what a machine that is up counts, by domain, disk and CPU, to Prometheus: its"
        " text format over HTTP at /metrics, until the machine goes down.",
        short_help="What a machine counts, for Prometheus.",
    ),
    Command(
        "top",
        callback=_top,
        params=[machine_name()],
        help="Show a machine that is up as it is now: its guests and disks, how full their rings"
        " are, IOPS, latencies, notifications, what a request costs in maps, flushes and IPIs, and"
        " which CPUs are interrupted. up and down pick a guest, q ends it.",
        short_help="A machine as it is now, on the terminal.",
    ),
]
